"""The step: found by bisection over all samples, and told apart from its neighbours."""

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from npuc import blame, samples
from npuc.blame.steps import first_bad
from npuc.load import load
from npuc.passes.decompose_rnn import DecomposeRnn
from npuc.passes.drop_unused import DropUnused
from npuc.passes.fix_shapes import FixShapes
from npuc.passes.graphs import initializer
from npuc.passes.simplify import Simplify


def node(model: ir.Model, op_type: str, index: int = 0) -> ir.Node:
    """Return the nth node of a kind."""
    return [n for n in model.graph if n.op_type == op_type][index]


def shifted(op_type: str, index: int, by: float) -> Any:
    """Return an edit that adds a constant to what a node makes, where it is read."""

    def edit(model: ir.Model) -> None:
        wrong = node(model, op_type, index)
        value = wrong.outputs[0]
        if any(v.name == "wrong_by" for v in model.graph.initializers.values()):
            return
        held = initializer(model.graph, "wrong_by", np.array(by, np.float32))
        out = ir.Value(name="moved", type=value.type, shape=value.shape)
        users = list(value.uses())
        model.graph.insert_after(wrong, ir.Node("", "Add", [value, held], outputs=[out]))
        for user, at in users:
            user.replace_input_with(at, out)

    return edit


@pytest.mark.parametrize("bad", range(1, 40))
def test_bisection_takes_logarithmically_many_looks(bad: int) -> None:
    looked: list[int] = []

    def is_bad(index: int) -> bool:
        looked.append(index)
        return index >= bad

    assert first_bad(0, 40, is_bad) == bad
    assert len(looked) <= math.ceil(math.log2(40))


def test_a_healthy_model_has_nothing_to_blame(blocks: Path) -> None:
    found = blame.find(blocks, target="cpu", precision="int8")
    assert not found.found and found.exit_code == 0
    assert "nothing to blame" in found.text()


def test_a_required_pass_is_named_with_its_operator_and_line(blocks: Path, broken: Any) -> None:
    with broken(FixShapes, shifted("Softmax", 0, 0.1)):
        found = blame.find(blocks, target="cpu", precision="float")
    assert (found.step, found.kind, found.op_type) == ("fix-shapes", "pass", "Mul")
    assert found.tensor == "softmax" and "conftest.py:" in found.place  # what Mul reads is moved
    assert found.exit_code == 6 and found.runs <= 12 < found.steps + 6


def test_a_step_that_compile_rolls_back_is_named_but_does_not_fail(
    blocks: Path, broken: Any
) -> None:
    with broken(Simplify, shifted("Relu", 0, 0.1)):
        found = blame.find(blocks, target="cpu", precision="float")
    assert found.step == "simplify" and found.rolled_back and found.exit_code == 0
    assert "rolls this step back" in found.text()


def test_of_two_faulty_steps_the_one_that_is_not_undone_is_blamed(
    blocks: Path, broken: Any
) -> None:
    with broken(Simplify, shifted("Relu", 0, 0.1)), broken(DecomposeRnn, shifted("Softmax", 0, 1)):
        found = blame.find(blocks, target="cpu", precision="float")
    assert found.step == "decompose-rnn" and not found.rolled_back


def test_every_sample_counts(blocks: Path, broken: Any) -> None:
    """One sample in twelve shows it: the last, whose values reach farther than any other's."""
    loaded = load(blocks)
    reference = loaded.reference
    assert reference is not None
    calls = list(reference.samples)
    calls[-1] = {"x": 4 * reference.samples[-1]["x"]}

    def clipped(model: ir.Model) -> None:
        wrong = node(model, "Conv")
        x = wrong.inputs[0]
        assert x is not None
        low, high = (initializer(model.graph, f"edge{e}", np.array(e, np.float32)) for e in (-1, 1))
        out = ir.Value(name="clipped", type=x.type, shape=x.shape)
        model.graph.insert_before(wrong, ir.Node("", "Clip", [x, low, high], outputs=[out]))
        wrong.replace_input_with(0, out)

    again = replace(loaded, reference=None, exported=loaded.exported)
    with broken(DecomposeRnn, clipped):
        few = blame.find(again, target="cpu", precision="float", samples=calls[:8])
        all_of_them = blame.find(again, target="cpu", precision="float", samples=calls)
    assert not few.found
    assert (all_of_them.step, all_of_them.op_type) == ("decompose-rnn", "Conv")
    assert "Clip" in all_of_them.text() and all_of_them.tensor == "x"


