"""fix-shapes: dynamic dimensions become numbers everywhere."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from npuc.errors import UsageError
from npuc.passes.base import run
from npuc.passes.fix_shapes import FixShapes
from npuc.profile import Profile
from npuc.program import Program

FLATTEN = """(float[batch,3,side,side] x) => (float[batch,M] y) <int64[1] zero = {0},
    int64[1] rest = {-1}> { s = Shape(x) b = Gather(s, zero) t = Concat<axis=0>(b, rest)
    y = Reshape(x, t) }"""


def test_binds_everywhere_and_folds_shapes(
    parse: Callable[..., Program], keeps: Callable[..., Program], ops: Any
) -> None:
    after = keeps(parse(FLATTEN), [FixShapes({"batch": 3, "side": 3})], sizes=(3,))
    assert ops(after) == ["Reshape"]
    assert [str(port) for port in after.outputs] == ["y:3x27:float32"]
    assert after.symbols == ()
    assert after.steps[-1].refusals == ()


def test_what_stays_dynamic_is_listed(parse: Callable[..., Program], profile: Profile) -> None:
    after = run(parse(FLATTEN), [FixShapes({"side": 4})], profile)
    assert after.symbols == ("batch",)
    reasons = {r.node: r.reason for r in after.steps[-1].refusals}
    assert "--dim batch=N" in reasons["input x"]
    assert any("'y' stays dynamic" in reason for reason in reasons.values())


def test_data_dependent_sizes_are_listed(parse: Callable[..., Program], profile: Profile) -> None:
    before = parse("(float[N] x) => (int64[1,M] y) { y = NonZero(x) }")
    step = run(before, [FixShapes({"N": 4})], profile).steps[-1]
    assert [r.node for r in step.refusals] == ["nonzero_0"]


def test_expressions_of_dimensions(
    parse: Callable[..., Program], keeps: Callable[..., Program]
) -> None:
    before = parse("(float[n,4] x, float[n,4] z) => (float[m,4] y) { y = Concat<axis=0>(x, z) }")
    before.model.graph.outputs[0].shape = _shape("2*n", 4)
    after = keeps(before, [FixShapes({"n": 3})], sizes=(3,))
    assert after.outputs[0].shape == (6, 4)


def test_a_dimension_without_a_name_is_named_after_its_port(
    parse: Callable[..., Program], keeps: Callable[..., Program]
) -> None:
    before = parse("(float[N,2] x) => (float[N,2] y) { y = Relu(x) }")
    for value in (*before.model.graph.inputs, *before.model.graph.outputs):
        value.shape = _shape(None, 2)
    before = Program.from_model(before.model)
    assert before.symbols == ("x_0",)
    after = keeps(before, [FixShapes({"x_0": 3})], sizes=(3,))
    assert after.outputs[0].shape == (3, 2)


def test_inside_control_flow(parse: Callable[..., Program], keeps: Callable[..., Program]) -> None:
    before = parse(
        """(float[n] x) => (float[n] y) <float zero = {0}> { s = ReduceSum<keepdims=0>(x)
        c = Greater(s, zero) y = If(c) <then_branch = a () => (float[n] p) { p = Neg(x) },
        else_branch = b () => (float[n] q) { q = Abs(x) }> }"""
    )
    after = keeps(before, [FixShapes({"n": 3})], sizes=(3,))
    for graph in after.model.graphs():
        assert all(v.shape == (3,) for v in graph.outputs)


def test_binding_again_is_nothing_but_to_another_number_is_an_error(
    parse: Callable[..., Program], profile: Profile
) -> None:
    once = run(parse(FLATTEN), [FixShapes({"batch": 2, "side": 3})], profile)
    assert run(once, [FixShapes({"batch": 2})], profile).steps[-1].changes == 0
    with pytest.raises(UsageError, match="already fixed to 2, not 5"):
        run(once, [FixShapes({"batch": 5})], profile)


FAULTS: dict[str, tuple[dict[str, int], str]] = {
    "unknown, near": ({"bacth": 2}, "no dimension 'bacth': its dynamic dimensions are batch, side"),
    "unknown, several": ({"one": 1, "two": 2}, "'one', 'two'"),
    "zero": ({"batch": 0}, "must be a whole number from 1, not 0"),
    "negative": ({"batch": -1}, "must be a whole number"),
    "a bool": ({"batch": True}, "must be a whole number"),
}


@pytest.mark.parametrize("case", FAULTS)
def test_usage_errors(case: str, parse: Callable[..., Program], profile: Profile) -> None:
    dims, message = FAULTS[case]
    with pytest.raises(UsageError, match=message) as caught:
        run(parse(FLATTEN), [FixShapes(dims)], profile)
    if case == "unknown, near":
        assert "did you mean batch?" in caught.value.hint


def test_a_static_model_has_no_dimensions(parse: Callable[..., Program], profile: Profile) -> None:
    before = parse("(float[2] x) => (float[2] y) { y = Relu(x) }")
    with pytest.raises(UsageError, match="none is dynamic"):
        run(before, [FixShapes({"batch": 2})], profile)


def _shape(*dims: Any) -> Any:
    import onnx_ir as ir

    return ir.Shape(dims)


def test_large_weights_do_not_pass_through_inference(
    parse: Callable[..., Program], keeps: Callable[..., Program], rng: np.random.Generator
) -> None:
    weight = rng.normal(size=(64, 64)).astype(np.float32)
    before = parse(
        "(float[n,64] x, float[64,64] w) => (float[n,64] y) {y=MatMul(x,w)}", {"w": weight}
    )
    after = keeps(before, [FixShapes({"n": 3})], sizes=(3,))
    np.testing.assert_array_equal(after.model.graph.initializers["w"].const_value.numpy(), weight)  # type: ignore[union-attr]
    assert [port.name for port in after.inputs] == ["x"]
