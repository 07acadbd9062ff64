"""lower-opset: an older opset says the same, or the pass says why not."""

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from npuc.errors import PassError, UsageError
from npuc.passes.base import run
from npuc.passes.forms.read_back import faults
from npuc.passes.lower_opset import LowerOpset
from npuc.profile import Profile
from npuc.program import Program

X = "(float[N,4,6,6] x) => (float[A,B,C,D] y) "
AXES = "<int64[2] a = {2, 3}>"
# (model, lowest version that works, operators there)
LOWERED = {
    "Relu": (X + "{ y = Relu(x) }", 11, ["Relu"]),
    "ReduceMean axes": (X + AXES + "{ y = ReduceMean(x, a) }", 11, ["ReduceMean"]),
    "ReduceMean over all": (X + "{ y = ReduceMean(x) }", 11, ["ReduceMean"]),
    "ReduceSum axes": (X + AXES + "{ y = ReduceSum(x, a) }", 11, ["ReduceSum"]),
    "Unsqueeze Squeeze": (
        X + "<int64[1] a = {1}> { h = Unsqueeze(x, a) i = Neg(h) y = Squeeze(i, a) }",
        11,
        ["Unsqueeze", "Neg", "Squeeze"],
    ),
    "Split by number": (
        X + "{ h, i = Split<axis=1, num_outputs=2>(x) y = Sub(h, i) }",
        11,
        ["Split", "Sub"],
    ),
    "Split by sizes": (
        X + "<int64[2] s = {1, 3}> { h, i = Split<axis=1>(x, s) y = Sub(i, h) }",
        11,
        ["Split", "Sub"],
    ),
    "Softmax": (X + "{ y = Softmax(x) }", 11, ["Softmax"]),
    "Softmax, last axis by number": (X + "{ y = Softmax<axis=3>(x) }", 11, ["Softmax"]),
    "Softmax, static": (
        X.replace("[N", "[3") + "{ y = Softmax<axis=1>(x) }",
        11,
        ["Transpose", "Softmax", "Transpose"],
    ),
    "Mish": (X + "{ y = Mish(x) }", 11, ["Softplus", "Tanh", "Mul"]),
    "Gelu": (X + "{ y = Gelu(x) }", 11, ["Mul", "Erf", "Mul", "Add", "Mul"]),
    "Gelu tanh": (
        X + '{ y = Gelu<approximate="tanh">(x) }',
        11,
        ["Mul", "Mul", "Mul", "Add", "Mul", "Tanh", "Mul", "Add", "Mul"],
    ),
    "HardSwish": (X + "{ y = HardSwish(x) }", 11, ["HardSigmoid", "Mul"]),
    "LayerNormalization": (
        X + "<float[6] s = {1, 2, 3, 4, 5, 6}, float[6] b = {6, 5, 4, 3, 2, 1}>"
        "{ y = LayerNormalization(x, s, b) }",
        11,
        ["ReduceMean", "Sub", "Mul", "ReduceMean", "Add", "Sqrt", "Div", "Mul", "Add"],
    ),
    "LayerNormalization over two axes": (
        X + "<float one = {1}, int64[2] s = {6, 6}>"
        "{ w = Expand(one, s) y = LayerNormalization<axis=2, epsilon=0.1>(x, w) }",
        11,
        ["Expand", "ReduceMean", "Sub", "Mul", "ReduceMean", "Add", "Sqrt", "Div", "Mul"],
    ),
    "Reshape allowzero": (
        X + "<int64[4] s = {-1, 2, 12, 6}> { y = Reshape<allowzero=1>(x, s) }",
        11,
        ["Reshape"],
    ),
    "AveragePool": (X + "{ y = AveragePool<kernel_shape=[2,2]>(x) }", 11, ["AveragePool"]),
    "Resize": (
        X + '<float[4] s = {1, 1, 2, 2}>{ y = Resize<mode="nearest", antialias=0>(x, , s) }',
        11,
        ["Resize"],
    ),
    "Resize to sizes": (
        X.replace("N,4", "1,4")
        + '<int64[4] s = {1, 4, 9, 5}> { y = Resize<mode="linear">(x, , , s) }',
        11,
        ["Resize"],
    ),
    "Cast": (X + "{ h = Cast<to=7>(x) y = Cast<to=1>(h) }", 11, ["Cast", "Cast"]),
}


@pytest.mark.parametrize("case", LOWERED)
@pytest.mark.parametrize("version", [17, 13, 11])
def test_says_the_same(
    case: str,
    version: int,
    parse: Callable[..., Program],
    keeps: Callable[..., Program],
    ops: Any,
) -> None:
    text, lowest, expected = LOWERED[case]
    if version < lowest:
        pytest.skip(f"{case} begins with opset {lowest}")
    # Written-out forms round a few more times than the fused kernels, on values below 20.
    after = keeps(parse(text), [LowerOpset(version)], atol=1e-5)
    assert after.opset == version
    assert ir.to_proto(after.model).opset_import[0].version == version
    if version == 11:
        assert ops(after) == expected
    assert after.outputs == parse(text).outputs


