"""Elementwise operators on integers, doubles and truth values, for kernels of npuc's own.

Integers wrap around. `Div` cuts towards zero and `Mod` has the divisor's sign, as in ONNX. Truth
values are int32 of 0 or 1 here: TVM keeps vectors of them in no memory that LLVM makes registers
of. Every result is put into a register before the next operator reads it, so nothing simplifies
across operators as if integers did not wrap.
"""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from npuc.targets.tvm.emit import cast, constant, lanes_of
from npuc.targets.tvm.graph import dtype_of, is_tensor, number, operator, shape_of

TRUTH = "bool"
INTEGERS = frozenset({"int8", "uint8", "int32", "int64"})
FLOATS = frozenset({"float32", "float64"})
KINDS = INTEGERS | FLOATS | {TRUTH}
WIDE = frozenset({"int32", "int64"})

Operator = Callable[[Any, list[Any]], Any]
"""(Relax call, one value per tensor argument) → the result's value."""


def supported(expr: Any) -> bool:
    """Whether `OPERATORS` compute an expression: its operator on its types."""
    name = operator(expr)
    if name not in OPERATORS or not is_tensor(expr):
        return False
    if not all(is_tensor(a) for a in expr.args):
        return False
    kinds = {dtype_of(a) for a in expr.args}
    if name == "relax.take":
        table, indices = expr.args
        known = number(table) is not None and len(shape_of(table)) == 1
        return known and dtype_of(table) in INTEGERS | FLOATS and dtype_of(indices) in WIDE
    if name == "relax.astype":
        return kinds <= KINDS and dtype_of(expr) in KINDS
    if name == "relax.where":
        return dtype_of(expr.args[0]) == TRUTH and kinds <= KINDS
    return kinds <= TYPES[name]


def computes_integers(expr: Any) -> bool:
    """Whether an expression takes or gives integers, doubles or truth values."""
    return dtype_of(expr) != "float32" or any(dtype_of(a) != "float32" for a in expr.args)


def _t() -> Any:
    from tvm import tirx

    return tirx


def _kind(value: Any) -> str:
    return str(value.ty.dtype).partition("x")[0]


def _like(value: Any, x: Any) -> Any:
    return constant(value, _kind(x), lanes_of(x))


def _truth(condition: Any, lanes: int) -> Any:
    return _t().Select(condition, constant(1, "int32", lanes), constant(0, "int32", lanes))


def _holds(x: Any) -> Any:
    return x != _like(0, x)


def _compare(test: Callable[[Any, Any], Any]) -> Operator:
    return lambda call, a: _truth(test(a[0], a[1]), lanes_of(a[0]))


def _power_of_two(expr: Any) -> bool:
    array = number(expr)
    return array is not None and bool(np.all((array > 0) & (array & (array - 1) == 0)))


def _divide(call: Any, args: list[Any]) -> Any:
    x, d = args
    kind, lanes = _kind(x), lanes_of(x)
    if kind in FLOATS:
        return x / d
    if kind not in WIDE or not _power_of_two(call.args[1]):
        return _t().truncdiv(x, d)
    # A vector unit shifts, and does not divide: add d - 1 to what is negative, then shift.
    bits = int(kind.removeprefix("int"))
    mask = d - _like(1, d)
    width = kind.removeprefix("int")
    name = f"llvm.ctpop.v{lanes}i{width}" if lanes > 1 else f"llvm.ctpop.i{width}"
    shift = _t().call_llvm_pure_intrin(kind if lanes == 1 else f"{kind}x{lanes}", name, mask)
    return (x + ((x >> _like(bits - 1, x)) & mask)) >> shift


def _modulo(call: Any, args: list[Any]) -> Any:
    x, d = args
    if _kind(x) in WIDE and _power_of_two(call.args[1]):
        return x & (d - _like(1, d))
    return _t().floormod(x, d)


def _astype(call: Any, args: list[Any]) -> Any:
    (x,) = args
    kind = dtype_of(call)
    if kind == TRUTH:
        return _truth(_holds(x), lanes_of(x))
    return x if _kind(x) == kind else cast(x, kind)


def _sign(call: Any, args: list[Any]) -> Any:
    (x,) = args
    zero, one = _like(0, x), _like(1, x)
    above = _t().Select(x > zero, one, zero)
    return _t().Select(x < zero, zero - one, above)


