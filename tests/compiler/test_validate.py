"""Wrong passes are found: by value, at another size, in one output, by NaN; and undone or fatal."""

from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from npuc import answers, policy
from npuc.errors import ParityError, PassError
from npuc.passes.base import Pass, Result, run
from npuc.passes.fix_shapes import FixShapes
from npuc.policy import Policy
from npuc.profile import Profile
from npuc.program import Program, Tensors
from npuc.progress import Silent
from npuc.validate import CALLS, Validator

TEXT = """<ir_version: 10, opset_import: ["" : 20]>
net (float[batch, 3] x) => (float[batch, 2] y, float[batch, 3] z)
<float[3, 2] w = {0.5, -1, 2, 0.25, -0.125, 3}>
{ h = MatMul (x, w)  y = Tanh (h)  z = Sigmoid (x) }"""
ANY = Profile("any", "no target in particular", {}, {})


def append(model: ir.Model, output: str, op: str, array: np.ndarray[Any, Any]) -> None:
    """Put a node with one constant between an output and what made it."""
    count = len(model.graph)  # makes names that no earlier call took
    tensor = ir.tensor(array, name=f"{output}_constant_{count}")
    held = ir.Value(name=tensor.name, shape=ir.Shape(array.shape), type=ir.TensorType(tensor.dtype))
    held.const_value = tensor
    model.graph.register_initializer(held)
    index = next(i for i, v in enumerate(model.graph.outputs) if v.name == output)
    value = model.graph.outputs[index]
    value.name = f"{output}_inner_{count}"
    node = ir.node(op, [value, held])
    node.outputs[0].name, node.outputs[0].shape = output, value.shape
    node.outputs[0].type = value.type
    model.graph.append(node)
    model.graph.outputs[index] = node.outputs[0]


@dataclass(frozen=True)
class Offset(Pass):
    """Adds `by` to one output: wrong by as much as a test wants."""

    name: ClassVar[str] = "offset"

    by: float = 1e-3
    output: str = "y"

    def apply(self, model: ir.Model, profile: Profile) -> Result:
        """Insert an addition before the output."""
        append(model, self.output, "Add", np.array(self.by, np.float32))
        return Result(1)


class OptionalOffset(Offset):
    """The same, as a pass that may be undone."""

    name: ClassVar[str] = "optional-offset"
    optional: ClassVar[bool] = True


class LossyOffset(Offset):
    """The same, as a pass that may cost precision."""

    name: ClassVar[str] = "lossy-offset"
    exact: ClassVar[bool] = False


class OptionalLossyOffset(LossyOffset):
    """The same, as one that may be undone as well."""

    name: ClassVar[str] = "optional-lossy-offset"
    optional: ClassVar[bool] = True


@dataclass(frozen=True)
class BakeBatch(Pass):
    """Writes the recorded batch into the graph: right at this size, wrong at others."""

    name: ClassVar[str] = "bake-batch"
    optional: ClassVar[bool] = True

    def apply(self, model: ir.Model, profile: Profile) -> Result:
        """Reshape to [4, 2]."""
        append(model, "y", "Reshape", np.array([4, 2], np.int64))
        return Result(1)


class FlattenBatch(BakeBatch):
    """Answers in another shape at every size."""

    name: ClassVar[str] = "flatten-batch"

    def apply(self, model: ir.Model, profile: Profile) -> Result:
        """Reshape to one row."""
        append(model, "y", "Reshape", np.array([1, -1], np.int64))
        return Result(1)


class ShuffleRows(BakeBatch):
    """Repeats the first four rows, by index: any batch but 4 comes out wrong, without an error."""

    name: ClassVar[str] = "shuffle-rows"

    def apply(self, model: ir.Model, profile: Profile) -> Result:
        """Take the rows 0, 1, 2, 3 counted from the end of a batch of 4."""
        append(model, "y", "Gather", np.array([-4, -3, -2, -1], np.int64))
        return Result(1)


def program() -> Program:
    proto = onnx.shape_inference.infer_shapes(onnx.parser.parse_model(TEXT), True)
    return Program.from_model(ir.from_proto(proto))


