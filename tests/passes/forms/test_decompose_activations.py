"""decompose: activations a device lacks, in those it has."""

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from npuc.passes.base import run
from npuc.passes.decompose import Decompose
from npuc.program import Program
from npuc.runners import OnnxRunner

X = "(float[N,4,6] x) => (float[N,4,6] y) "
# Every form rounds a few times more than the fused kernel, on values below 8: eps · 8 · a few.
NOISE = 4e-6
# (node, what the device has, what it becomes; "" where it is refused)
CASES = {
    "Gelu": ("y = Gelu(x)", "Mul Add Erf", "Mul Erf Mul Add Mul"),
    "Gelu tanh": (
        'y = Gelu<approximate="tanh">(x)',
        "Mul Add Tanh Erf",
        "Mul Mul Mul Add Mul Tanh Mul Add Mul",
    ),
    "Gelu tanh by sigmoid": (
        'y = Gelu<approximate="tanh">(x)',
        "Mul Add Sigmoid",
        "Mul Mul Mul Add Mul Mul Sigmoid Mul Add Mul Add Mul",
    ),
    "HardSwish": ("y = HardSwish(x)", "Mul HardSigmoid", "HardSigmoid Mul"),
    "HardSwish by Clip": ("y = HardSwish(x)", "Mul Add Clip", "Mul Add Clip Mul"),
    "HardSwish by Min and Max": ("y = HardSwish(x)", "Mul Add Min Max", "Mul Add Max Min Mul"),
    "HardSwish by Relu": ("y = HardSwish(x)", "Mul Add Sub Relu", "Mul Add Relu Sub Relu Sub Mul"),
    "HardSigmoid": ("y = HardSigmoid<alpha=0.3, beta=0.6>(x)", "Mul Add Clip", "Mul Add Clip"),
    "Mish": ("y = Mish(x)", "Mul Tanh Softplus", "Softplus Tanh Mul"),
    "Mish by Exp": (
        "y = Mish(x)",
        "Mul Tanh Exp Log Add Relu Abs Neg",
        "Abs Neg Exp Add Log Relu Add Tanh Mul",
    ),
    "Softplus": ("y = Softplus(x)", "Mul Exp Log Add Relu", None),
    "Softsign": ("y = Softsign(x)", "Div Add Abs", "Abs Add Div"),
    "Sigmoid": ("y = Sigmoid(x)", "Mul Add Tanh", "Mul Tanh Mul Add"),
    "Sigmoid by Exp": ("y = Sigmoid(x)", "Neg Add Exp Div", "Neg Exp Add Div"),
    "Tanh": ("y = Tanh(x)", "Mul Add Sigmoid", "Mul Sigmoid Mul Add"),
    "Elu": ("y = Elu<alpha=0.7>(x)", "Mul Add Exp Relu", None),
    "Selu": ("y = Selu(x)", "Mul Add Exp Relu Neg", None),
    "Celu": ("y = Celu<alpha=2.0>(x)", "Mul Add Exp Relu Neg", None),
    "LeakyRelu": ("y = LeakyRelu<alpha=0.2>(x)", "Mul Max", "Mul Max"),
    "LeakyRelu by Relu": ("y = LeakyRelu<alpha=1.7>(x)", "Mul Add Relu Max", None),
    "PRelu": ("s = Constant<value_float=0.3>() y = PRelu(x, s)", "LeakyRelu", "LeakyRelu"),
    "Softmax axis": ("y = Softmax<axis=1>(x)", "Exp Sub ReduceMax ReduceSum Div", None),
    "LogSoftmax": (
        "y = LogSoftmax(x)",
        "ReduceMax Sub Exp ReduceSum Log",
        "ReduceMax Sub Exp ReduceSum Log Sub",
    ),
    "LogSoftmax by Softmax": (
        "y = LogSoftmax<axis=1>(x)",
        "Softmax Log Add Sub Mul ReduceSum",
        "Softmax Add Log Sub Mul ReduceSum Sub",
    ),
    "Relu": ("y = Relu(x)", "Clip", "Clip"),
    "Abs": ("y = Abs(x)", "Relu Add Neg", "Relu Neg Relu Add"),
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("size", [1, 3])
def test_answers_alike(
    case: str,
    size: int,
    parse: Callable[..., Program],
    keeps: Callable[..., Program],
    device: Any,
    ops: Any,
) -> None:
    text, supported, becomes = CASES[case]
    before = parse((X + "{ " + text + " }").replace("[N", f"[{size}"))
    after = keeps(before, [Decompose()], NOISE, on=device(supported))
    assert after.steps[0].changes == 1 and not after.steps[0].refusals
    found = [kind for kind in ops(after) if kind != "Constant"]
    assert set(found) <= set(supported.split())
    if becomes is not None:
        assert found == becomes.split()


def test_stable_where_the_plain_formula_is_not(parse: Callable[..., Program], device: Any) -> None:
    before = parse(
        "(float[1,6] x) => (float[1,6] a, float[1,6] b, float[1,6] c, float[1,6] d) "
        "{ a = Softplus(x) b = LogSoftmax(x) c = Elu(x) d = Sigmoid(x) }"
    )
    has = device("Exp Log Add Relu Neg Mul Sub Softmax ReduceSum Abs Div")
    after = run(before, [Decompose()], has)
    assert after.steps[0].changes == 4
    values = {"x": np.array([[-200, -90, -1, 0, 88.8, 200]], np.float32)}
    expected, got = OnnxRunner(before)(values), OnnxRunner(after)(values)
    for name, value in expected.items():
        assert np.isfinite(got[name]).all()
        # One rounding of 200 is 1.5e-5; three of them here.
        np.testing.assert_allclose(got[name], value, rtol=3e-7, atol=5e-5, err_msg=name)


REFUSED = {
    "Gelu without Erf": ("y = Gelu(x)", "Mul Add Tanh", "tanh formula is another function"),
    "Mish": ("y = Mish(x)", "Mul Tanh", "as times tanh: the device has no Softplus"),
    "Erf": ("h = Gelu(x) y = Neg(h)", "Mul Add Neg", "as erf form: the device has no Erf"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refuses_with_the_reason(case: str, parse: Callable[..., Program], device: Any) -> None:
    text, supported, reason = REFUSED[case]
    before = parse((X + "{ " + text + " }").replace("[N", "[2"))
    step = run(before, [Decompose()], device(supported)).steps[0]
    assert step.changes == 0
    assert len(step.refusals) == 1 and reason in step.refusals[0].reason


def test_nothing_happens_where_nothing_is_public(
    parse: Callable[..., Program], keeps: Callable[..., Program], device: Any
) -> None:
    after = keeps(parse((X + "{ y = Gelu(x) }").replace("[N", "[2")), [Decompose()], on=device())
    assert after.steps[0].changes == 0 and not after.steps[0].refusals


def test_new_nodes_know_where_they_come_from(parse: Callable[..., Program], device: Any) -> None:
    before = parse((X + "{ h = HardSwish(x) y = Neg(h) }").replace("[N", "[2"))
    before.model.graph[0].metadata_props["pkg.torch.onnx.stack_trace"] = "File user.py, line 7"
    after = run(before, [Decompose()], device("Mul Add Clip Neg"))
    traces = [n.metadata_props.get("pkg.torch.onnx.stack_trace") for n in after.model.graph]
    assert traces == ["File user.py, line 7"] * 4 + [None]


def test_one_constant_may_serve_two_nodes(
    parse: Callable[..., Program], keeps: Callable[..., Program], device: Any
) -> None:
    slope = np.full((4, 1), 0.25, np.float32)
    before = parse(
        "(float[2,4,6] x, float[4,1] s) => (float[2,4,6] y, float[2,4,6] z) "
        "{ y = PRelu(x, s) h = Neg(x) z = PRelu(h, s) }",
        {"s": slope},
    )
    after = keeps(before, [Decompose()], NOISE, on=device("Relu Mul Add Neg"))
    assert after.steps[0].changes == 2
    assert "s" not in after.model.graph.initializers
    names = [v.name for n in after.model.graph for v in n.outputs]
    assert len(set(names)) == len(names)


def test_an_output_that_is_an_input(
    parse: Callable[..., Program], keeps: Callable[..., Program], device: Any, ops: Any
) -> None:
    text = "(float[2,3] x) => (float[2,3] y) { y = Cast<to=1>(x) }"
    after = keeps(parse(text), [Decompose()], on=device("Relu"))
    assert ops(after) == ["Identity"]
    assert isinstance(after.model.graph[0], ir.Node)
