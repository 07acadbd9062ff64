"""The proof behind the allow-list: every operator on it, in every form it is trusted with.

One program per operator holds all its cases, so that each is compiled once. ONNX Runtime with its
optimizations off says what is right.
"""

from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from npuc.targets.tvm import rewrites
from npuc.targets.tvm.allowed import refusals
from npuc.targets.tvm.conditions import ALLOWED

TOLERANCE = 2e-6
"""Of the peak: sums of up to 200 float32 in another order differ by about √200/2 units of 2⁻²⁴."""

RANDOM = np.random.default_rng(7)
Array = np.ndarray[Any, Any]


def f(*shape: int) -> Array:
    return RANDOM.normal(size=shape).astype(np.float32)


def positive(*shape: int) -> Array:
    return RANDOM.uniform(0.1, 4.0, size=shape).astype(np.float32)


def unit(*shape: int) -> Array:
    return RANDOM.uniform(-0.99, 0.99, size=shape).astype(np.float32)


def i64(*shape: int) -> Array:
    return RANDOM.integers(-9, 9, size=shape)


def i32(*shape: int) -> Array:
    return i64(*shape).astype(np.int32)


def nonzero(*shape: int) -> Array:
    return RANDOM.choice(np.array([-7, -3, -2, -1, 1, 2, 3, 7]), size=shape)


def truth(*shape: int) -> Array:
    return RANDOM.random(shape) < 0.5


def u8(*shape: int) -> Array:
    return RANDOM.integers(0, 256, size=shape).astype(np.uint8)


def s8(*shape: int) -> Array:
    return RANDOM.integers(-128, 128, size=shape).astype(np.int8)


def words(text: str) -> list[str]:
    return text.split()


@dataclass(frozen=True)
class Const:
    """An input known at compile time."""

    array: Array


def c(value: Any, dtype: Any = None) -> Const:
    return Const(np.asarray(value, dtype))


def ints(*values: int) -> Const:
    return Const(np.array(values, np.int64))


@dataclass(frozen=True)
class Case:
    """One node: its inputs (None where absent), how many outputs it has, its attributes."""

    op: str
    inputs: tuple[Array | Const | None, ...]
    outputs: int
    attributes: dict[str, Any]


CASES: dict[str, list[Case]] = defaultdict(list)


def case(op: str, *inputs: Array | Const | None, outputs: int = 1, **attributes: Any) -> None:
    CASES[op].append(Case(op, inputs, outputs, attributes))


for op in words("""Abs Ceil Cos Elu Erf Exp Floor Gelu HardSigmoid HardSwish LeakyRelu Mish Neg Relu
    Round Selu Shrink Sigmoid Sign Sin Softplus Softsign Tan Tanh ThresholdedRelu IsNaN IsInf
    Identity Celu"""):
    case(op, f(3, 5))
    case(op, 4 * f(2, 16, 3))
    case(op, f(64))
    if op != "Shrink":
        case(op, f())
for op in words("Log Sqrt Reciprocal"):
    case(op, positive(3, 5))
    case(op, positive(64))
for op in words("Acos Asin Atanh Atan Asinh"):
    case(op, unit(3, 5))
    case(op, unit(32))
case("Acosh", positive(4, 8) + 1)
case("Round", c([-2.5, -1.5, -0.5, 0.5, 1.5, 2.5], np.float32).array)
case("Gelu", f(3, 17), approximate="tanh")
case("Elu", f(3, 17), alpha=0.5)
case("Celu", f(3, 17), alpha=0.5)
case("Selu", f(3, 17), alpha=2.0, gamma=1.5)
case("LeakyRelu", f(3, 17), alpha=0.3)
case("ThresholdedRelu", f(3, 17), alpha=0.3)
case("HardSigmoid", f(3, 17), alpha=0.3, beta=0.4)
case("Shrink", f(3, 17), lambd=0.3, bias=0.1)
case("PRelu", f(2, 3, 4, 5), c(f(3, 1, 1)))
case("PRelu", f(2, 3, 4), c(f(1)))
for op in ("Abs", "Neg", "Sign"):
    case(op, i64(3, 5))
    case(op, i32(4))