def calls(count: int = 3, batch: int = 4) -> tuple[Tensors, ...]:
    random = np.random.default_rng(5)
    return tuple({"x": random.standard_normal((batch, 3)).astype(np.float32)} for _ in range(count))


def validator(count: int = 3, batch: int = 4) -> tuple[Program, Validator]:
    """Return a program and a validator that has checked its export at two sizes."""
    exported = program()
    reference = answers.from_program(exported, calls(count, batch))
    found = Validator(exported, reference, Policy(), Silent())
    found.export(None)
    return exported, found


def test_export_is_checked_at_two_sizes() -> None:
    _, found = validator()
    (row,) = found.rows
    assert (row.stage, row.state, row.calls, row.sizes) == ("exported", "ok", 3, 2)
    assert [d.output for d in row.original] == ["y", "z"]
    assert [len(group) for group in found.groups] == [3, 1]
    assert found.groups[1][0]["x"].shape == (3, 3)


def test_a_correct_pass_passes() -> None:
    exported, found = validator()
    after = run(exported, [Offset(by=0.0)], ANY, found.watch)
    row = found.rows[-1]
    assert (row.stage, row.state, row.held, row.sizes, row.calls) == ("offset", "ok", "step", 2, 4)
    assert row.changes == 1 and len(row.original) == len(row.step) == 2
    assert after.steps[-1].changes == 1


def test_a_required_pass_that_moves_the_answer_is_fatal() -> None:
    exported, found = validator()
    with pytest.raises(ParityError) as caught:
        run(exported, [Offset(by=0.0), Offset()], ANY, found.watch)
    text = str(caught.value)
    assert "offset changed the answer" in text and "y: max abs 0.001 >" in text
    assert "times the bar" in text and "8x noise" in text and "z: " not in text
    assert "in pass 'offset', after ['offset']" in text
    assert caught.value.exit_code == 6


@pytest.mark.parametrize("output", ["y", "z"])
def test_one_wrong_output_of_two_is_enough(output: str) -> None:
    exported, found = validator()
    with pytest.raises(ParityError) as caught:
        run(exported, [Offset(output=output)], ANY, found.watch)
    assert f"\n  {output}: max abs" in str(caught.value)
    assert str(caught.value).count("max abs") == 1


def test_the_bar_is_the_noise_and_no_more() -> None:
    """A shift inside eight floors passes, one outside fails: the bar is not looser than it says."""
    exported, found = validator()
    limit = Policy().noise(found.reference.floor).max_abs["y"]
    assert limit < 1e-5
    run(exported, [Offset(by=0.5 * limit)], ANY, found.watch)
    with pytest.raises(ParityError, match="changed the answer"):
        run(exported, [Offset(by=1.5 * limit)], ANY, found.watch)


def test_an_optional_pass_is_undone_and_the_run_goes_on() -> None:
    exported, found = validator()
    passes = [Offset(by=0.0), OptionalOffset(), Offset(by=0.0, output="z")]
    after = run(exported, passes, ANY, found.watch)
    found.settle(after)
    assert [(r.stage, r.state) for r in found.rows] == [
        ("exported", "ok"), ("offset", "ok"), ("optional-offset", "rolled back"), ("offset", "ok"),
    ]  # fmt: skip
    note = found.rows[2].note
    assert "optional-offset changed the answer" in note and "max abs 0.001 >" in note
    assert "\n" not in note
    assert sum(n.op_type == "Add" for n in after.model.graph) == 2  # the wrong one is gone
    (same,) = found.rows[3].original[:1]
    assert same.max_abs < 1e-6


def test_rows_settle_twice() -> None:
    """Steps of a second run come after those of the first, rolled back ones included."""
    exported, found = validator()
    after = run(exported, [OptionalOffset(), Offset(by=0.0)], ANY, found.watch)
    found.settle(after)
    fork = found.fork()
    more = run(after, [OptionalOffset(), Offset(by=0.0, output="z")], ANY, fork.watch)
    fork.settle(more)
    states = ["ok", "rolled back", "ok", "rolled back", "ok"]
    assert [r.state for r in fork.rows] == states
    assert [r.state for r in found.rows] == states[:3]  # a fork does not touch its origin