def test_a_fault_at_another_size_alone_is_found(blocks: Path, broken: Any) -> None:
    """The example's batch of two is written into a Reshape."""

    def baked(model: ir.Model) -> None:
        wrong = node(model, "Gemm")
        x = wrong.inputs[0]
        assert x is not None
        shape = initializer(model.graph, "baked", np.array([2, 8]))
        out = ir.Value(name="same", type=x.type, shape=x.shape)
        model.graph.insert_before(wrong, ir.Node("", "Reshape", [x, shape], outputs=[out]))
        wrong.replace_input_with(0, out)

    with broken(DropUnused, baked):
        found = blame.find(blocks, target="cpu", precision="float")
    assert found.step == "drop-unused"


def test_an_export_that_is_wrong_is_told_from_a_wrong_reference(
    blocks: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import npuc.export as exporter

    plain = exporter._to_onnx

    def wrong(*args: Any) -> ir.Model:
        model = plain(*args)
        shifted("Softmax", 0, 0.1)(model)
        return model

    monkeypatch.setattr(exporter, "_to_onnx", wrong)
    found = blame.find(blocks, target="cpu", precision="float")
    assert (found.step, found.kind) == ("exported", "export")


def test_a_reference_of_other_weights_is_named(blocks: Path) -> None:
    loaded = load(blocks)
    reference = loaded.reference
    assert reference is not None
    others = tuple({k: v * 1.01 for k, v in answer.items()} for answer in reference.outputs)
    print_of = {**reference.fingerprint, "sha256_weights": "0" * 64}
    stale = replace(reference, outputs=others, fingerprint=print_of)
    found = blame.find(replace(loaded, reference=stale), target="cpu", precision="float")
    assert (found.step, found.kind) == ("reference", "reference")
    assert "recorded with other weights" in found.why


def test_a_pass_that_crashes_is_named(blocks: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def crash(self: Any, model: Any, profile: Any) -> Any:
        raise KeyError("no such tensor")

    monkeypatch.setattr(DecomposeRnn, "apply", crash)
    found = blame.find(blocks, target="cpu", precision="float")
    assert found.step == "decompose-rnn" and "KeyError" in found.why


def test_an_export_that_does_not_run_names_the_operator_before(
    blocks: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """ONNX Runtime complains of the reader of a wrong shape; what makes that shape is to blame."""
    import npuc.export as exporter

    plain = exporter._to_onnx

    def wrong(*args: Any) -> ir.Model:
        model = plain(*args)
        mean = node(model, "ReduceMean")
        mean.replace_input_with(1, initializer(model.graph, "all_axes", np.array([1, 2, 3])))
        return model

    monkeypatch.setattr(exporter, "_to_onnx", wrong)
    found = blame.find(blocks, target="cpu", precision="float")
    assert (found.step, found.op_type) == ("exported", "ReduceMean")


def test_an_error_that_later_steps_hide_is_found(blocks: Path, broken: Any) -> None:
    def back(model: ir.Model) -> None:
        held = model.graph.initializers.get("wrong_by")
        if held is not None:
            held.const_value = ir.tensor(np.float32(0), name="wrong_by")

    with broken(FixShapes, shifted("Softmax", 0, 0.1)), broken(DecomposeRnn, back):
        found = blame.find(blocks, target="cpu", precision="float")
    assert found.step == "fix-shapes" and found.masked
    assert "hide this error" in found.text()


def test_sizes_are_those_that_a_compile_checks(blocks: Path) -> None:
    """The judge asks at the sizes that the report's steps were checked at."""
    from npuc.blame.judge import Judge
    from npuc.blame.trail import collect

    trail = collect(blocks, target="cpu", precision="float")
    assert trail.reference is not None and trail.exported is not None
    wanted = samples.variants(trail.reference.samples, trail.exported)
    judge = Judge(trail)
    assert [g[0]["x"].shape for g in judge.groups] == [g[0]["x"].shape for g in wanted]
    assert len(judge.groups[0]) == 12
