"""Round floats to codes and pack several vectors of them into one: x86's saturating packs.

A vector's codes one by one are a conversion of two instructions and a store of a quarter of a
register each. The packs saturate, so nothing has to be clamped from below before.
"""

from typing import Any

from npuc.targets.tvm.cpu_level import Level
from npuc.targets.tvm.emit import cast, constant, fma, lanes_of, tirx

DWORDS = 4
"""int32 of a 128-bit lane: packs stay within such lanes."""

GROUPS = (4, 2)
"""How many vectors are packed at once, the most first."""

_ROUND = {8: "llvm.x86.avx.cvt.ps2dq.256", 16: "llvm.x86.avx512.mask.cvtps2dq.512"}
_HALVE = {8: "llvm.x86.avx2.packssdw", 16: "llvm.x86.avx512.packssdw.512"}
_BYTES = {
    ("uint8", 8): "llvm.x86.avx2.packuswb",
    ("uint8", 16): "llvm.x86.avx512.packuswb.512",
    ("int8", 8): "llvm.x86.avx2.packsswb",
    ("int8", 16): "llvm.x86.avx512.packsswb.512",
}


def possible(level: Level) -> bool:
    """Whether a CPU has the instructions."""
    return level.arch == "x86_64" and level.lanes in _ROUND


def codes(x: Any, numbers: Any, zero: Any, below: bool, *, fits: bool = False) -> Any:
    """Return a full vector's codes as int32, to be saturated; see `pointwise.quantize_by`.

    `below` says that the zero point is below 0. `fits` says that no quotient is beyond int32, nor
    one with the zero point, and none is NaN: then nothing is cut off.

    Only what lies above the codes is cut off. Below them the quotient may overflow, and becomes
    the least int32, as the conversion gives it for all that it cannot hold: with a zero point of 0
    or more that is below every code. A NaN becomes the highest code, as in `quantize_by`.
    """
    t = tirx()

    inverse, lack, low, high = numbers
    if not fits:
        x = t.min(x, high)
    if below and not fits:
        x = t.max(x, low)  # the least int32 would wrap around
    quotient = fma(x, inverse, x * lack)
    lanes = lanes_of(x)
    more: tuple[Any, ...] = ()
    if lanes == 16:
        # What masked lanes would keep, no lane masked, and the rounding mode that is set.
        more = (constant(0, "int32", lanes), t.const(-1, "int16"), t.const(4, "int32"))
    code = t.call_llvm_pure_intrin(f"int32x{lanes}", _ROUND[lanes], quotient, *more)
    return code if zero is None else code + zero


def packed(values: list[Any], dtype: str) -> Any:
    """Saturate 4 or 2 neighbouring vectors of int32 codes into one vector of `dtype`."""
    t = tirx()

    lanes = lanes_of(values[0])
    halves = [
        t.call_llvm_pure_intrin(f"int16x{2 * lanes}", _HALVE[lanes], a, b)
        for a, b in zip(values[::2], values[1::2], strict=True)
    ]
    name = _BYTES[dtype, lanes]
    bytes_ = t.call_llvm_pure_intrin(f"int8x{4 * lanes}", name, halves[0], halves[-1])
    words = t.reinterpret(f"int32x{lanes}", bytes_)
    parts = lanes // DWORDS
    order = [part * DWORDS + v for v in range(len(values)) for part in range(parts)]
    moved = t.Shuffle([words], [t.const(at, "int32") for at in order])
    return t.reinterpret(f"{dtype}x{len(values) * lanes}", moved)


def single(values: list[Any], dtype: str) -> Any:
    """Saturate int32 codes of one vector."""
    t = tirx()

    (value,) = values
    low, high = (0, 255) if dtype == "uint8" else (-128, 127)
    lanes = lanes_of(value)
    value = t.max(t.min(value, constant(high, "int32", lanes)), constant(low, "int32", lanes))
    return cast(value, dtype)
