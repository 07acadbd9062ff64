"""Elementary functions of float32 as polynomials, on one value or on a vector of them.

LLVM has no vector exp, tanh or erf and would call the C library for every lane. NaN stays NaN,
and infinities go where the function goes.
"""

import functools
import itertools
from collections.abc import Callable, Sequence
from typing import Any

from npuc.targets.tvm.emit import cast, constant, lanes_of

_names = itertools.count()


def let(value: Any, body: Callable[[Any], Any]) -> Any:
    """Compute `value` once and use it in `body`."""
    from tvm import tirx as t

    var = t.Var(f"t{next(_names)}", value.ty)
    return t.Let(var, value, body(var))


def bound(function: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """Compute a function's argument once: an expression with a `let` inside may stand only once."""

    @functools.wraps(function)
    def wrapped(x: Any) -> Any:
        return let(x, function)

    return wrapped


def _c(value: float, like: Any) -> Any:
    return constant(value, "float32", lanes_of(like))


def is_nan(x: Any) -> Any:
    """Whether a value is NaN, from its bits: a compiler may fold x != x."""
    from tvm import tirx as t

    lanes = lanes_of(x)
    bits = t.reinterpret("uint32" if lanes == 1 else f"uint32x{lanes}", x)
    return (bits & constant(0x7FFFFFFF, "uint32", lanes)) > constant(0x7F800000, "uint32", lanes)


def _horner(x: Any, coefficients: Sequence[float]) -> Any:
    result = _c(coefficients[0], x)
    for c in coefficients[1:]:
        result = result * x + _c(c, x)
    return result


_EXP = (1.9875691500e-4, 1.3981999507e-3, 8.3334519073e-3, 4.1665795894e-2, 0.16666665459, 0.5)


@bound
def exp(x: Any) -> Any:
    """Return e^x within 2 units in the last place (Cephes expf: x = n·ln 2 + r, |r| ≤ ln 2 / 2).

    Results below the smallest normal number are 0.
    """
    from tvm import tirx as t

    def reduced(y: Any) -> Any:
        return let(t.floor(y * _c(1.44269504088896341, y) + _c(0.5, y)), lambda n: power(y, n))

    def power(y: Any, n: Any) -> Any:
        r = y - n * _c(0.693359375, y) + n * _c(2.12194440e-4, y)
        return let(r, lambda r: scale(_horner(r, _EXP) * r * r + r + _c(1.0, r), n))

    def scale(p: Any, n: Any) -> Any:
        # 2^n in two factors: n reaches 128, one beyond what a single exponent field holds.
        half = let_half(n)
        return p * half[0] * half[1]

    def let_half(n: Any) -> tuple[Any, Any]:
        whole = cast(n, "int32")
        one = constant(1, "int32", lanes_of(n))
        low = whole >> one
        return two_to(low), two_to(whole - low)

    def two_to(n: Any) -> Any:
        lanes = lanes_of(n)
        bits = (n + constant(127, "int32", lanes)) << constant(23, "int32", lanes)
        return t.reinterpret("float32" if lanes == 1 else f"float32x{lanes}", bits)

    low, high = -87.33654, 88.722839
    inside = t.min(t.max(x, _c(low, x)), _c(high, x))
    result = let(inside, reduced)
    zero, infinity = _c(0.0, x), _c(float("inf"), x)
    result = t.Select(x < _c(low, x), zero, result)
    result = t.Select(x > _c(high, x), infinity, result)
    return t.Select(is_nan(x), x, result)


@bound
def sigmoid(x: Any) -> Any:
    """Return 1 / (1 + e^-x)."""
    return _c(1.0, x) / (_c(1.0, x) + exp(_c(0.0, x) - x))


_TANH = (-5.70498872745e-3, 2.06390887954e-2, -5.37397155531e-2, 1.33314422036e-1, -3.33332819422e-1)


@bound
def tanh(x: Any) -> Any:
    """Return tanh x (Cephes tanhf: a polynomial below 0.625, else 1 - 2 / (e^2|x| + 1))."""
    from tvm import tirx as t

    def both(a: Any) -> Any:
        square = a * a
        small = _horner(square, _TANH) * square * x + x
        big = _c(1.0, x) - _c(2.0, x) / (exp(a + a) + _c(1.0, x))
        signed = let(big, lambda b: t.Select(x < _c(0.0, x), _c(0.0, x) - b, b))
        return t.Select(a < _c(0.625, x), small, signed)

    return t.Select(is_nan(x), x, let(t.max(x, _c(0.0, x) - x), both))


_ERF_P = (2.2905065861350646e-4, 3.4082910107109506e-3, 5.0955695062380861e-2,
          0.18520832239976145, 1.128379143519084)  # fmt: skip
_ERF_Q = (-1.1791602954361697e-7, 2.3547966471313185e-5, 1.0179625278914885e-3,
          1.4070470171167667e-2, 0.11098505178285362, 0.49746925110067538, 1.0)  # fmt: skip


@bound
def erf(x: Any) -> Any:
    """Return erf x as a rational x·P(x²)/Q(x²); beyond ±3.744 it is ±1 to half a unit."""
    from tvm import tirx as t

    bound = 3.7439211627767994
    inside = t.min(t.max(x, _c(-bound, x)), _c(bound, x))

    def ratio(y: Any) -> Any:
        return let(y * y, lambda z: y * _horner(z, _ERF_P) / _horner(z, _ERF_Q))

    one = _c(1.0, x)
    result = t.Select(x >= _c(bound, x), one, let(inside, ratio))
    result = t.Select(x <= _c(-bound, x), _c(0.0, x) - one, result)
    return t.Select(is_nan(x), x, result)


@bound
def gelu(x: Any) -> Any:
    """Return x·Φ(x) = x/2·(1 + erf(x/√2))."""
    return _c(0.5, x) * x * (_c(1.0, x) + erf(x * _c(0.7071067811865476, x)))


@bound
def gelu_tanh(x: Any) -> Any:
    """Return the tanh form of GELU: x/2·(1 + tanh(√(2/π)·(x + 0.044715·x³)))."""
    inner = _c(0.7978845608028654, x) * (x + _c(0.044715, x) * x * x * x)
    return _c(0.5, x) * x * (_c(1.0, x) + tanh(inner))


@bound
def silu(x: Any) -> Any:
    """Return x·sigmoid(x)."""
    return x * sigmoid(x)


def round_to(x: Any, exponent: int, mantissa: int) -> Any:
    """Round float32 to a float of `exponent` and `mantissa` bits, ties to even, in integers.

    Subnormals are kept, overflow gives ±Inf, NaN and the sign of zero stay. Only integer
    operations on the bits: a compiler may fold (x + M) - M, which is x in real numbers.

    Above the format's smallest normal number, adding half of the last kept place (less one where
    it is even) and cutting rounds the bits of a float32 correctly, carry into the exponent
    included. Below it, the kept place is a fixed power of two: there the magnitude, shifted into
    an integer of those places, is rounded the same way and converted back exactly.
    """
    from tvm import tirx as t

    lanes = lanes_of(x)

    def integer(value: int) -> Any:
        return constant(value, "uint32", lanes)

    suffix = "" if lanes == 1 else f"x{lanes}"
    bias = (1 << (exponent - 1)) - 1
    drop = 23 - mantissa
    smallest = 127 + 1 - bias  # float32 exponent field of the smallest normal number
    largest = 127 + bias  # of the largest
    sign_bit, infinity = 0x80000000, 0x7F800000

    def rounded(value: Any, count: Any) -> Any:
        one = integer(1)
        odd = (value >> count) & one
        return (value + ((one << count) >> one) - one + odd) >> count

    def body(bits: Any) -> Any:
        sign = bits & integer(sign_bit)
        return let(bits & integer(~sign_bit & 0xFFFFFFFF), lambda size: finish(sign, size))

    def finish(sign: Any, size: Any) -> Any:
        normal = rounded(size, integer(drop)) << integer(drop) if drop else size
        over = normal >= integer((largest + 1) << 23) if largest < 254 else None
        if over is not None:
            normal = t.Select(over, integer(infinity), normal)
        result = normal
        if smallest > 1 or drop:
            result = t.Select(size < integer(smallest << 23), tiny(size), normal)
        result = t.Select(size > integer(infinity), size, result)
        result = t.Select(size == integer(infinity), integer(infinity), result)
        return t.reinterpret(f"float32{suffix}", result | sign)

    def tiny(size: Any) -> Any:
        # One unit of the last place is 2^(smallest - 127 - mantissa).
        field = size >> integer(23)
        fraction = size & integer(0x7FFFFF)
        subnormal = field == integer(0)
        whole = t.Select(subnormal, fraction, fraction | integer(0x800000))
        power = t.Select(subnormal, integer(1), field)
        # whole · 2^(power - 150) in those units: shift right, 24 bits being beyond any half.
        shift = t.min(integer(smallest + drop) - power, integer(25))
        count = let(whole, lambda w: let(shift, lambda s: rounded(w, s)))
        return t.reinterpret(f"uint32{suffix}", places(count))

    def places(count: Any) -> Any:
        exponent_field = smallest - mantissa
        if exponent_field >= 1:
            unit = t.reinterpret("float32", t.const(exponent_field << 23, "uint32"))
            from npuc.targets.tvm.emit import widen

            return cast(count, "float32") * widen(unit, lanes)
        return t.reinterpret(f"float32{suffix}", count << integer(drop))

    return let(t.reinterpret(f"uint32{suffix}", x), body)
