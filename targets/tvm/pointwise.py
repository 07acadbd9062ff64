"""Elementwise operators as arithmetic on values or vectors: one table for every use.

`OPERATORS[name](call, args, functions)` takes a Relax call and one TensorIR value per tensor
argument, all with as many lanes, and returns the result's value. Kernels end with them, and
elementwise operators that stand alone are legalised through them.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np

from npuc.targets.tvm import halves, markers
from npuc.targets.tvm.emit import cast, constant, fma, lanes_of
from npuc.targets.tvm.graph import number
from npuc.targets.tvm.quotient import factors
from npuc.targets.tvm.rounding import round_to
from npuc.targets.tvm.vecmath import Functions, in_expression, is_nan

Array = np.ndarray[Any, Any]

Operator = Callable[[Any, list[Any], Functions], Any]


def _t() -> Any:
    from tvm import tirx

    return tirx


def _zero(x: Any) -> Any:
    return constant(0.0, "float32", lanes_of(x))


def _one(x: Any) -> Any:
    return constant(1.0, "float32", lanes_of(x))


def _relu(call: Any, args: list[Any], functions: Functions) -> Any:
    # Not a maximum: TVM's drops NaN.
    return _t().Select(args[0] < _zero(args[0]), _zero(args[0]), args[0])


def _leaky(call: Any, args: list[Any], functions: Functions) -> Any:
    x = args[0]
    slope = constant(float(call.attrs.alpha), "float32", lanes_of(x))
    return _t().Select(x > _zero(x), x, x * slope)


def _outer(a: Any, b: Any, beaten: Any) -> Any:
    """Return b where it beats a, else a; NaN beats everything, as in ONNX Runtime.

    Where a is NaN no comparison holds, so a stays; TVM's own maximum would drop it.
    """
    return _t().Select(_t().Or(beaten, is_nan(b)), b, a)


def _abs(call: Any, args: list[Any], functions: Functions) -> Any:
    x = args[0]
    return _t().max(x, _zero(x) - x)


def clip(x: Any, low: float, high: float) -> Any:
    """Return x within [low, high]; an infinite bound is none."""
    if low > -np.inf:
        bottom = constant(low, "float32", lanes_of(x))
        x = _t().Select(x < bottom, bottom, x)
    top = constant(high, "float32", lanes_of(x))
    return _t().Select(x > top, top, x) if high < np.inf else x


def bounds(call: Any) -> tuple[float, float]:
    """Return the bounds of a `relax.clip`."""
    return float(call.args[1].value), float(call.args[2].value)


def quantize(x: Any, scale: Any, zero: Any, dtype: str) -> Any:
    """Return saturate(round(x / scale) + zero), ties to even, as ONNX QuantizeLinear."""
    info = np.iinfo(dtype)
    lanes = lanes_of(x)
    rounded = _t().nearbyint(x / scale) + cast(zero, "float32")
    low, high = (constant(float(v), "float32", lanes) for v in (info.min, info.max))
    return cast(_t().min(_t().max(rounded, low), high), dtype)


SMALLEST = 1e-15
"""Scales from here to its reciprocal leave every step of a division within float32's range."""

MAGIC = 12582912.0
"""1.5 · 2²³: added to a float of less than 2²² it leaves the rounded integer in the low bits."""


def known_step(call: Any) -> tuple[Array, int] | None:
    """Return what `quantize_by` needs of a `relax.quantize`; None where that cannot be used.

    The numbers are float32: the scale's reciprocal, what it lacks (`quotient.factors`), and the
    lowest and highest value that codes stand for. The other is the zero point.
    """
    scale, zero = (number(a) for a in call.args[1:3])
    info = np.iinfo(str(call.attrs.out_dtype))
    if scale is None or zero is None or scale.size != 1 or zero.size != 1:
        return None
    step, offset = scale.reshape(-1)[0], int(zero.reshape(-1)[0])
    if scale.dtype != np.float32 or not SMALLEST < step < 1 / SMALLEST:
        return None
    found = factors(step, info.min - offset, info.max - offset)
    if found is None:
        return None
    low, high = (step * np.float32(v - offset) for v in (info.min, info.max))
    return np.array([*found, low, high], np.float32), offset


def quantize_known(call: Any, x: Any) -> Any:
    """Quantize as a `relax.quantize` of a known step does; None where it has none."""
    found = known_step(call)
    if found is None:
        return None
    numbers, zero = found
    lanes = lanes_of(x)
    wide = [_float(n, lanes) for n in numbers]
    offset = constant(zero, "int32", lanes) if zero else None
    return quantize_by(x, wide, offset, str(call.attrs.out_dtype))


