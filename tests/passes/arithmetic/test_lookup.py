"""Tables of 256 codes: the rounding rule, the functions, and what cannot be one."""

import math
import struct
from collections.abc import Callable

import numpy as np
import onnx_ir as ir
from hypothesis import example, given, settings
from hypothesis import strategies as st

from npuc.passes.arithmetic.lookup import CODES, FUNCTIONS, function_of, table
from npuc.passes.arithmetic.tflite_kernels import Coding


def f32(x: float) -> float:
    """Round to binary32; an overflow is infinite."""
    try:
        return float(struct.unpack("<f", struct.pack("<f", x))[0])
    except OverflowError:
        return math.copysign(math.inf, x)


def scalar(function: Callable[[float], float], code: int, source: Coding, out: Coding) -> int:
    """One entry, in Python's numbers; `function` gives a double."""
    value = f32(function(f32(source.scale * (code - source.zero))))
    scaled = f32(value * f32(1 / out.scale))
    if math.isnan(scaled):
        return -128
    if math.isinf(scaled):
        return 127 if scaled > 0 else -128
    size = math.floor(abs(scaled) + 0.5)
    return max(-128, min(127, (size if scaled > 0 else -size) + out.zero))


def node(op_type: str, *parameters: np.ndarray, opset: int = 22, **attributes: float) -> ir.Node:
    """Return an operator with constant later inputs, in a graph."""
    x = ir.val("x", ir.DataType.FLOAT, [4])
    later = []
    for index, array in enumerate(parameters):
        tensor = ir.tensor(array, name=f"p{index}")
        value = ir.Value(name=f"p{index}", const_value=tensor, type=ir.TensorType(tensor.dtype))
        later.append(value)
    made = ir.node(op_type, [x, *later], attributes=attributes)
    made.outputs[0].name = "y"
    ir.Graph([x], made.outputs, nodes=[made], initializers=later, opset_imports={"": opset})
    return made


def entries(made: ir.Node, source: Coding, out: Coding) -> list[int]:
    """Return the table of a node that has one."""
    function = function_of(made)
    assert not isinstance(function, str)
    found = table(function, source, out)
    assert found.dtype == np.int8 and found.shape == (256,)
    return list(map(int, found))


scales = st.floats(2.0**-10, 2.0, width=32)
codings = st.builds(Coding, scales, st.integers(-128, 127))
EXACT: dict[str, Callable[[float], float]] = {
    "Abs": abs,
    "Neg": lambda x: -x,
    "Tanh": math.tanh,
    "Exp": math.exp,
    "Erf": math.erf,
    "Elu": lambda x: x if x >= 0 else math.exp(x) - 1,
    "Gelu": lambda x: 0.5 * x * (1 + math.erf(x / math.sqrt(2))),
    "Sqrt": lambda x: math.sqrt(x) if x >= 0 else math.nan,
    "Log": lambda x: math.log(x) if x > 0 else (-math.inf if x == 0 else math.nan),
    "Reciprocal": lambda x: 1 / x if x else math.inf,
    "HardSigmoid": lambda x: max(0.0, min(1.0, f32(0.2) * x + 0.5)),
    "Softplus": lambda x: math.log(math.exp(x) + 1) if x < 500 else x,
    "Mish": lambda x: x * math.tanh(math.log1p(math.exp(x)) if x < 500 else x),
}


@settings(max_examples=30, deadline=None)
@given(codings, codings)
@example(Coding(0.5, 0), Coding(1.0, 0))  # every odd code is a tie for Abs and Neg
@example(Coding(2.0**-10, -128), Coding(1 / 256, -128))
def test_tables_equal_a_scalar_model(source: Coding, out: Coding) -> None:
    """All 256 codes; a double's last digit may fall on either side of a tie, so ±1 is one in 256.

    Functions whose double result is exact are held to equality.
    """
    for name, function in EXACT.items():
        got = entries(node(name), source, out)
        want = [scalar(function, int(code), source, out) for code in CODES]
        difference = np.abs(np.subtract(got, want))
        if name in ("Abs", "Neg", "Sqrt", "Reciprocal"):
            assert not difference.any(), name
        assert difference.max() <= 1 and difference.sum() <= 1, name


@settings(max_examples=30, deadline=None)
@given(codings, codings)
@example(Coding(f32(0.1), 0), Coding(1 / 256, -128))
def test_sigmoid_rounds_where_tflite_does(source: Coding, out: Coding) -> None:
    """The exponential, the sum and the quotient are binary32 numbers."""

    def sigmoid(x: float) -> float:
        try:
            power = f32(math.exp(-x))
        except OverflowError:
            power = math.inf
        return 1 / f32(1 + power)

    want = [scalar(sigmoid, int(code), source, out) for code in CODES]
    assert np.abs(np.subtract(entries(node("Sigmoid"), source, out), want)).sum() <= 1


def test_every_listed_function_has_a_table() -> None:
    """No operator of the list lacks a reference, warns, or is constant on a wide range."""
    for name in sorted(FUNCTIONS):
        later = [np.array([1.5], np.float32)] if name in ("PRelu", "Pow") else []
        made = node(name, *later, opset=24 if name == "Swish" else 22)
        found = entries(made, Coding(0.05, 3), Coding(0.02, -5))
        assert len(set(found)) >= 3, name


def test_attributes_and_parameters_count() -> None:
    """Elu's alpha, a power, and a parameter that is coded itself."""
    source, out = Coding(0.25, 0), Coding(0.5, 0)
    elu = entries(node("Elu", alpha=3.0), source, out)
    assert elu == [
        scalar(lambda x: x if x > 0 else 3 * math.expm1(x), int(c), source, out) for c in CODES
    ]
    power = entries(node("Pow", np.array(2.0, np.float32)), source, out)
    assert power == [scalar(lambda x: x * x, int(c), source, out) for c in CODES]

    coded = node("Pow", np.array(9, np.int8), np.array(0.25, np.float32), np.array(1, np.int8))
    codes, scale, zero = coded.inputs[1:]
    assert codes is not None and scale is not None and zero is not None
    dequantize = ir.node("DequantizeLinear", [codes, scale, zero])
    dequantize.outputs[0].name = "two"
    assert coded.graph is not None
    coded.graph.insert_before(coded, dequantize)
    coded.resize_inputs(2)
    coded.replace_input_with(1, dequantize.outputs[0])
    assert entries(coded, source, out) == power


def test_what_is_no_table_is_said() -> None:
    """A slope per channel is not a function of one code; nor is a parameter that is computed."""
    reason = function_of(node("PRelu", np.array([0.1, 0.2], np.float32)))
    assert isinstance(reason, str) and "constant of one number" in reason
    computed = node("Pow", np.array(2.0, np.float32))
    computed.replace_input_with(1, computed.inputs[0])
    assert isinstance(function_of(computed), str)