REFUSED = {
    "GridSample": (
        X.replace(") =>", ", float[N,6,6,2] g) =>") + "{ y = GridSample(x, g) }",
        "came with opset 16",
    ),
    "Softmax": (X + "{ y = Softmax<axis=1>(x) }", "runs along axis 1"),
    "ReduceMean": (
        X.replace(") =>", ", int64[2] a) =>") + "{ y = ReduceMean(x, a) }",
        "its axes are not a constant",
    ),
    "AveragePool": (
        X + "{ y = AveragePool<kernel_shape=[4,4], strides=[3,3], ceil_mode=1>(x) }",
        "ceil_mode",
    ),
    "ScatterElements": (
        X.replace(") =>", ", int64[N,4,6,6] i) =>")
        + '{ y = ScatterElements<reduction="add">(x, i, x) }',
        "reduction=add came with a later opset",
    ),
    "Resize": (
        X + '<float[4] s = {1, 1, 2, 2}> { y = Resize<mode="linear", antialias=1>(x, , s) }',
        "antialias=1",
    ),
}


@pytest.mark.parametrize("op", REFUSED)
def test_names_what_it_cannot_say(op: str, parse: Callable[..., Program], profile: Profile) -> None:
    text, reason = REFUSED[op]
    with pytest.raises(PassError) as caught:
        run(parse(text), [LowerOpset(11)], profile)
    assert reason in caught.value.message
    assert f"1 x {op}" in caught.value.message


def test_all_faults_at_once(parse: Callable[..., Program], profile: Profile) -> None:
    text = X + "{ a = Softmax<axis=1>(x) b = Softmax<axis=1>(a) c = IsInf(b) d = Cast<to=6>(c)"
    text += " e = BitwiseNot(d) y = Cast<to=1>(e) }"
    with pytest.raises(PassError) as caught:
        run(parse(text), [LowerOpset(12)], profile)
    assert "BitwiseNot: the operator came with opset 18" in caught.value.message
    assert "softmax_0" in caught.value.message and "softmax_1" in caught.value.message


def test_a_model_that_is_old_enough_is_left_alone(
    parse: Callable[..., Program], keeps: Callable[..., Program]
) -> None:
    after = keeps(parse(X + "{ y = Relu(x) }", opset=13), [LowerOpset(17)])
    assert (after.opset, after.steps[-1].changes) == (13, 0)


def test_too_old_is_a_usage_error(parse: Callable[..., Program], profile: Profile) -> None:
    with pytest.raises(UsageError, match="down to opset 11, not 9"):
        run(parse(X + "{ y = Relu(x) }"), [LowerOpset(9)], profile)


def test_bodies_are_lowered_too(
    parse: Callable[..., Program], keeps: Callable[..., Program]
) -> None:
    before = parse(
        """(float[N,4] x) => (float[N,4] y) <float zero = {0}, int64[1] a = {1}> {
        s = ReduceSum<keepdims=0>(x) c = Greater(s, zero) y = If(c) <
        then_branch = t () => (float[N,4] p) { m = ReduceMean(x, a) p = Sub(x, m) },
        else_branch = e () => (float[N,4] q) { q = HardSwish(x) }> }"""
    )
    after = keeps(before, [LowerOpset(12)], atol=1e-6)
    nodes = list(after.model.graph.all_nodes())
    assert after.opset == 12
    assert "HardSwish" not in {n.op_type for n in nodes}  # it begins with opset 14
    assert [len(n.inputs) for n in nodes if n.op_type == "ReduceMean"] == [1]  # axes: attribute


BROKEN = {
    "has no such operator": ("{ y = Mish(x) }", {}, 17),
    "has no attribute noop_with_empty_axes": (
        "{ y = ReduceMean<noop_with_empty_axes=0>(x) }",
        {},
        13,
    ),
    "attribute axis is FLOAT, opset 13 has INT": ("{ y = Softmax(x) }", {"axis": 1.0}, 13),
    "opset 13 needs attribute kernel_shape": ("{ y = MaxPool<kernel_shape=[1,1]>(x) }", {}, 13),
    "it has 2 inputs, opset 13 takes 1 to 1": (AXES + "{ y = ReduceMean(x, a) }", {}, 13),
    "takes no tensor(bfloat16) as input 'X'": ("{ y = HardSigmoid(x) }", {}, 13),
}


@pytest.mark.parametrize("reason", BROKEN)
def test_reading_back_finds_what_does_not_fit(reason: str, parse: Callable[..., Program]) -> None:
    text, attributes, version = BROKEN[reason]
    model = parse(X + text).model
    model.graph.opset_imports[""] = version
    node = model.graph[0]
    for name, value in attributes.items():
        node.attributes[name] = ir.AttrFloat32(name, value)
    if "kernel_shape" in reason:
        del node.attributes["kernel_shape"]
    if "bfloat16" in reason:
        model.graph.inputs[0].dtype = ir.DataType.BFLOAT16
    assert any(reason in fault for fault in faults(model)), faults(model)


def test_reading_back_a_good_model_finds_nothing(parse: Callable[..., Program]) -> None:
    assert faults(parse(X + "{ h = Mish(x) y = Gelu(h) }").model) == []


def test_large_weights_are_kept(
    parse: Callable[..., Program], keeps: Callable[..., Program], rng: np.random.Generator
) -> None:
    weight = rng.normal(size=(64, 64)).astype(np.float32)
    before = parse(
        "(float[N,64] x, float[64,64] w) => (float[N,64] y) { h = MatMul(x, w) y = Gelu(h) }",
        {"w": weight},
    )
    assert keeps(before, [LowerOpset(13)], atol=1e-5).weight_bytes >= weight.nbytes
