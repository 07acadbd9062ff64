"""The proof behind the allow-list for 8-bit integers and doubles, and where wide ones wrap.

Like test_tvm_operators.py: ONNX Runtime with its optimizations off says what is right, except
where it is wrong itself. Integers have to be equal, and so have doubles: one operation each.
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

RANDOM = np.random.default_rng(8)
Array = np.ndarray[Any, Any]
TYPES = {ir.DataType.INT8, ir.DataType.UINT8, ir.DataType.DOUBLE}


@dataclass(frozen=True)
class Const:
    """An input known at compile time."""

    array: Array


Input = Array | Const | None
CASES: dict[str, list[tuple[tuple[Input, ...], int, dict[str, Any]]]] = defaultdict(list)


def case(op: str, *inputs: Input, outputs: int = 1, **attributes: Any) -> None:
    CASES[op].append((inputs, outputs, attributes))


def c(value: Any, dtype: Any = None) -> Const:
    return Const(np.asarray(value, dtype))


def ints(*values: int) -> Const:
    return Const(np.array(values, np.int64))


def f(*shape: int) -> Array:
    return RANDOM.normal(size=shape).astype(np.float32)


def f64(*shape: int) -> Array:
    return RANDOM.normal(size=shape)


def truth(*shape: int) -> Array:
    return RANDOM.random(shape) < 0.5


def u8(*shape: int) -> Array:
    return RANDOM.integers(0, 256, size=shape).astype(np.uint8)


def s8(*shape: int) -> Array:
    return RANDOM.integers(-128, 128, size=shape).astype(np.int8)


def words(text: str) -> list[str]:
    return text.split()


def edges(dtype: Any) -> Array:
    """Return the ends of an integer type, halves of powers of two, and numbers beside them."""
    info = np.iinfo(dtype)
    near = [0, 1, 2, 3, 5, 7, 64, 100, 2**15, 2**20, 2**30, info.max // 2, info.max - 1, info.max]
    around = [v + d for v in near for d in (-1, 0, 1) if info.min < v + d <= info.max]
    return np.array(sorted({info.min, *around, *(-v for v in around)}), dtype)


# Where integers end, and wrap around: as in two's complement, which is what NumPy has as well.
for name in ("int32", "int64"):
    ends = edges(name)
    for op in ("Abs", "Neg", "Sign"):
        case(op, ends)
    for op in words("Add Sub Mul Min Max Less LessOrEqual Greater GreaterOrEqual Equal"):
        case(op, ends, ends[::-1].copy())
        case(op, ends, c(ends[3:4]))
    for op in ("Div", "Mod"):
        # Not the least by -1, which traps in ONNX Runtime.
        for by in (-7, -2, 1, 2, 3, 2**15, 2**30):
            case(op, ends, c(by, name))
        case(op, np.tile(ends, (3, 1)), c([[2], [2**20], [1]], name))
        case(op, np.tile(ends, (3, 1)), c(np.resize([1, 4, 2**30, 64], ends.size), name))
    for code in (1, 2, 3, 6, 7, 9, 11):
        case("Cast", ends, to=code)
    case("Clip", ends, c(-(2**20), name), c(2**20, name))
    for op in ("BitwiseAnd", "BitwiseOr", "BitwiseXor"):
        case(op, ends, ends[::-1].copy())
        case(op, ends, c(ends[::-1].copy()))
    case("Where", truth(ends.size), ends, c(7, name))
    # Sums within the type, and in int64 within 2^53: ONNX Runtime adds some of them as doubles.
    case("ReduceSum", np.tile(np.clip(ends, -(2**29), 2**29), (3, 1)), ints(0))
    case("ReduceMax", np.tile(ends, (3, 1)), ints(1))

for kind in (u8, s8):
    for op in words("Min Max Less LessOrEqual Greater GreaterOrEqual Equal"):
        case(op, kind(5, 37), kind(5, 37))
        case(op, kind(5, 37), kind(37))
    case("Clip", kind(40), c(kind() * 0 + 3), c(kind() * 0 + 90))
    case("Clip", kind(40), None, c(kind() * 0 + 90))
    case("ReduceMax", kind(3, 40), ints(1))
    case("ReduceMin", kind(3, 40, 5), ints(1), keepdims=0)
    case("Gather", c(kind(256)), RANDOM.integers(0, 256, size=(3, 40)))
    case("Gather", c(kind(256)), RANDOM.integers(-256, 256, size=(3, 40)).astype(np.int32))
    case("MaxPool", kind(1, 3, 9, 8), kernel_shape=[3, 3], pads=[1, 1, 1, 1], strides=[2, 1])
    case("MaxPool", kind(1, 20, 9, 8), kernel_shape=[2, 2], strides=[2, 2])
    case("Pad", kind(3, 4), ints(1, 0, 0, 1), c(kind() * 0 + 7))
for code in (1, 3, 6, 7, 11):
    case("Cast", u8(37), to=code)
for code in (1, 2, 6, 7, 11):
    case("Cast", s8(37), to=code)

# Doubles are exact here: one operation each, and IEEE 754 says what it gives.
for op in words("Add Sub Mul Div Less LessOrEqual Greater GreaterOrEqual Equal"):
    case(op, f64(3, 37), f64(37))
    case(op, f64(3, 37), c(np.float64(1 / 3)))
for op in words("Abs Neg Ceil Floor Round"):
    case(op, 9 * f64(3, 37))
case("Round", c([-2.5, -1.5, -0.5, 0.5, 1.5, 2.5], np.float64).array)
case("Sqrt", np.abs(f64(3, 37)))
case("Where", truth(3, 37), f64(3, 37), f64(37))
case("Gather", c(f64(40)), RANDOM.integers(-40, 40, size=(3, 5)))
for code in (1, 3, 6, 7, 11):
    case("Cast", 9 * f64(3, 37), to=code)
case("Cast", np.abs(9 * f64(3, 37)), to=2)
case("Cast", f(3, 37), to=11)
for code in (6, 7):
    case("Cast", np.array([2.0**30, -(2.0**31), 0.5, -0.5, 1.5, -1.5]), to=code)

for x_kind in (u8, s8):
    for w_kind in (u8, s8):
        zeros = c(x_kind() * 0 + 99), c(w_kind() * 0 + 5)
        case("MatMulInteger", x_kind(3, 37), c(w_kind(37, 19)))
        case("MatMulInteger", x_kind(2, 5, 300), c(w_kind(300, 19)), *zeros)
        case("MatMulInteger", x_kind(5, 30), c(w_kind(30, 19)), zeros[0], c(w_kind(19)))
        case("MatMulInteger", x_kind(2, 3, 5, 30), w_kind(2, 3, 30, 9), *zeros)
        case("MatMulInteger", x_kind(4, 30), w_kind(30, 9))
        case("MatMulInteger", c(x_kind(4, 30)), w_kind(30, 9), zeros[0])
    case("MatMulInteger", x_kind(4, 2050), c(np.full((2050, 3), 127, np.int8)))
for x_kind in (u8, s8):
    for w_kind in (u8, s8):
        zeros = c(x_kind() * 0 + 99), c(w_kind() * 0 + 5)
        case("ConvInteger", x_kind(2, 3, 9, 8), c(w_kind(20, 3, 3, 3)), *zeros, pads=[1, 1, 1, 1])
        case("ConvInteger", x_kind(1, 16, 9, 8), c(w_kind(17, 16, 1, 1)), zeros[0], strides=[2, 2])
        case("ConvInteger", x_kind(1, 24, 9, 8), c(w_kind(24, 1, 3, 3)), zeros[0], group=24,
             pads=[1, 0, 1, 2])  # fmt: skip
        case("ConvInteger", x_kind(1, 8, 9, 8), c(w_kind(12, 2, 3, 2)), *zeros, group=4,
             dilations=[2, 1], pads=[0, 1, 2, 0])  # fmt: skip
        case("ConvInteger", x_kind(1, 3, 9, 8), c(w_kind(5, 3, 3, 2)), *zeros, strides=[2, 2],
             auto_pad="SAME_UPPER")  # fmt: skip
        case("ConvInteger", x_kind(1, 8, 19), c(w_kind(12, 8, 3)), *zeros, pads=[1, 1])
case("ConvInteger", u8(1, 8, 9, 9), c(u8(12, 8, 3, 3)), c(np.uint8(7)), c(np.uint8(128)))


for kind in (s8, u8, f64):
    case("Identity", kind(3, 4))
    case("Transpose", kind(3, 4, 5), perm=[0, 2, 1])
    case("Flatten", kind(3, 4, 5))
    case("Concat", kind(2, 3), kind(2, 17), axis=1)
    case("Reshape", kind(3, 4), ints(12))
    case("Expand", kind(3, 1), ints(3, 16))
    case("Tile", kind(3, 4), ints(2, 4))
    case("Squeeze", kind(3, 1), ints(1))
    case("Unsqueeze", kind(3, 4), ints(0))
    case("Slice", kind(6, 17), ints(1), ints(16), ints(1))
    case("Split", kind(6, 16), outputs=2, num_outputs=2, axis=1)
case("DequantizeLinear", u8(3, 40), c(np.float32(0.05)), c(np.uint8(128)))
case("DequantizeLinear", s8(3, 4, 5), c(np.abs(f(4))), c(np.zeros(4, np.int8)), axis=1)


@pytest.mark.parametrize("op", sorted(CASES))
def test_operator_is_exact(op: str, graph: Callable[..., Any], answer: Callable[..., Any]) -> None:
    made = graph()
    for inputs, count, attributes in CASES[op]:
        names = [_value(made, value) for value in inputs]
        outputs = made.node(op, *names, outputs=count, **attributes)
        made.output(*([outputs] if count == 1 else outputs))
    assert answer(made).faults(0) == []


def _value(made: Any, value: Input) -> str:
    if value is None:
        return ""
    name: str = made.constant(value.array) if isinstance(value, Const) else made.input(value)
    return name


def test_every_allowed_type_is_proven() -> None:
    """The list promises types: each has a case that reaches TVM as that operator."""
    proven: dict[str, set[ir.DataType]] = defaultdict(set)
    for op, cases in CASES.items():
        for inputs, _, _ in cases:
            first = inputs[0].array if isinstance(inputs[0], Const) else inputs[0]
            assert first is not None
            proven[op].add(ir.DataType.from_numpy(first.dtype))
    missing = {op: (rule.types & TYPES) - proven[op] for op, rule in ALLOWED.items()}
    assert {op: types for op, types in missing.items() if types} == {}


def test_products_of_what_is_not_constant_are_refused(graph: Callable[..., Any]) -> None:
    made = graph()
    rows = made.input(u8(3, 4))
    made.output(
        made.node("ConvInteger", made.input(u8(1, 3, 8, 8)), made.input(s8(2, 3, 1, 1))),
        made.node("MatMulInteger", rows, made.constant(s8(4, 2)), made.constant(u8(3))),
        made.node("MatMulInteger", rows, made.constant(s8(4, 2)), made.input(u8())),
    )
    reasons = list(refusals(rewrites.prepare(made.program().model)).values())
    assert len(reasons) == 3
    assert "filters are computed at run time" in reasons[0]
    assert "zero points of shape (3,)" in reasons[1]
    assert "computed at run time" in reasons[2]
