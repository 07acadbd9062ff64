"""Round float32 to a shorter float: in numpy for constants, as an ONNX function for graphs.

The format is IEEE-like: bias 2^(e-1) - 1, subnormals, round to nearest with ties to even, overflow
to Inf decided on the rounded value, NaN and Inf pass, -0 stays. Those are npuc's assumptions
where a device does not say otherwise; for e5m10 and e8m7 they are binary16 and bfloat16 exactly.
With `flush`, what is below the format's smallest normal number before rounding becomes a zero of
its sign; for e8m7 that is every subnormal float32, as FuriosaAI's host model of RNGD converts.
"""

from typing import Any

import numpy as np
import onnx
import onnx_ir as ir

from npuc.errors import PassError
from npuc.profile import FloatFormat

DOMAIN = "ai.npuc"
"""The operator domain of npuc's own functions."""

Array = np.ndarray[Any, Any]


def function_name(fmt: FloatFormat, *, flush: bool = False) -> str:
    """Return the operator's name, for example ``RoundTo_e8m7`` or ``RoundTo_e8m7_flushed``."""
    return f"RoundTo_{fmt.name}{'_flushed' if flush else ''}"


def check(fmt: FloatFormat) -> None:
    """Refuse a format that float32 cannot hold; raises `PassError`."""
    if not (2 <= fmt.exponent <= 8 and 1 <= fmt.mantissa <= 22):
        raise PassError(
            f"float32 cannot stand for the format {fmt.name}",
            hint="use 2 to 8 exponent bits and 1 to 22 mantissa bits, for example e8m7",
        )


def round_to(array: Array, fmt: FloatFormat, *, flush: bool = False) -> Array:
    """Round a float32 array of any shape to `fmt`; the result is float32."""
    check(fmt)
    bias = 2 ** (fmt.exponent - 1) - 1
    with np.errstate(invalid="ignore"):  # a signalling NaN only becomes a quiet one
        x = np.asarray(array, np.float32).astype(np.float64)
    exponent = np.frexp(x)[1] - 1
    step = np.maximum(exponent, 1 - bias) - fmt.mantissa
    rounded = np.ldexp(np.rint(np.ldexp(x, -step)), step)
    if flush:
        rounded = np.where(np.abs(x) < 2.0 ** (1 - bias), np.copysign(0.0, x), rounded)
    limit = (2 - 2.0**-fmt.mantissa) * 2.0**bias
    rounded = np.where(np.abs(rounded) > limit, np.copysign(np.inf, x), rounded)
    return np.where(np.isfinite(x), rounded, x).astype(np.float32)


def function(fmt: FloatFormat, opset: int, *, flush: bool = False) -> ir.Function:
    """Build the rounding as an ONNX function of float32, exact under any executor of doubles.

    Normal numbers use Veltkamp's splitting with C = 2^(52-m) + 1: g = C·x, g + (x - g). For a
    24-bit x it is the nearest m+1-bit number with ties to even (tests/passes/test_round_to.py
    tries every significand). Numbers below the smallest normal are put on their absolute grid by
    adding and subtracting 1.5·2^52 grid steps. Nothing finite over- or underflows a double.
    The sign is put back last, read off x + 1/x: ONNX Runtime's Where turns -0 into 0.
    """
    check(fmt)
    m, bias = fmt.mantissa, 2 ** (fmt.exponent - 1) - 1
    small = "zero" if flush else "on_grid"
    text = f"""
<domain: "{DOMAIN}", opset_import: ["": {opset}]>
{function_name(fmt, flush=flush)} (X) => (Y)
{{
  splitter = Constant <value = double {{{2.0 ** (52 - m) + 1!r}}}> ()
  magic = Constant <value = double {{{1.5 * 2.0 ** (52 + 1 - bias - m)!r}}}> ()
  least_normal = Constant <value = double {{{2.0 ** (1 - bias)!r}}}> ()
  greatest = Constant <value = double {{{(2 - 2.0**-m) * 2.0**bias!r}}}> ()
  past_float32 = Constant <value = double {{{2.0**128!r}}}> ()
  huge = Constant <value = double {{1e308}}> ()
  zero = Constant <value = double {{0.0}}> ()
  one = Constant <value = double {{1.0}}> ()
  minus_one = Constant <value = double {{-1.0}}> ()

  x = Cast <to = {int(ir.DataType.DOUBLE)}> (X)
  size = Abs (x)

  gamma = Mul (splitter, x)
  delta = Sub (x, gamma)
  normal = Add (gamma, delta)

  shifted = Add (x, magic)
  on_grid = Sub (shifted, magic)

  is_subnormal = Less (size, least_normal)
  rounded = Where (is_subnormal, {small}, normal)

  rounded_size = Abs (rounded)
  overflows = Less (greatest, rounded_size)
  infinity = Mul (rounded, huge)
  limited = Where (overflows, infinity, rounded)

  is_finite = Less (size, past_float32)
  value = Where (is_finite, limited, x)

  inverse = Reciprocal (x)
  signed = Add (x, inverse)
  is_negative = Less (signed, zero)
  sign = Where (is_negative, minus_one, one)
  magnitude = Abs (value)
  y = Mul (magnitude, sign)
  Y = Cast <to = {int(ir.DataType.FLOAT)}> (y)
}}
"""
    return ir.serde.deserialize_function(onnx.parser.parse_function(text))