@pytest.mark.parametrize("item", [BakeBatch(), FlattenBatch(), ShuffleRows()])
def test_wrong_at_another_size_only(item: Pass) -> None:
    exported, found = validator()
    after = run(exported, [item], ANY, found.watch)
    assert after.steps[-1].rolled_back and after.model is exported.model


@pytest.mark.parametrize("item", [BakeBatch(), ShuffleRows()])
def test_once_the_size_is_fixed_it_may_be_written_down(item: Pass) -> None:
    exported, found = validator()
    fixed = run(exported, [FixShapes({"batch": 4})], ANY, found.watch)
    after = run(fixed, [item], ANY, found.watch)
    assert not after.steps[-1].rolled_back
    assert found.rows[-1].sizes == 1


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_nan_and_inf_are_found(value: float) -> None:
    exported, found = validator()
    with pytest.raises(ParityError, match=r"\d+ values are NaN or Inf on one side only"):
        run(exported, [Offset(by=value)], ANY, found.watch)
    row_count = len(found.rows)
    after = run(exported, [OptionalOffset(by=value)], ANY, found.watch)
    assert "NaN or Inf" in after.steps[-1].rolled_back and len(found.rows) == row_count


def test_a_lossy_pass_is_held_to_the_policy_and_reported() -> None:
    exported, found = validator()
    run(exported, [LossyOffset(by=1e-3), LossyOffset(by=2.0)], ANY, found.watch)
    good, bad = found.rows[1:]
    assert (good.state, good.held, bad.state) == ("ok", "original", "failed")
    assert bad.faults[0].startswith("y: SQNR") and all(f.startswith("y: ") for f in bad.faults)


def test_lossy_steps_add_up_against_the_original() -> None:
    """Each step alone is within 20 dB; together they are not, and the last one shows it."""
    exported, found = validator()
    run(exported, [LossyOffset(by=0.045, output="z")] * 3, ANY, found.watch)
    assert [r.state for r in found.rows[1:]] == ["ok", "failed", "failed"]
    assert min(d.sqnr_db for d in found.rows[3].step) > 20


def test_an_optional_lossy_pass_is_undone_too() -> None:
    exported, found = validator()
    after = run(exported, [OptionalLossyOffset(by=2.0)], ANY, found.watch)
    assert "y: SQNR" in after.steps[-1].rolled_back


def test_a_changed_port_is_found_without_running() -> None:
    class Drop(Offset):
        def apply(self, model: ir.Model, profile: Profile) -> Result:
            del model.graph.outputs[1]
            return Result(1)

    exported, found = validator()
    with pytest.raises(PassError, match="changed the model's outputs"):
        run(exported, [Drop()], ANY, found.watch)


def test_a_wrong_export_fails_at_the_size_where_it_is_wrong() -> None:
    """The original's own answers at other sizes come from `native`."""
    exported = program()
    reference = answers.from_program(exported, calls())

    def native(call: Tensors) -> Tensors:
        answer = {k: v.copy() for k, v in answers.from_program(exported, [call]).outputs[0].items()}
        answer["z"] += np.float32(0.5)
        return answer

    found = Validator(exported, reference, Policy(), Silent())
    found.export(native)
    (row,) = found.rows
    assert row.state == "failed" and row.sizes == 2
    assert len(row.faults) == 1 and row.faults[0].startswith("at another size: z: max abs 0.5 >")


def test_a_size_the_original_refuses_is_noted_not_failed() -> None:
    exported = program()
    reference = answers.from_program(exported, calls())

    from npuc.runners import OnnxRunner

    runner = OnnxRunner(exported)

    def native(call: Tensors) -> Tensors:
        if len(call["x"]) % 4:
            raise ValueError("only multiples of four")
        return runner(call)

    found = Validator(exported, reference, Policy(), Silent())
    found.export(native)
    assert (found.rows[0].state, found.rows[0].sizes) == ("ok", 1)
    (note,) = found.notes
    assert "not checked at x (3, 3): the original fails there: only multiples of four" in note


