"""Turn int32 accumulators into output codes by the rules that devices are known to follow.

Every rule starts from a real multiplier M = s_x·s_w / s_y, one per tensor or per channel, and
gives code = clip(round(acc · M) + zero, low, high); they differ in how M is stored and in how the
product is rounded. `Rule.apply` is the arithmetic in numpy, `Rule.function` the same as an ONNX
function (`npuc.passes.arithmetic.requantize_onnx`); both are exact in integers of 64 bits.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from npuc.errors import PassError

if TYPE_CHECKING:
    import onnx_ir as ir

Array = np.ndarray[Any, Any]
Parameters = Mapping[str, Array]
"""What a device stores in the place of M, in the order the ONNX function takes it."""


@dataclass(frozen=True, slots=True)
class Rule:
    """One way to requantize. `store` turns M into parameters, `scale` is round(acc · M)."""

    name: str
    store: Callable[[Array], Parameters]
    scale: Callable[[Array, Parameters], Array]

    def parameters(self, real: "Array | float") -> Parameters:
        """Return what stands for `real` (float64, any shape) on the device, in that shape.

        Raises `PassError` for a multiplier that is not a number above zero, or out of its reach.
        """
        real = np.asarray(real, np.float64)
        if not (np.isfinite(real) & (real > 0)).all():
            raise PassError(f"{self.name}: a multiplier is not a positive number: {_worst(real)}")
        return self.store(real)

    def apply(self, acc: Array, parameters: Parameters, zero: int, low: int, high: int) -> Array:
        """Return int32 codes of an int32 accumulator; parameters broadcast against it."""
        scaled = self.scale(np.asarray(acc, np.int64), parameters)
        return np.asarray(np.clip(scaled + zero, low, high), np.int32)

    def function(self, opset: int) -> "ir.Function":
        """Build ``ai.npuc::Requantize_<rule>(acc, *parameters, zero, low, high)``, all tensors.

        `acc`, `zero`, `low`, `high` and the result are int32.
        """
        from npuc.passes.arithmetic.requantize_onnx import function

        return function(self.operator, self.name, opset)

    @property
    def operator(self) -> str:
        """The ONNX function's name."""
        return f"Requantize_{self.name.replace('-', '_')}"


def rule(name: str) -> Rule:
    """Return a rule by the name that a profile's ``int8.requantize`` gives; raises `PassError`."""
    if name not in RULES:
        raise PassError(
            f"there is no requantize rule {name!r}",
            hint=f"int8.requantize in the profile is one of {', '.join(RULES)}",
        )
    return RULES[name]


def limit(acc: Array, bits: int, overflow: str) -> Array:
    """Return sums as an accumulator of `bits` holds them; the input is int64, so is the result.

    "wrap" keeps the low bits: exact for a final sum, whatever the order of additions. "saturate"
    clips the final sum, which equals saturating after every addition only where no partial sum
    leaves the range: an approximation, since no public text gives the order.
    """
    half = 2 ** (bits - 1)
    acc = np.asarray(acc, np.int64)
    if overflow == "saturate":
        return np.asarray(np.clip(acc, -half, half - 1))
    if overflow == "wrap":
        return np.asarray(np.mod(acc + half, 2 * half) - half)
    raise PassError(f"int8.overflow is {overflow!r}; it is 'wrap' or 'saturate'")