for op in words("Add Sub Mul Div Pow"):
    first = positive if op == "Pow" else f
    case(op, first(3, 4), positive(3, 4))
    case(op, first(2, 3, 4, 5), positive(4, 1))
    case(op, first(5), positive(2, 1, 5))
    case(op, first(2, 3), c(np.float32(2)))
    case(op, c(positive(3, 1)), positive(1, 4))
for op in words("Add Sub Mul Min Max Mod Div BitwiseAnd BitwiseOr BitwiseXor"):
    case(op, i64(3, 4), nonzero(3, 4))
    case(op, i32(2, 3, 4), c(nonzero(4).astype(np.int32)))
case("Pow", f(3, 4), c(np.int64(3)))
case("Pow", f(3, 4), c(np.int32(2)))
for op in words("Less LessOrEqual Greater GreaterOrEqual Equal"):
    case(op, np.round(f(3, 4)), np.round(f(4)))
    case(op, i64(3, 4), i64(3, 1))
    case(op, i32(3, 4), i32(3, 4))
case("Equal", truth(3, 4), truth(4))
for op in ("And", "Or", "Xor"):
    case(op, truth(3, 4), truth(3, 4))
    case(op, truth(2, 3, 4), truth(4))
case("Not", truth(3, 4))
for op in ("Min", "Max", "Sum", "Mean"):
    case(op, f(3, 4), f(4), f(2, 1, 1))
    case(op, f(3, 4))
case("Where", truth(3, 4), f(3, 4), f(4))
case("Where", truth(3, 1), c(np.float32(-1e9)), f(2, 3, 4))
case("Where", truth(4), i64(3, 4), i64(4))
case("Where", truth(4), s8(4), s8(4))
case("Clip", f(3, 20), c(np.float32(-0.5)), c(np.float32(0.5)))
case("Clip", f(3, 20), None, c(np.float32(0.5)))
case("Clip", f(3, 20), c(np.float32(0)))
case("Clip", f(3, 20))
case("Clip", i64(3, 20), c(np.int64(-2)), c(np.int64(3)))
for target in (1, 6, 7, 9):
    for value in (3 * f(3, 7), i64(3, 4), i32(5), truth(6), u8(9), s8(9)):
        case("Cast", value, to=target)
case("Cast", np.abs(9 * f(3, 7)), to=2)
case("Cast", 9 * f(3, 7), to=3)

for op in words("""ReduceL1 ReduceL2 ReduceLogSumExp ReduceMax ReduceMean ReduceMin ReduceProd
    ReduceSum ReduceSumSquare ReduceLogSum"""):
    value = positive(3, 4, 5, 6) if op != "ReduceProd" else 1 + unit(3, 4, 5, 6) / 10
    for axes in ((1,), (-1,), (0, 1), (2, 3), (1, 3), (0, 1, 2, 3)):
        case(op, value, ints(*axes), keepdims=1)
        case(op, value, ints(*axes), keepdims=0)
    case(op, positive(2, 20), keepdims=0)
    case(op, positive(1, 40, 7, 7), ints(2, 3))
for op in ("ReduceMax", "ReduceMin", "ReduceSum", "ReduceProd"):
    case(op, nonzero(3, 4), ints(1))
    case(op, nonzero(3, 4).astype(np.int32), ints(0), keepdims=0)
for op in ("ArgMax", "ArgMin"):
    case(op, f(3, 4, 5), axis=1)
    case(op, f(3, 40), axis=-1, keepdims=0)
    case(op, np.round(f(3, 40)), axis=1)
    case(op, np.round(f(3, 40)), axis=0, select_last_index=1)