def _abs(call: Any, args: list[Any]) -> Any:
    (x,) = args
    return _t().Select(x < _like(0, x), _like(0, x) - x, x)


def _take(call: Any, args: list[Any]) -> Any:
    """Look values up in a table, lane by lane; `args` are the table's memory and the indices.

    What is out of bounds gives the nearest element, where ONNX Runtime raises an error.
    """
    memory, index = args
    (size,) = shape_of(call.args[0])
    last, zero = _like(size - 1, index), _like(0, index)
    inside = _t().Select(index < zero, zero, index)
    inside = cast(_t().Select(inside > last, last, inside), "int32")
    return _t().BufferLoad(memory, [inside])


def _finite(call: Any, args: list[Any]) -> Any:
    lanes = lanes_of(args[0])
    exponent = constant(0x7F800000, "uint32", lanes)
    bits = _t().reinterpret("uint32" if lanes == 1 else f"uint32x{lanes}", args[0])
    return _truth((bits & exponent) != exponent, lanes)


def _where(call: Any, args: list[Any]) -> Any:
    return _t().Select(_holds(args[0]), args[1], args[2])


def _larger(call: Any, args: list[Any]) -> Any:
    return _t().Select(args[0] < args[1], args[1], args[0])


def _smaller(call: Any, args: list[Any]) -> Any:
    return _t().Select(args[1] < args[0], args[1], args[0])


_NUMBER = INTEGERS | {"float64"}
_ORDER: Mapping[str, Operator] = {
    "relax.less": _compare(lambda a, b: a < b),
    "relax.less_equal": _compare(lambda a, b: a <= b),
    "relax.greater": _compare(lambda a, b: a > b),
    "relax.greater_equal": _compare(lambda a, b: a >= b),
    "relax.equal": _compare(lambda a, b: a == b),
}
_BITS: Mapping[str, Operator] = {
    "relax.bitwise_and": lambda call, a: a[0] & a[1],
    "relax.bitwise_or": lambda call, a: a[0] | a[1],
    "relax.bitwise_xor": lambda call, a: a[0] ^ a[1],
}
_LOGIC: Mapping[str, Operator] = {
    "relax.logical_and": lambda call, a: a[0] & a[1],
    "relax.logical_or": lambda call, a: a[0] | a[1],
    "relax.logical_xor": lambda call, a: a[0] ^ a[1],
    "relax.logical_not": lambda call, a: _like(1, a[0]) - a[0],
}
_ARITHMETIC: Mapping[str, Operator] = {
    "relax.add": lambda call, a: a[0] + a[1],
    "relax.subtract": lambda call, a: a[0] - a[1],
    "relax.multiply": lambda call, a: a[0] * a[1],
    "relax.divide": _divide,
    "relax.negative": lambda call, a: _like(0, a[0]) - a[0],
}
_WHOLE: Mapping[str, Operator] = {
    "relax.floor_mod": _modulo,
    "relax.maximum": _larger,
    "relax.minimum": _smaller,
    "relax.abs": _abs,
    "relax.sign": _sign,
    **_BITS,
}
_ROUND: Mapping[str, Operator] = {
    "relax.round": lambda call, a: _t().nearbyint(a[0]),
    "relax.floor": lambda call, a: _t().floor(a[0]),
    "relax.ceil": lambda call, a: _t().ceil(a[0]),
}
_OTHER: Mapping[str, Operator] = {
    "relax.isfinite": _finite,
    "relax.astype": _astype,
    "relax.where": _where,
    "relax.take": _take,
}
OPERATORS: Mapping[str, Operator] = {
    **_ORDER,
    **_LOGIC,
    **_ARITHMETIC,
    **_WHOLE,
    **_ROUND,
    **_OTHER,
}
TYPES: Mapping[str, frozenset[str]] = {
    **dict.fromkeys(_ORDER, INTEGERS | FLOATS),
    **dict.fromkeys(_LOGIC, frozenset({TRUTH})),
    **dict.fromkeys(_ARITHMETIC, _NUMBER),
    **dict.fromkeys(_WHOLE, INTEGERS),
    **dict.fromkeys(_ROUND, FLOATS),
    "relax.isfinite": frozenset({"float32"}),
}
"""Operator → the types of its arguments, where these are all of one type."""
