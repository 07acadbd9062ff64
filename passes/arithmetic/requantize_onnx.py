"""The requantize rules as ONNX functions, exact wherever int64 and float32 arithmetic is.

Only operators that ONNX Runtime's CPU provider computes right for int64 are used: its Min, Max,
Clip and Sign are wrong for some values between 2³¹ and 2³² (1.31.1; tests/passes/test_requantize.py
holds the functions to numpy there), so bounds are kept by Less and Where. Its integer Div truncates
toward zero, and Mod with fmod=0 takes the divisor's sign.
"""

import onnx
import onnx_ir as ir

from npuc.passes.arithmetic.round_to import DOMAIN

_INT32, _INT64, _FLOAT = (int(t) for t in (ir.DataType.INT32, ir.DataType.INT64, ir.DataType.FLOAT))


def _floor(quotient: str, value: str, divisor: str) -> str:
    """Divide and round down: truncate, then subtract one where that rounded up."""
    q = quotient
    return f"""
  {q}_cut = Div ({value}, {divisor})
  {q}_back = Mul ({q}_cut, {divisor})
  {q}_is_over = Less ({value}, {q}_back)
  {q}_over = Cast <to = {_INT64}> ({q}_is_over)
  {q} = Sub ({q}_cut, {q}_over)"""


def _half_up(quotient: str, value: str, divisor: str) -> str:
    """Divide by a power of two and round halves up; half of 1 is 0."""
    q = quotient
    return f"""
  {q}_half = Div ({divisor}, two)
  {q}_raised = Add ({value}, {q}_half){_floor(q, f"{q}_raised", divisor)}"""


_WIDE = f"""
  two = Constant <value = int64 {{2}}> ()
  sum = Cast <to = {_INT64}> (acc)"""


def _between(result: str, value: str, low: str, high: str) -> str:
    return f"""
  {result}_is_low = Less ({value}, {low})
  {result}_above = Where ({result}_is_low, {low}, {value})
  {result}_is_high = Less ({high}, {result}_above)
  {result} = Where ({result}_is_high, {high}, {result}_above)"""


_DOUBLE = f"""{_WIDE}
  two_31 = Constant <value = int64 {{{2**31}}}> ()
  two_32 = Constant <value = int64 {{{2**32}}}> ()
  zero_64 = Constant <value = int64 {{0}}> ()
  nudge_up = Constant <value = int64 {{{2**30}}}> ()
  nudge_down = Constant <value = int64 {{{1 - 2**30}}}> ()
  shifted = Mul (sum, left)
  lifted = Add (shifted, two_31)
  low_bits = Mod (lifted, two_32)
  wrapped = Sub (low_bits, two_31)
  product = Mul (wrapped, multiplier)
  is_below = Less (product, zero_64)
  nudge = Where (is_below, nudge_down, nudge_up)
  nudged = Add (product, nudge)
  high_part = Div (nudged, two_31)
  size = Abs (high_part)
  half = Div (divisor, two)
  raised = Add (size, half)
  magnitude = Div (raised, divisor)
  opposite = Neg (magnitude)
  is_negative = Less (high_part, zero_64)
  scaled = Where (is_negative, opposite, magnitude)"""

_HALF_UP = f"""{_WIDE}
  product = Mul (sum, multiplier){_half_up("scaled", "product", "divisor")}"""

_TWO_STAGE = f"""{_WIDE}
  word_low = Constant <value = int64 {{{-(2**15)}}}> ()
  word_high = Constant <value = int64 {{{2**15 - 1}}}> ()
{_half_up("first", "sum", "divisor0")}
{_between("word", "first", "word_low", "word_high")}
  product = Mul (word, multiplier){_half_up("scaled", "product", "divisor1")}"""

