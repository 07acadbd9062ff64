"""The engine: a wrong pass is caught and named; an optional one is undone, and the run goes on."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import onnx_ir as ir
import pytest

from npuc.errors import NpucError, ParityError, PassError
from npuc.passes.base import Pass, Result, run
from npuc.passes.drop_unused import DropUnused
from npuc.profile import Profile
from npuc.program import Program
from npuc.runners import OnnxRunner

MODEL = "(float[N,4] x) => (float[N,4] y) { h = Relu(x) i = Identity(h) y = Neg(i) }"


@dataclass(frozen=True)
class Wrong(Pass):
    """Relu  ⇒  Abs, which is wrong."""

    name: ClassVar[str] = "wrong"

    def apply(self, model: ir.Model, profile: Profile) -> Result:
        for node in model.graph:
            if node.op_type == "Relu":
                node.op_type = "Abs"
        return Result(1)


@dataclass(frozen=True)
class WrongButOptional(Wrong):
    """The same, optional."""

    optional: ClassVar[bool] = True


@dataclass(frozen=True)
class BakesTheSize(Pass):
    """Right at two rows and at no other number: what the study saw onnxsim do to an LSTM."""

    name: ClassVar[str] = "bakes"
    optional: ClassVar[bool] = True

    def apply(self, model: ir.Model, profile: Profile) -> Result:
        relu = model.graph[0]
        shape = ir.Value(
            name="baked",
            const_value=ir.tensor(np.array([2, 4], np.int64), name="baked"),
            shape=ir.Shape([2]),
            type=ir.TensorType(ir.DataType.INT64),
        )
        model.graph.register_initializer(shape)
        reshape = ir.Node("", "Reshape", [relu.inputs[0], shape], name="reshape")
        model.graph.insert_before(relu, reshape)
        relu.replace_input_with(0, reshape.outputs[0])
        return Result(1)


@dataclass(frozen=True)
class RenamesAPort(Pass):
    """Renames y."""

    name: ClassVar[str] = "renames"

    def apply(self, model: ir.Model, profile: Profile) -> Result:
        model.graph.outputs[0].name = "z"
        return Result(1)


@dataclass(frozen=True)
class Fails(Pass):
    """Gives up."""

    name: ClassVar[str] = "fails"
    optional: ClassVar[bool] = True

    def apply(self, model: ir.Model, profile: Profile) -> Result:
        model.graph.outputs.clear()
        raise PassError("it gave up halfway")


@pytest.fixture
def watch(feed: Callable[..., Any]) -> Callable[[Pass, Program, Program], None]:
    """Compare before and after on real inputs at two and three rows, bit for bit."""

    def compare(item: Pass, before: Program, after: Program) -> None:
        for size in (2, 3):
            values = feed(before, size)
            expected, got = OnnxRunner(before)(values), OnnxRunner(after)(values)
            for name in expected:
                if not np.array_equal(expected[name], got[name]):
                    gap = float(np.abs(expected[name] - got[name]).max())
                    raise ParityError(f"output {name!r} is off by {gap:.3g} at size {size}")

    return compare


def test_a_wrong_required_pass_stops_the_run_and_is_named(
    parse: Callable[..., Program], profile: Profile, watch: Any
) -> None:
    with pytest.raises(ParityError, match="output 'y' is off by") as caught:
        run(parse(MODEL), [DropUnused(), Wrong()], profile, watch)
    assert "in pass 'wrong', after ['drop-unused']" in str(caught.value)


def test_a_wrong_required_pass_goes_unseen_without_a_watch(
    parse: Callable[..., Program], profile: Profile
) -> None:
    assert run(parse(MODEL), [Wrong()], profile).steps[-1].changes == 1


@pytest.mark.parametrize(
    ("item", "reason"),
    [
        (WrongButOptional(), "output 'y' is off by"),
        (BakesTheSize(), "ONNX Runtime fails at inputs x:3x4"),
        (Fails(), "it gave up halfway"),
    ],
    ids=lambda value: getattr(value, "name", ""),
)
def test_an_optional_pass_is_undone_and_the_run_goes_on(
    item: Pass,
    reason: str,
    parse: Callable[..., Program],
    profile: Profile,
    watch: Any,
    ops: Any,
) -> None:
    after = run(parse(MODEL), [item, DropUnused()], profile, watch)
    assert ops(after) == ["Relu", "Neg"]
    undone, dropped = after.steps
    assert (undone.name, undone.changes) == (item.name, 0)
    assert reason in undone.rolled_back
    assert (dropped.changes, dropped.rolled_back) == (1, "")


def test_a_pass_works_on_a_copy(parse: Callable[..., Program], profile: Profile, ops: Any) -> None:
    before = parse(MODEL)
    run(before, [Wrong(), DropUnused()], profile)
    assert ops(before) == ["Relu", "Identity", "Neg"]
    assert before.steps == ()


def test_a_pass_may_not_rename_a_port(parse: Callable[..., Program], profile: Profile) -> None:
    with pytest.raises(PassError, match="'renames' changed the model's outputs"):
        run(parse(MODEL), [RenamesAPort()], profile)


def test_a_fault_of_npuc_is_not_an_optional_failure(
    parse: Callable[..., Program], profile: Profile
) -> None:
    class Bug(Fails):
        def apply(self, model: ir.Model, profile: Profile) -> Result:
            raise ZeroDivisionError

    assert not issubclass(ZeroDivisionError, NpucError)
    with pytest.raises(ZeroDivisionError):
        run(parse(MODEL), [Bug()], profile)