def quantized_multiplier(real: Array) -> tuple[Array, Array]:
    """Return (q, e) with M ≈ q·2^(e-31), q in [2³⁰, 2³¹): the TFLite reference's, in int64.

    q = half-away(m·2³¹) of M = m·2^e; where e < -31 both are 0.
    """
    fraction, exponent = np.frexp(np.asarray(real, np.float64))
    q = np.floor(fraction * 2.0**31 + 0.5).astype(np.int64)
    e = exponent.astype(np.int64)
    carried = q == 2**31
    q, e = np.where(carried, q // 2, q), np.where(carried, e + 1, e)
    tiny = e < -31
    return np.where(tiny, 0, q), np.where(tiny, 0, e)


# --- tflite-double, tflite-single: TFLite reference kernels, numerics.md 1.2 and 1.3 --------------


def _store_double(real: Array) -> Parameters:
    q, e = quantized_multiplier(real)
    _refuse("tflite-double", real, e > 30, "must be below 2³⁰")
    return {"multiplier": q, "left": _power(np.maximum(e, 0)), "divisor": _power(np.maximum(-e, 0))}


def _scale_double(acc: Array, stored: Parameters) -> Array:
    """Round twice: to the high half of the product, ties up, then by the shift, ties away.

    The left shift of M ≥ 1 wraps at 32 bits, as the reference's does in practice.
    """
    product = limit(acc * stored["left"], 32, "wrap") * stored["multiplier"]
    high = _truncated(product + np.where(product >= 0, 2**30, 1 - 2**30), 2**31)
    size: Array = (np.abs(high) + stored["divisor"] // 2) // stored["divisor"]
    return np.sign(high) * size


def _store_single(real: Array) -> Parameters:
    q, e = quantized_multiplier(real)
    q, e = np.where(e > 30, 2**31 - 1, q), np.minimum(e, 30)
    return {"multiplier": q, "divisor": _power(31 - e)}


def _scale_half_up(acc: Array, stored: Parameters) -> Array:
    scaled: Array = (acc * stored["multiplier"] + stored["divisor"] // 2) // stored["divisor"]
    return scaled


# --- two-stage: SAPEON, numerics.md 4.8 -----------------------------------------------------------

_WORD = 2**15 - 1


def _store_two_stage(real: Array) -> Parameters:
    """Choose m and the shifts. Their widths are not public; assumed here:

    m and the word between the stages have 16 bits with the sign, their product 32. s0 is the
    smallest shift at which every sum that lands within 511 codes fits the word; larger ones
    saturate it and are clipped to the last code in either case.
    """
    s0 = np.clip(np.ceil(9 - np.log2(real)).astype(np.int64) - 15, 0, 40)
    fraction, exponent = np.frexp(real * 2.0**s0)
    m = np.floor(fraction * 2.0**15 + 0.5).astype(np.int64)
    s1 = 15 - exponent.astype(np.int64)
    carried = m == 2**15
    m, s1 = np.where(carried, 2**14, m), np.where(carried, s1 - 1, s1)
    _refuse("two-stage", real, s1 < 0, "must be below 2¹⁵")
    # From 31 on the result is 0 whatever the shift: |word·m| < 2³⁰.
    return {"multiplier": m, "divisor0": _power(s0), "divisor1": _power(np.minimum(s1, 31))}


def _scale_two_stage(acc: Array, stored: Parameters) -> Array:
    d0, d1 = stored["divisor0"], stored["divisor1"]
    word = np.clip((acc + d0 // 2) // d0, -_WORD - 1, _WORD)
    scaled: Array = (word * stored["multiplier"] + d1 // 2) // d1
    return scaled


# --- int16-even: measured on RK3588, numerics.md 4.9 ----------------------------------------------


def _store_int16_even(real: Array) -> Parameters:
    """Take 14 bits of the float32 scale's mantissa and add one: M is always rounded up.

    The output stage has one multiplier; per channel this assumes one of the same form for each.
    """
    bits = np.asarray(real, np.float32).view(np.uint32).astype(np.int64)
    multiplier = 2**14 + (bits >> 9 & 0x3FFF) + 1
    shift = 141 - (bits >> 23 & 0xFF)
    carried = multiplier == 2**15
    multiplier, shift = np.where(carried, 2**14, multiplier), np.where(carried, shift - 1, shift)
    _refuse("int16-even", real, shift < 0, "must be below 2¹⁵")
    # From 47 on the result is 0 whatever the shift: |acc·MUL| < 2⁴⁶.
    return {"multiplier": multiplier, "divisor": _power(np.minimum(shift, 47))}


def _scale_int16_even(acc: Array, stored: Parameters) -> Array:
    product, divisor = acc * stored["multiplier"], stored["divisor"]
    up = (product + divisor // 2) // divisor
    tie = (2 * product + divisor == 2 * up * divisor) & (divisor > 1)
    scaled: Array = up - np.where(tie, up % 2, 0)
    return scaled


# --- q16: Arm Ethos-N, numerics.md 4.11 -----------------------------------------------------------


def _store_q16(real: Array) -> Parameters:
    """Store M in 16 bits. How the engine rounds is not public: half-up is assumed."""
    _refuse("q16", real, real >= 2**16, "must be below 2¹⁶")
    exponent = np.frexp(real)[1].astype(np.int64) - 1
    shift = np.minimum(15 - exponent, 47)
    q = np.floor(np.ldexp(real, shift) + 0.5).astype(np.int64)
    carried = q == 2**16
    q, shift = np.where(carried, 2**15, q), np.where(carried, shift - 1, shift)
    _refuse("q16", real, shift < 0, "must be below 2¹⁶")
    return {"multiplier": q, "divisor": _power(shift)}


# --- fp19-truncate: Ascend's REQ8, numerics.md 4.7; float32-even: ONNX's own ----------------------


def _store_fp19(real: Array) -> Parameters:
    """Drop the low 13 bits of the float32 scale. The optional shift of the sum is not used."""
    bits = _float32("fp19-truncate", real).view(np.uint32)
    return {"multiplier": (bits & np.uint32(0xFFFFE000)).view(np.float32)}


def _store_float32(real: Array) -> Parameters:
    return {"multiplier": _float32("float32-even", real)}


def _scale_fp19(acc: Array, stored: Parameters) -> Array:
    scaled = acc.astype(np.float32) * stored["multiplier"]
    return np.rint(np.clip(scaled, np.float32(-256), np.float32(255))).astype(np.int64)


def _scale_float32(acc: Array, stored: Parameters) -> Array:
    """Round in float32. Codes have 8 bits: ±1024 is past every code, and keeps the cast exact."""
    scaled = acc.astype(np.float32) * stored["multiplier"]
    return np.rint(np.clip(scaled, np.float32(-1024), np.float32(1024))).astype(np.int64)


def _float32(name: str, real: Array) -> Array:
    _refuse(name, real, real > np.finfo(np.float32).max, "must be a float32")
    return np.asarray(real, np.float32)


def _power(exponent: Array) -> Array:
    return np.left_shift(np.int64(1), np.asarray(exponent, np.int64))


def _truncated(value: Array, divisor: int) -> Array:
    """Divide toward zero, as integers do in C."""
    size: Array = np.abs(value) // divisor
    return np.sign(value) * size


def _refuse(name: str, real: Array, wrong: Array, must: str) -> None:
    if wrong.any():
        raise PassError(f"{name}: a multiplier {must}; it is {_worst(real)}")


def _worst(real: Array) -> str:
    flat = np.asarray(real).reshape(-1)
    bad = flat[~(np.isfinite(flat) & (flat > 0))]
    return str(float(bad[0] if bad.size else flat.max()))


RULES: Mapping[str, Rule] = {
    item.name: item
    for item in (
        Rule("float32-even", _store_float32, _scale_float32),
        Rule("tflite-double", _store_double, _scale_double),
        Rule("tflite-single", _store_single, _scale_half_up),
        Rule("two-stage", _store_two_stage, _scale_two_stage),
        Rule("int16-even", _store_int16_even, _scale_int16_even),
        Rule("fp19-truncate", _store_fp19, _scale_fp19),
        Rule("q16", _store_q16, _scale_half_up),
    )
}