_EVEN = f"""{_WIDE}
  one = Constant <value = int64 {{1}}> ()
  product = Mul (sum, multiplier){_half_up("up", "product", "divisor")}
  doubled = Mul (product, two)
  middle = Add (doubled, divisor)
  up_whole = Mul (up, divisor)
  up_doubled = Mul (up_whole, two)
  is_half = Equal (middle, up_doubled)
  half_way = Cast <to = {_INT64}> (is_half)
  is_divided = Less (one, divisor)
  divided = Cast <to = {_INT64}> (is_divided)
  odd = Mod (up, two)
  odd_half = Mul (odd, half_way)
  excess = Mul (odd_half, divided)
  scaled = Sub (up, excess)"""


def _floating(low: int, high: int) -> str:
    return f"""
  least = Constant <value = float {{{float(low)}}}> ()
  most = Constant <value = float {{{float(high)}}}> ()
  real = Cast <to = {_FLOAT}> (acc)
  multiplied = Mul (real, multiplier)
  not_below = Max (multiplied, least)
  bounded = Min (not_below, most)
  rounded = Round (bounded)
  scaled = Cast <to = {_INT64}> (rounded)"""


_BODIES: dict[str, tuple[tuple[str, ...], str]] = {
    "float32-even": (("multiplier",), _floating(-1024, 1024)),
    "tflite-double": (("multiplier", "left", "divisor"), _DOUBLE),
    "tflite-single": (("multiplier", "divisor"), _HALF_UP),
    "two-stage": (("multiplier", "divisor0", "divisor1"), _TWO_STAGE),
    "int16-even": (("multiplier", "divisor"), _EVEN),
    "fp19-truncate": (("multiplier",), _floating(-256, 255)),
    "q16": (("multiplier", "divisor"), _HALF_UP),
}
"""Rule → its parameters in order, and the nodes from `sum` (or `acc`) to `scaled`."""


def function(operator: str, rule: str, opset: int) -> ir.Function:
    """Build the function of a rule of `requantize`; int64 within, int32 at its edge."""
    parameters, body = _BODIES[rule]
    text = f"""
<domain: "{DOMAIN}", opset_import: ["": {opset}]>
{operator} (acc, {", ".join(parameters)}, zero, low, high) => (codes)
{{{body}
  offset = Cast <to = {_INT64}> (zero)
  first_code = Cast <to = {_INT64}> (low)
  last_code = Cast <to = {_INT64}> (high)
  moved = Add (scaled, offset)
{_between("clipped", "moved", "first_code", "last_code")}
  codes = Cast <to = {_INT32}> (clipped)
}}
"""
    return ir.serde.deserialize_function(onnx.parser.parse_function(text))


def limit_function(bits: int, overflow: str, opset: int) -> ir.Function:
    """Build ``ai.npuc::Accumulate_<overflow><bits>(products, bias)``: int32 + int32 → int32.

    The sum is exact in 64 bits and then held as `npuc.passes.arithmetic.requantize.limit` says.
    """
    half = 2 ** (bits - 1)
    if overflow == "wrap":
        held = """
  lifted = Add (total, half)
  low_bits = Mod (lifted, whole)
  held = Sub (low_bits, half)"""
    else:
        held = _between("held", "total", "least", "most")
    constants = {"half": half, "whole": 2 * half, "least": -half, "most": half - 1}
    named = "".join(
        f"\n  {name} = Constant <value = int64 {{{value}}}> ()"
        for name, value in constants.items()
        if f"{name})" in held or f"({name}," in held
    )
    text = f"""
<domain: "{DOMAIN}", opset_import: ["": {opset}]>
{limit_operator(bits, overflow)} (products, bias) => (acc)
{{{named}
  wide = Cast <to = {_INT64}> (products)
  wide_bias = Cast <to = {_INT64}> (bias)
  total = Add (wide, wide_bias){held}
  acc = Cast <to = {_INT32}> (held)
}}
"""
    return ir.serde.deserialize_function(onnx.parser.parse_function(text))


def limit_operator(bits: int, overflow: str) -> str:
    """Return the name of `limit_function`'s operator."""
    return f"Accumulate_{overflow}{bits}"
