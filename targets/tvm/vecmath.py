"""Elementary functions of float32 as polynomials, on one value or on a vector of them.

LLVM has no vector exp, tanh or erf and would call the C library for every lane. NaN stays NaN,
and infinities go where the function goes.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from npuc.targets.tvm.emit import Kernel, cast, constant, lanes_of

Let = Callable[[Any, Callable[[Any], Any]], Any]
"""(value, body) → the body over the value's name, so that the value is computed once."""


def in_expression(value: Any, body: Callable[[Any], Any]) -> Any:
    """Name a value inside an expression: for operator definitions, which are one expression."""
    from tvm import tirx as t

    var = t.Var("t", value.ty)  # names are for reading: a counter would tell builds apart
    return t.Let(var, value, body(var))


def in_kernel(kernel: Kernel) -> Let:
    """Hold values in registers of a kernel."""
    return lambda value, body: body(kernel.hold(value))


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
_TANH = (
    -5.70498872745e-3,
    2.06390887954e-2,
    -5.37397155531e-2,
    1.33314422036e-1,
    -3.33332819422e-1,
)
_ERF_P = (2.2905065861350646e-4, 3.4082910107109506e-3, 5.0955695062380861e-2,
          0.18520832239976145, 1.128379143519084)  # fmt: skip
_ERF_Q = (-1.1791602954361697e-7, 2.3547966471313185e-5, 1.0179625278914885e-3,
          1.4070470171167667e-2, 0.11098505178285362, 0.49746925110067538, 1.0)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Functions:
    """The functions, naming what they use twice with `let`."""

    let: Let

    def exp(self, x: Any) -> Any:
        """Return e^x within 2 units in the last place (Cephes expf: x = n·ln 2 + r, |r| ≤ ½ ln 2).

        Results below the smallest normal number are 0.
        """
        return self.let(x, self._exp)

    def _exp(self, x: Any) -> Any:
        from tvm import tirx as t

        low, high = -87.33654, 88.722839
        inside = t.min(t.max(x, _c(low, x)), _c(high, x))
        result = self.let(inside, self._reduced)
        zero, infinity = _c(0.0, x), _c(float("inf"), x)
        result = t.Select(x < _c(low, x), zero, result)
        result = t.Select(x > _c(high, x), infinity, result)
        return t.Select(is_nan(x), x, result)

    def exp_below(self, x: Any) -> Any:
        """Return e^x for x ≤ 0, as `exp` does: what a softmax needs, in two thirds of the time."""
        return self.let(x, self._exp_below)

    def _exp_below(self, x: Any) -> Any:
        from tvm import tirx as t

        low = _c(-87.33654, x)
        inside = t.Select(x < low, low, x)

        def power(n: Any) -> Any:
            r = inside - n * _c(0.693359375, x) + n * _c(2.12194440e-4, x)
            return self.let(
                r, lambda r: (_horner(r, _EXP) * r * r + r + _c(1.0, r)) * _two_to(cast(n, "int32"))
            )

        result = self.let(t.floor(inside * _c(1.44269504088896341, x) + _c(0.5, x)), power)
        return t.Select(is_nan(x), x, t.Select(x < low, _c(0.0, x), result))

    def _reduced(self, y: Any) -> Any:
        from tvm import tirx as t

        def power(n: Any) -> Any:
            r = y - n * _c(0.693359375, y) + n * _c(2.12194440e-4, y)
            return self.let(r, lambda r: times(_horner(r, _EXP) * r * r + r + _c(1.0, r), n))

        def times(p: Any, n: Any) -> Any:
            # 2^n in two factors: n reaches 128, one beyond what a single exponent field holds.
            one = constant(1, "int32", lanes_of(n))
            return self.let(
                cast(n, "int32"),
                lambda whole: p * _two_to(whole >> one) * _two_to(whole - (whole >> one)),
            )

        return self.let(t.floor(y * _c(1.44269504088896341, y) + _c(0.5, y)), power)

    def sigmoid(self, x: Any) -> Any:
        """Return 1 / (1 + e^-x)."""
        return _c(1.0, x) / (_c(1.0, x) + self.exp(_c(0.0, x) - x))

    def tanh(self, x: Any) -> Any:
        """Return tanh x (Cephes tanhf: a polynomial below 0.625, else 1 - 2 / (e^2|x| + 1))."""
        return self.let(x, self._tanh)

    def _tanh(self, x: Any) -> Any:
        from tvm import tirx as t

        def both(a: Any) -> Any:
            square = a * a
            small = _horner(square, _TANH) * square * x + x
            big = _c(1.0, x) - _c(2.0, x) / (self.exp(a + a) + _c(1.0, x))
            signed = self.let(big, lambda b: t.Select(x < _c(0.0, x), _c(0.0, x) - b, b))
            return t.Select(a < _c(0.625, x), small, signed)

        return t.Select(is_nan(x), x, self.let(t.max(x, _c(0.0, x) - x), both))

    def erf(self, x: Any) -> Any:
        """Return erf x as a rational x·P(x²)/Q(x²); beyond ±3.744 it is ±1 to half a unit."""
        return self.let(x, self._erf)

    def _erf(self, x: Any) -> Any:
        from tvm import tirx as t

        bound = 3.7439211627767994
        inside = t.min(t.max(x, _c(-bound, x)), _c(bound, x))

        def ratio(y: Any) -> Any:
            return self.let(y * y, lambda z: y * _horner(z, _ERF_P) / _horner(z, _ERF_Q))

        one = _c(1.0, x)
        result = t.Select(x >= _c(bound, x), one, self.let(inside, ratio))
        result = t.Select(x <= _c(-bound, x), _c(0.0, x) - one, result)
        return t.Select(is_nan(x), x, result)

    def gelu(self, x: Any) -> Any:
        """Return x·Φ(x) = x/2·(1 + erf(x/√2))."""
        half_root = 0.7071067811865476
        return self.let(x, lambda x: _c(0.5, x) * x * (_c(1.0, x) + self.erf(x * _c(half_root, x))))

    def gelu_tanh(self, x: Any) -> Any:
        """Return the tanh form of GELU: x/2·(1 + tanh(√(2/π)·(x + 0.044715·x³)))."""

        def body(x: Any) -> Any:
            inner = _c(0.7978845608028654, x) * (x + _c(0.044715, x) * x * x * x)
            return _c(0.5, x) * x * (_c(1.0, x) + self.tanh(inner))

        return self.let(x, body)

    def silu(self, x: Any) -> Any:
        """Return x·sigmoid(x)."""
        return self.let(x, lambda x: x * self.sigmoid(x))


def _two_to(n: Any) -> Any:
    from tvm import tirx as t

    lanes = lanes_of(n)
    bits = (n + constant(127, "int32", lanes)) << constant(23, "int32", lanes)
    return t.reinterpret("float32" if lanes == 1 else f"float32x{lanes}", bits)