for op in ("Softmax", "LogSoftmax", "Hardmax"):
    for axis in (0, 1, 2, -1):
        case(op, 5 * f(3, 4, 37), axis=axis)
    case(op, f(2, 3, 5, 16))
    case(op, f(1, 10))
case("LayerNormalization", f(2, 3, 37), c(f(37)), c(f(37)))
case("LayerNormalization", f(2, 3, 37), c(f(37)))
case("LayerNormalization", f(2, 3, 5), c(f(3, 5)), c(f(3, 5)), axis=1, epsilon=1e-3)
case("LayerNormalization", f(2, 3, 16), c(f(16)), c(f(16)), axis=-1)
case("InstanceNormalization", f(2, 3, 4, 5), c(f(3)), c(f(3)))
case("InstanceNormalization", f(2, 3, 9), c(f(3)), c(f(3)), epsilon=1e-3)
case("GroupNormalization", f(2, 6, 4, 5), c(f(2)), c(f(2)), num_groups=2)
case("BatchNormalization", f(2, 3, 4, 5), c(f(3)), c(f(3)), c(f(3)), c(positive(3)))
case("BatchNormalization", f(2, 3), c(f(3)), c(f(3)), c(f(3)), c(positive(3)), epsilon=1e-3)
case("LRN", f(1, 6, 4, 4), size=3, alpha=0.1, beta=0.6, bias=1.5)
case("LpNormalization", f(2, 3, 4), axis=1)
case("LpNormalization", f(2, 3, 4), axis=-1, p=1)
case("CumSum", f(3, 4, 5), c(np.int64(1)))
case("CumSum", f(3, 4, 5), c(np.int64(-1)), exclusive=1)
case("CumSum", f(3, 4, 5), c(np.int64(0)), reverse=1)
case("Dropout", f(3, 4))
case("Dropout", f(3, 4), c(np.float32(0.5)), c(np.array(False)))

case("MatMul", f(3, 5), f(5, 7))
case("MatMul", f(2, 3, 5), c(f(5, 33)))
case("MatMul", f(2, 1, 3, 5), f(4, 5, 17))
case("MatMul", f(1, 5), c(f(5, 100)))
case("MatMul", f(5), c(f(5, 4)))
case("MatMul", f(3, 5), f(5))
case("MatMul", f(2, 3, 5), f(5))
case("MatMul", f(5), f(2, 5, 3))
case("MatMul", c(f(3, 5)), f(5, 7))
case("MatMul", f(2, 3, 5), f(5, 7))
case("Gemm", f(3, 5), c(f(5, 7)), c(f(7)))
case("Gemm", f(3, 5), c(f(7, 5)), c(f(7)), transB=1)
case("Gemm", f(5, 3), c(f(7, 5)), c(f(3, 1)), transA=1, transB=1, alpha=0.5, beta=2.0)
case("Gemm", f(3, 5), f(5, 7), f(3, 7))
case("Gemm", f(3, 5), f(5, 7))
case("Einsum", f(2, 3, 4), f(2, 4, 5), equation="bij,bjk->bik")
case("Einsum", f(3, 4), equation="ij->ji")
case("Einsum", f(2, 3, 4), f(5, 4), equation="bij,kj->bik")