def quantize_by(x: Any, numbers: Sequence[Any], zero: Any, dtype: str) -> Any:
    """Quantize without a division, by the four numbers of `known_step` in every lane.

    The zero point is an int32 in every lane, or None for 0.

    The quotient is the sum of x times the scale's reciprocal and x times what that lacks.
    """
    t = _t()
    inverse, lack, low, high = numbers
    lanes = lanes_of(x)
    # What lies beyond the codes is cut off first: x stays finite, and the sum in range.
    x = t.max(t.min(x, high), low)
    quotient = fma(x, inverse, x * lack)
    kind = "int32" if lanes == 1 else f"int32x{lanes}"
    # Ties go to the even integer before the zero point is added.
    code = t.reinterpret(kind, quotient + _float(MAGIC, lanes))
    return cast(code if zero is None else code + zero, dtype)


def _float(value: Any, lanes: int) -> Any:
    return constant(float(value), "float32", lanes)


def dequantize(x: Any, scale: Any, zero: Any) -> Any:
    """Return (x - zero) · scale, as ONNX DequantizeLinear."""
    return cast(cast(x, "int32") - cast(zero, "int32"), "float32") * scale


OPERATORS: Mapping[str, Operator] = {
    "relax.add": lambda call, a, f: a[0] + a[1],
    "relax.subtract": lambda call, a, f: a[0] - a[1],
    "relax.multiply": lambda call, a, f: a[0] * a[1],
    "relax.divide": lambda call, a, f: a[0] / a[1],
    "relax.maximum": lambda call, a, f: _outer(a[0], a[1], a[0] < a[1]),
    "relax.minimum": lambda call, a, f: _outer(a[0], a[1], a[0] > a[1]),
    "relax.negative": lambda call, a, f: _zero(a[0]) - a[0],
    "relax.abs": _abs,
    "relax.sqrt": lambda call, a, f: _t().sqrt(a[0]),
    "relax.exp": lambda call, a, f: f.exp(a[0]),
    "relax.tanh": lambda call, a, f: f.tanh(a[0]),
    "relax.erf": lambda call, a, f: f.erf(a[0]),
    "relax.sigmoid": lambda call, a, f: f.sigmoid(a[0]),
    "relax.nn.relu": _relu,
    "relax.nn.leakyrelu": _leaky,
    "relax.nn.gelu": lambda call, a, f: f.gelu(a[0]),
    "relax.nn.gelu_tanh": lambda call, a, f: f.gelu_tanh(a[0]),
    "relax.nn.silu": lambda call, a, f: f.silu(a[0]),
}
"""Operators of float32 whose result has the shape of their (broadcast) arguments."""


HALVES = {halves.NARROW: halves.narrowed, halves.WIDEN: halves.widened}
"""npuc's operators to bfloat16 and back."""

SLOW = ("exp", "tanh", "erf", "sigmoid", "nn.gelu", "nn.gelu_tanh", "nn.silu")
"""Operators that TVM would compute with a call of the C library per value."""

LOSSY = ("nn.relu", "maximum", "minimum")
"""Operators in which TVM's own definitions may drop NaN."""


def legalizations() -> dict[str, Any]:
    """Return what `LegalizeOps` should use in place of TVM's own definitions."""
    result = {f"relax.{name}": _legalize(f"relax.{name}") for name in SLOW + LOSSY}
    return {**result, "relax.clip": _legalize("relax.clip")}


def _legalize(name: str) -> Any:
    def legalize(bb: Any, call: Any) -> Any:
        from tvm import ir, te

        if str(call.ty.dtype.dtype) != "float32":
            return ir.Op.get(name).get_attr("FLegalize")(bb, call)

        functions = Functions(in_expression)

        def compute(*tensors: Any) -> Any:
            def value(*i: Any) -> Any:
                values = [_broadcast(x, i) for x in tensors]
                if name == "relax.clip":
                    return clip(values[0], *bounds(call))
                return OPERATORS[name](call, values, functions)

            return te.compute(call.ty.shape, value)

        tensors = call.args[:1] if name == "relax.clip" else call.args
        return bb.call_te(compute, *tensors, primfunc_name_hint=name.rpartition(".")[2])

    return legalize


def _broadcast(tensor: Any, index: tuple[Any, ...]) -> Any:
    """Read a tensor at a position of the shape it is broadcast to."""
    own = index[len(index) - len(tensor.shape) :]
    return tensor(*(0 if int(d) == 1 else i for d, i in zip(tensor.shape, own, strict=True)))


def marker(bb: Any, call: Any) -> Any:
    """Return the kernel call that an operator of npuc stands for, or None for anything else."""
    from tvm import te

    name, fmt = markers.name_of(call), markers.rounding(call)
    if fmt is not None:
        value: Callable[[Any], Any] = partial(_rounded, fmt)
        hint = f"round_e{fmt[0]}m{fmt[1]}"
    elif name in HALVES:
        value, hint = HALVES[name], name.rpartition(".")[2]
    else:
        return None

    def compute(x: Any) -> Any:
        return te.compute(x.shape, lambda *i: value(x(*i)))

    return bb.call_te(compute, markers.data_of(call), primfunc_name_hint=hint)


def _rounded(form: tuple[int, int, bool], value: Any) -> Any:
    return round_to(value, *form, in_expression)
