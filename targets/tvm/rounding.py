"""Rounding of float32 to shorter floats, bit by bit: TensorIR for `arithmetic.round_to`."""

from dataclasses import dataclass
from typing import Any

from npuc.targets.tvm.emit import cast, constant, lanes_of, widen
from npuc.targets.tvm.vecmath import Let

SIGN, INFINITY, FRACTION, HIDDEN = 0x80000000, 0x7F800000, 0x7FFFFF, 0x800000


def round_to(x: Any, exponent: int, mantissa: int, flush: bool, let: Let) -> Any:
    """Round float32 to a float of `exponent` and `mantissa` bits, ties to even.

    Subnormals are kept, or with `flush` become zeros of their sign before rounding; overflow gives
    ±Inf, NaN and the sign of zero stay. Only integer operations on the bits: a compiler may fold
    (x + M) - M, which is x in real numbers.

    Above the format's smallest normal number, adding half of the last kept place (less one where
    it is even) and cutting rounds the bits of a float32 correctly, carry into the exponent
    included. Below it the last place is a fixed power of two: there the magnitude, shifted into
    an integer of those places, is rounded the same way and converted back exactly. A format with
    float32's exponents has float32's subnormals, whose bits are rounded as all others are.
    """
    from tvm import tirx as t

    return _Format(exponent, mantissa, flush, lanes_of(x), let).rounded(
        t.reinterpret(_type("uint32", lanes_of(x)), x)
    )


def _type(name: str, lanes: int) -> str:
    return name if lanes == 1 else f"{name}x{lanes}"


@dataclass(frozen=True, slots=True)
class _Format:
    exponent: int
    mantissa: int
    flush: bool
    lanes: int
    let: Let

    @property
    def drop(self) -> int:
        """Mantissa bits that go."""
        return 23 - self.mantissa

    @property
    def smallest(self) -> int:
        """Exponent field, as float32 has it, of the smallest normal number."""
        return 128 - (1 << (self.exponent - 1)) + 1

    @property
    def largest(self) -> int:
        """Exponent field of the largest number."""
        return 127 + (1 << (self.exponent - 1)) - 1

    def integer(self, value: int) -> Any:
        return constant(value, "uint32", self.lanes)

    def rounded(self, bits: Any) -> Any:
        def both(bits: Any) -> Any:
            size = bits & self.integer(~SIGN & 0xFFFFFFFF)
            return self.let(size, lambda size: self._joined(bits & self.integer(SIGN), size))

        return self.let(bits, both)

    def _joined(self, sign: Any, size: Any) -> Any:
        from tvm import tirx as t

        drop = self.integer(self.drop)
        result = self.let(self._shifted(size, drop) << drop, self._limited)
        if self.flush or self.smallest > 1:
            small = size < self.integer(self.smallest << 23)
            tiny = self.integer(0) if self.flush else self._tiny(size)
            result = t.Select(small, tiny, result)
        # NaN, and infinity, which the addition of a half would leave as it is anyway.
        result = t.Select(size >= self.integer(INFINITY), size, result)
        return t.reinterpret(_type("float32", self.lanes), result | sign)

    def _limited(self, size: Any) -> Any:
        from tvm import tirx as t

        if self.largest >= 254:
            return size
        over = size >= self.integer((self.largest + 1) << 23)
        return t.Select(over, self.integer(INFINITY), size)

    def _shifted(self, value: Any, count: Any) -> Any:
        """Divide an integer by 2^count, ties to even."""
        one = self.integer(1)
        odd = (value >> count) & one
        return (value + ((one << count) >> one) - one + odd) >> count

    def _tiny(self, size: Any) -> Any:
        """Round what is below the smallest normal number, in units of its last place."""
        from tvm import tirx as t

        field, fraction = size >> self.integer(23), size & self.integer(FRACTION)
        subnormal = field == self.integer(0)
        whole = t.Select(subnormal, fraction, fraction | self.integer(HIDDEN))
        power = t.Select(subnormal, self.integer(1), field)
        # At 25 places, beyond any half, what is left of 24 bits is 0.
        shift = t.min(self.integer(self.smallest + self.drop) - power, self.integer(25))
        return self.let(
            whole,
            lambda w: self.let(shift, lambda s: self._from_units(self._shifted(w, s))),
        )

    def _from_units(self, count: Any) -> Any:
        from tvm import tirx as t

        unit = self.smallest - self.mantissa
        if unit < 1:
            # The format's subnormals are float32's: a unit is the last kept place.
            return count << self.integer(self.drop)
        value = t.reinterpret("float32", t.const(unit << 23, "uint32"))
        product = cast(count, "float32") * widen(value, self.lanes)
        return t.reinterpret(_type("uint32", self.lanes), product)