def test_a_reference_from_elsewhere_is_believed_over_the_program() -> None:
    """The recorded answers are the original: a program that differs from them fails."""
    exported = program()
    reference = answers.from_program(exported, calls())
    other = tuple({**o, "y": o["y"] + np.float32(1e-3)} for o in reference.outputs)
    found = Validator(exported, replace(reference, outputs=other), Policy(), Silent())
    found.export(None)
    assert found.rows[0].state == "failed" and found.rows[0].faults[0].startswith("y: max abs")


def test_a_batch_is_cut_to_the_fixed_size() -> None:
    exported, found = validator()
    run(exported, [FixShapes({"batch": 1}), Offset(by=0.0)], ANY, found.watch)
    assert [r.state for r in found.rows] == ["ok"] * 3
    with pytest.raises(ParityError, match="offset changed the answer"):
        fixed = run(exported, [FixShapes({"batch": 2})], ANY, found.watch)
        run(fixed, [Offset()], ANY, found.watch)


class Moved:
    """An artifact that answers like the program, moved by `by`."""

    name = "moved"

    def __init__(self, source: Program, by: float) -> None:
        from npuc.runners import OnnxRunner

        self.runner, self.by = OnnxRunner(source), by

    def __call__(self, inputs: Tensors) -> Tensors:
        """Answer one call."""
        return {k: v + np.float32(self.by) for k, v in self.runner(inputs).items()}


def test_the_artifact_is_held_to_noise_where_nothing_was_rounded() -> None:
    exported, found = validator()
    found.artifact(Moved(exported, 0.0), exported, loss=False)
    found.artifact(Moved(exported, 1e-4), exported, loss=False)
    good, bad = found.rows[-2:]
    assert (good.stage, good.state, good.held, bad.state) == ("artifact", "ok", "both", "failed")
    assert sum(f.startswith("against its program: y: ") for f in bad.faults) == 1
    assert sum(f.startswith("y: ") for f in bad.faults) == 1


def test_a_rounded_artifact_may_not_add_a_loss_of_its_own() -> None:
    """0.02 is far within 20 dB of the original; against the exact program it is no tie."""
    exported, found = validator()
    found.artifact(Moved(exported, 0.02), exported, loss=True)
    assert found.rows[-1].state == "failed"
    assert all(f.startswith("against its program") for f in found.rows[-1].faults)
    rounded = run(exported, [LossyOffset(by=0.02), LossyOffset(by=0.02, output="z")], ANY)
    found.artifact(Moved(rounded, 0.009), rounded, loss=True)
    assert found.rows[-1].state == "ok"
    found.artifact(Moved(rounded, 0.011), rounded, loss=True)
    assert found.rows[-1].state == "failed"


def test_passes_see_eight_calls_and_the_artifact_all() -> None:
    exported, found = validator(count=CALLS + 3)
    after = run(exported, [Offset(by=0.0)], ANY, found.watch)
    assert found.rows[1].calls == CALLS + 1  # one of another size
    found.artifact(Moved(after, 0.0), after, loss=False)
    assert found.rows[-1].calls == CALLS + 3


def test_a_stage_without_a_bar_is_shown_only() -> None:
    exported, found = validator()
    far = Moved(exported, 9.0)
    found.add("if", [far(call) for call in found.reference.samples], None)
    assert (found.rows[-1].state, found.rows[-1].faults) == ("shown", ())
    assert found.rows[-1].original[0].max_abs == pytest.approx(9.0, abs=1e-5)


def test_the_policy_is_the_callers() -> None:
    exported, found = validator()
    found.policy = policy.Policy(noise_factor=1e6)
    run(exported, [Offset(by=1e-3)], ANY, found.watch)
    assert found.rows[-1].state == "ok" and found.rows[-1].bar is not None
    assert found.rows[-1].bar.text == "1e+06x noise"