case("Conv", f(1, 3, 9, 8), c(f(5, 3, 3, 3)), c(f(5)), pads=[1, 1, 1, 1])
case("Conv", f(2, 4, 9, 8), c(f(6, 2, 3, 2)), group=2, strides=[2, 1], dilations=[1, 2])
case("Conv", f(1, 20, 9, 9), c(f(20, 1, 3, 3)), c(f(20)), group=20, pads=[1, 1, 1, 1])
case("Conv", f(1, 6, 9, 9), c(f(12, 1, 3, 3)), group=6, pads=[0, 1, 2, 1])
case("Conv", f(1, 16, 14, 14), c(f(40, 16, 1, 1)), c(f(40)))
case("Conv", f(1, 3, 11, 11), c(f(4, 3, 5, 5)), auto_pad="SAME_UPPER", strides=[2, 2])
case("Conv", f(1, 3, 10, 11), c(f(4, 3, 4, 4)), auto_pad="SAME_LOWER", strides=[2, 1])
case("Conv", f(1, 3, 11, 11), c(f(4, 3, 5, 5)), auto_pad="VALID")
case("Conv", f(2, 4, 17), c(f(6, 4, 3)), c(f(6)), pads=[1, 2], strides=[2])
case("Conv", f(1, 4, 12), c(f(4, 1, 5)), group=4, auto_pad="SAME_UPPER")
case("ConvTranspose", f(1, 5, 7, 6), c(f(5, 4, 2, 2)), c(f(4)), strides=[2, 2])
case("ConvTranspose", f(1, 5, 7, 6), c(f(5, 4, 3, 3)), strides=[2, 2], pads=[1, 1, 1, 1],
     output_padding=[1, 1])  # fmt: skip
case("ConvTranspose", f(1, 6, 5, 5), c(f(6, 2, 3, 3)), group=2, dilations=[2, 1], pads=[1, 0, 2, 1])
case("ConvTranspose", f(1, 6, 5, 5), c(f(6, 2, 4, 4)), strides=[2, 3], auto_pad="SAME_UPPER")
case("ConvTranspose", f(1, 6, 9), c(f(6, 2, 4)), strides=[2])
for op in ("MaxPool", "AveragePool"):
    case(op, f(1, 3, 9, 8), kernel_shape=[2, 2], strides=[2, 2])
    case(op, f(1, 3, 9, 8), kernel_shape=[3, 3], pads=[1, 1, 1, 1], strides=[2, 1])
    case(op, f(2, 3, 9), kernel_shape=[3], strides=[2])
    case(op, f(1, 3, 9, 8), kernel_shape=[3, 2], auto_pad="SAME_UPPER", strides=[2, 2])
    case(op, f(1, 20, 9, 8), kernel_shape=[3, 2], auto_pad="SAME_LOWER", strides=[2, 2])
case("AveragePool", f(1, 3, 9, 8), kernel_shape=[3, 3], pads=[1, 1, 1, 1], count_include_pad=1)
case("MaxPool", f(1, 3, 9, 8), kernel_shape=[3, 3], dilations=[2, 2])
for op in ("GlobalAveragePool", "GlobalMaxPool"):
    case(op, f(2, 3, 5, 7))
    case(op, f(1, 40, 7, 7))
    case(op, f(2, 3, 5))
for scales in ((1, 1, 2, 2), (1, 1, 3, 2)):
    for mode in ("nearest", "linear"):
        for place in ("half_pixel", "pytorch_half_pixel", "asymmetric"):
            case("Resize", f(1, 3, 4, 5), None, c(scales, np.float32), mode=mode,
                 coordinate_transformation_mode=place)  # fmt: skip
case("Resize", f(1, 3, 4, 5), None, c([1, 1, 2, 2], np.float32), mode="nearest",
     coordinate_transformation_mode="asymmetric", nearest_mode="floor")  # fmt: skip
case("Resize", f(1, 3, 4, 5), None, None, ints(1, 3, 8, 10), mode="linear",
     coordinate_transformation_mode="align_corners")  # fmt: skip

