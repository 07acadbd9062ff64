"""Fixed-point arithmetic of the TFLite reference kernels: in numpy, and as ONNX functions.

All numbers are int64 that hold int32 values. Roundings are the packaged kernels' double rounding
(`TFLITE_SINGLE_ROUNDING` undefined). Source: LiteRT ``tflite/kernels/internal/common.h`` and
``quantization_util.cc``, gemmlowp ``fixedpoint/fixedpoint.h``.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir

from npuc.errors import PassError
from npuc.passes.arithmetic.requantize import Parameters, quantized_multiplier, rule
from npuc.passes.arithmetic.round_to import DOMAIN

Array = np.ndarray[Any, Any]
DOUBLE = rule("tflite-double")
"""MultiplyByQuantizedMultiplier, with a zero point added and codes clipped."""
HIGH_MUL, DIVIDE = "HighMul", "DivideHalfAway"
"""Names of the ONNX functions of `high_mul` and `divide` in npuc's domain."""


@dataclass(frozen=True, slots=True)
class Multiplier:
    """A real factor as significand · 2^(exponent - 31), significand in [2^30, 2^31) or 0."""

    significand: int
    exponent: int

    @classmethod
    def of(cls, real: float) -> "Multiplier":
        """Return the nearest multiplier, ties away from zero; below 2^-32 it is 0.

        Raises `PassError` for a negative factor, and one above 2^31 - 1.
        """
        if not 0 <= real <= 2**31 - 1:
            raise PassError(f"the factor {real!r} has no 32-bit fixed-point multiplier")
        significand, exponent = quantized_multiplier(np.asarray(real))
        return cls(int(significand), int(exponent))

    @property
    def left(self) -> int:
        """What is multiplied by before the significand, a power of two."""
        return 1 << max(self.exponent, 0)

    @property
    def right(self) -> int:
        """What is divided by at last, a power of two."""
        return 1 << max(-self.exponent, 0)

    @property
    def parameters(self) -> Parameters:
        """What the function of `DOUBLE` takes for it, as int64."""
        stored = {"multiplier": self.significand, "left": self.left, "divisor": self.right}
        return {name: np.asarray(value, np.int64) for name, value in stored.items()}


def multiply(x: Array, by: Multiplier) -> Array:
    """Multiply as MultiplyByQuantizedMultiplier does: shift left in int32, high_mul, divide."""
    return np.asarray(DOUBLE.scale(np.asarray(x, np.int64), by.parameters))


def high_mul(a: Array | np.int64, b: Array | np.int64) -> Array:
    """Return a·b / 2^31 rounded to nearest, ties up; -2^31 · -2^31, which saturates, is excluded.

    gemmlowp's SaturatingRoundingDoublingHighMul.
    """
    return np.asarray((np.asarray(a, np.int64) * b + (1 << 30)) >> 31)


def divide(x: Array, by: Array | np.int64) -> Array:
    """Divide by a positive integer, ties away from zero: gemmlowp's RoundingDivideByPOT."""
    return np.asarray(np.sign(x) * ((np.abs(x) + by // 2) // by))


def function(name: str, opset: int) -> ir.Function:
    """Build `HIGH_MUL` or `DIVIDE` as an ONNX function, int64 in and out, of int32 values."""
    head = f'<domain: "{DOMAIN}", opset_import: ["": {opset}]>\n'
    return ir.serde.deserialize_function(onnx.parser.parse_function(head + _TEXT[name]))


# A dividend that cannot be negative makes truncating and flooring division the same.
_TEXT = {
    HIGH_MUL: f"""
{HIGH_MUL} (A, B) => (Y)
{{
  raise = Constant <value = int64 {{{(1 << 62) + (1 << 30)}}}> ()
  unit = Constant <value = int64 {{{1 << 31}}}> ()
  product = Mul (A, B)
  positive = Add (product, raise)
  quotient = Div (positive, unit)
  Y = Sub (quotient, unit)
}}
""",
    DIVIDE: f"""
{DIVIDE} (X, D) => (Y)
{{
  two = Constant <value = int64 {{2}}> ()
  half = Div (D, two)
  size = Abs (X)
  nudged = Add (size, half)
  quotient = Div (nudged, D)
  sign = Sign (X)
  Y = Mul (quotient, sign)
}}
""",
}
