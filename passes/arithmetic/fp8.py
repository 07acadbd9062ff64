"""Round float32 to the 8-bit floats of OCP, saturating, in arithmetic that `round_to` has.

e4m3 (E4M3FN): bias 7, no Inf, largest 448. e5m2: IEEE-like, bias 15, largest 57344. Ties go to
even, subnormals and the sign of zero are kept; what lies beyond the largest number, Inf included,
becomes it. Source: OCP 8-bit Floating Point Specification (OFP8) 1.0, saturating conversion.

e4m3 is computed as an IEEE-like e5m3: with 2⁻⁸ as a factor its smallest normal number, 2⁻⁶, is
that of e5m3, 2⁻¹⁴, and what it has above e5m3's exponents it has by having no Inf, which the clip
to the largest number stands for. A power of two is exact.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from npuc.passes.arithmetic.round_to import round_to
from npuc.profile import FloatFormat

Array = np.ndarray[Any, Any]


@dataclass(frozen=True, slots=True)
class Float8:
    """An 8-bit float: its largest number; what it is computed in after a factor of 2^`shift`."""

    name: str
    inner: FloatFormat
    shift: int
    largest: float


FORMATS: Mapping[str, Float8] = {
    "e4m3": Float8("e4m3", FloatFormat(5, 3), -8, 448.0),
    "e5m2": Float8("e5m2", FloatFormat(5, 2), 0, 57344.0),
}


def exponent(peak: Array, form: Float8) -> Array:
    """Return the least k for which peak / 2^k is no more than the largest number; 0 for 0.

    A power of two as the scale rounds nothing, in whatever float it is multiplied, and a float
    has the same precision wherever in its range its values lie.
    """
    fraction, power = np.frexp(np.asarray(peak, np.float64) / form.largest)
    k = np.where(fraction == 0.5, power - 1, power)
    return np.where(np.asarray(peak) > 0, k, 0).astype(np.int64)


def rounded(array: Array, k: "int | Array", form: Float8) -> Array:
    """Return 2^k times what array / 2^k is rounded to, float32; `k` is broadcast to the array."""
    with np.errstate(invalid="ignore"):  # a signalling NaN only becomes a quiet one
        small = np.ldexp(np.asarray(array, np.float32), form.shift - np.asarray(k))
    end = np.float32(np.ldexp(form.largest, form.shift))
    inside = round_to(np.clip(small, -end, end), form.inner)
    return np.asarray(np.ldexp(inside, np.asarray(k) - form.shift), np.float32)