case("Transpose", f(2, 3, 4), perm=[2, 0, 1])
case("Transpose", i64(3, 4))
case("Transpose", truth(3, 4))
case("Flatten", f(2, 3, 4))
case("Flatten", f(2, 3, 4), axis=0)
case("Flatten", f(2, 3, 4), axis=-1)
case("Concat", f(2, 3), f(2, 4), f(2, 1), axis=1)
case("Concat", f(2, 3), f(1, 3), axis=-2)
case("Concat", i64(2), c(i64(3)), axis=0)
case("Reshape", f(2, 3, 4), ints(4, 6))
case("Reshape", f(2, 3, 4), ints(0, -1))
case("Reshape", i64(2, 3), ints(6))
case("Expand", f(3, 1), ints(2, 1, 4))
case("Expand", i64(1), ints(4))
case("Tile", f(2, 3, 4, 5), ints(7, 6, 4, 2))
case("Tile", f(3, 4, 5), ints(6, 4, 2))
case("Tile", i64(3), ints(2))
case("Squeeze", f(2, 1, 3, 1), ints(1, -1))
case("Squeeze", f(2, 1, 3, 1))
case("Unsqueeze", f(2, 3), ints(0, -1))
case("Unsqueeze", i64(2, 3), ints(1))
case("Trilu", f(4, 5))
case("Trilu", f(2, 5, 5), c(np.int64(-1)), upper=0)
case("Trilu", i64(5, 5), c(np.int64(1)))
case("Gather", f(6, 4), np.array([[0, -1], [5, 2]]))
case("Gather", f(3, 6), c(np.array([1, -2])), axis=1)
case("Gather", f(3, 6), c(np.int64(2)), axis=-1)
case("Gather", i64(9), np.array([3, 3], np.int32))
case("Gather", truth(9), c([0, 8]))
case("GatherElements", f(3, 4), c(np.array([[0, 1], [2, -1]])), axis=1)
case("GatherND", f(3, 4, 5), c(np.array([[0, 1], [2, 3]])))
case("ScatterND", f(6, 3), c(np.array([[4], [1]])), f(2, 3))
case("Slice", f(6, 7), ints(1, 2), ints(5, -1), ints(0, 1), ints(2, 1))
case("Slice", f(6, 7), ints(-3), ints(2**31 - 1), ints(-1))
case("Slice", i64(9), ints(8), ints(-10), ints(0), ints(-2))
case("Split", f(6, 4), outputs=2, num_outputs=2)
case("Split", f(6, 4), ints(1, 3), outputs=2, axis=1)
case("Split", f(7, 4), outputs=3, num_outputs=3, axis=0)
case("Pad", f(3, 4), ints(1, 0, 2, 1))
case("Pad", f(3, 4), ints(1, 0, 2, 1), c(np.float32(1.5)))
case("Pad", f(1, 3, 5, 6), ints(0, 0, 1, 2, 0, 0, 1, 2), mode="reflect")
case("Pad", f(1, 3, 5, 6), ints(0, 0, 1, 2, 0, 0, 1, 2), mode="edge")
case("Pad", i64(3, 4), ints(1, 0, 0, 1), c(np.int64(7)))
for kind in (truth, i32, i64, s8, u8):
    case("Identity", kind(3, 4))
    case("Transpose", kind(3, 4, 5), perm=[0, 2, 1])
    case("Flatten", kind(3, 4, 5))
    case("Concat", kind(2, 3), kind(2, 17), axis=1)
    case("Reshape", kind(3, 4), ints(12))
    case("Expand", kind(3, 1), ints(3, 16))
    case("Tile", kind(3, 4), ints(2, 4))
    case("Squeeze", kind(3, 1), ints(1))
    case("Unsqueeze", kind(3, 4), ints(0))
    if kind in (truth, i64):
        case("Trilu", kind(4, 16))
    case("Slice", kind(6, 17), ints(1), ints(16), ints(1))
    case("Split", kind(6, 16), outputs=2, num_outputs=2, axis=1)
for kind in (i32, i64, truth):
    case("Gather", kind(7, 3), np.array([1, 6]))
    case("GatherElements", kind(3, 4), c(np.array([[0, 1], [2, -1]])), axis=1)
    case("GatherND", kind(3, 4), c(np.array([[0, 1], [2, 3]])))
    if kind in (i32, i64):
        case("ScatterND", kind(6), c(np.array([[4], [1]])), kind(2))
for kind in (i32, i64):
    case("Clip", kind(20), c(kind() * 0 - 2), c(kind() * 0 + 3))
    case("Pad", kind(3, 4), ints(1, 0, 0, 1), c(kind() * 0 + 7))
    for op in ("Less", "LessOrEqual", "Greater", "GreaterOrEqual", "Equal"):
        case(op, kind(5, 16), kind(5, 16))

case("DepthToSpace", f(1, 8, 3, 4), blocksize=2)
case("DepthToSpace", f(1, 8, 3, 4), blocksize=2, mode="CRD")
case("SpaceToDepth", f(1, 2, 6, 4), blocksize=2)

for zero in (np.uint8(128), np.int8(-3)):
    case("QuantizeLinear", 9 * f(3, 40), c(np.float32(0.05)), c(zero))
case("QuantizeLinear", np.arange(-9, 9, 0.5).astype(np.float32), c(np.float32(1)), c(np.int8(0)))
case("QuantizeLinear", f(3, 4, 5), c(positive(4)), c(np.zeros(4, np.int8)), axis=1)
case("QuantizeLinear", f(3, 4, 5), c(np.float32(0.1)))
case("DequantizeLinear", i32(40), c(np.float32(0.05)))


@pytest.mark.parametrize("op", sorted(CASES))
def test_operator_answers_like_onnx_runtime(
    op: str, graph: Callable[..., Any], answer: Callable[..., Any]
) -> None:
    made = graph()
    for item in CASES[op]:
        names = [_value(made, value) for value in item.inputs]
        outputs = made.node(item.op, *names, outputs=item.outputs, **item.attributes)
        made.output(*([outputs] if item.outputs == 1 else outputs))
    assert answer(made).faults(TOLERANCE) == []


def _value(made: Any, value: Array | Const | None) -> str:
    if value is None:
        return ""
    name: str = made.constant(value.array) if isinstance(value, Const) else made.input(value)
    return name


ELSEWHERE = {ir.DataType.INT8, ir.DataType.UINT8, ir.DataType.DOUBLE}
"""Types that test_tvm_operators_whole.py proves."""


def test_every_allowed_operator_and_type_is_proven() -> None:
    """The list promises types: each has a case that reaches TVM as that operator."""
    proven: dict[str, set[ir.DataType]] = defaultdict(set)
    for op, cases in CASES.items():
        for item in cases:
            first = item.inputs[0]
            array = first.array if isinstance(first, Const) else first
            assert array is not None
            proven[op].add(ir.DataType.from_numpy(array.dtype))
    missing = {op: rule.types - proven[op] - ELSEWHERE for op, rule in ALLOWED.items()}
    assert {op: types for op, types in missing.items() if types} == {}


def test_what_was_not_proven_is_refused(graph: Callable[..., Any]) -> None:
    made = graph()
    x = made.input(f(1, 3, 8, 8))
    made.output(
        made.node("MaxPool", x, kernel_shape=[3, 3], strides=[2, 2], ceil_mode=1),
        made.node("Resize", x, "", made.constant(np.array([1, 1, 0.5, 0.5], np.float32))),
        made.node("Conv", x, made.input(f(2, 3, 1, 1))),
        made.node("Einsum", made.node("Cast", x, to=10), equation="abcd->dcba"),
        made.node("IsInf", x, detect_negative=0),
        made.node("OneHot", made.input(i64(3)), made.constant(5), made.constant(f(2))),
        made.node("GatherND", x, made.input(i64(1, 4))),
    )
    reasons = {
        n.op_type: why for n, why in refusals(rewrites.prepare(made.program().model)).items()
    }
    assert set(reasons) == {
        "MaxPool", "Resize", "Conv", "Cast", "Einsum", "IsInf", "OneHot", "GatherND"
    }  # fmt: skip
    assert "ceil_mode" in reasons["MaxPool"] and "computed at run time" in reasons["Conv"]
