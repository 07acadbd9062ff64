"""The multiply-add at the centre of every product: which instruction, and how it wants its data.

A lane adds `adds` products to its sum at a time. Weights are packed so that a lane's `adds` values
are neighbours; as many inputs are broadcast to every lane.

Integer sums are exact: the instructions here neither saturate nor round. x86's `vpmaddubsw`, which
saturates pairs of products at 16 bits, is not among them.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np

from npuc.targets.tvm.cpu_level import Level
from npuc.targets.tvm.emit import Kernel, cast, constant, dtype_of, fma, ramp, tirx, widen
from npuc.targets.tvm.halves import packed, widened

Array = np.ndarray[Any, Any]


_PAIRS = {8: "llvm.x86.avx2.pmadd.wd", 16: "llvm.x86.avx512.pmaddw.d.512"}
"""float32 lanes → `vpmaddwd`: int32 sums of two int16 products each, exact but for -2¹⁵ four times,
which 8-bit codes are not."""


@dataclass(frozen=True, slots=True)
class Dot:
    """One way to multiply and add.

    `instruction` is an LLVM intrinsic, or "" for plain arithmetic. `sums` is the accumulators'
    type. `inputs` is the type that a broadcast input is read as. `shift` is added to every input
    value as it is read: start values take `shift`·Σ w off, as they do a zero point.
    """

    adds: int
    sums: str
    inputs: str
    instruction: str = ""
    shift: int = 0

    @property
    def stored(self) -> tuple[str, str]:
        """Element types that weights and inputs are read from, codes being unsigned inputs."""
        if self.inputs == "bfloat16":
            return "uint16", "uint16"
        if self.sums == "float32":
            return "float32", self.inputs
        return "int8", "uint8"

    def pack(self, weights: Array, lanes: int) -> Array:
        """Order weights [G, K, N] as a kernel reads them: [G, N / lanes, K / adds, lanes, adds].

        N is padded with zeros to whole vectors; K must be a multiple of `adds`.
        """
        weights = packed(weights) if self.inputs == "bfloat16" else weights
        groups, depth, columns = weights.shape
        padded = np.zeros((groups, depth, -(-columns // lanes) * lanes), weights.dtype)
        padded[:, :, :columns] = weights
        cut = padded.reshape(groups, depth // self.adds, self.adds, -1, lanes)
        return np.ascontiguousarray(cut.transpose(0, 3, 1, 4, 2))

    def begin(self, lanes: int) -> Any:
        """Return what an accumulator holds before anything is added."""
        return constant(0, self.sums, lanes)

    def weights(self, k: Kernel, memory: Any, index: Any) -> Any:
        """Read a vector of packed weights."""
        loaded = k.load(memory, index, k.level.lanes * self.adds)
        if self.inputs == "bfloat16":
            k.link(_BFLOAT16)
            return tirx().reinterpret(f"int32x{k.level.lanes}", loaded)
        wide = {1: self.sums, 2: "int16"}.get(self.adds, "int8")
        return loaded if dtype_of(memory) == np.dtype(wide) else cast(loaded, wide)

    def value(self, k: Kernel, memory: Any, index: Any, zero: int = 0) -> Any:
        """Read `adds` input values less `zero`, the same for every lane.

        Only an `adds` of 1 can take a zero point off; the others leave it to start values.
        """
        t = tirx()

        lanes = k.level.lanes
        if self.adds == 1:
            one = k.load(memory, index)
            if self.inputs == "uint16":
                return widen(widened(one), lanes)
            one = one if self.sums == "float32" else cast(one, self.sums)
            return widen(one - constant(zero, self.sums) if zero else one, lanes)
        some = t.BufferLoad(memory, [ramp(index, self.adds)])
        if self.adds == 2 and self.sums == "int32":
            some = cast(some, self.inputs)
        word = t.reinterpret("int32", some)
        if self.inputs == "bfloat16":
            return widen(word, lanes)
        if self.shift:
            # Flipping the top bit of every byte adds 128 to signed codes, or takes it off others.
            word = word ^ t.const(-0x7F7F7F80, "int32")
        return t.reinterpret(f"{self.inputs}x{lanes * self.adds}", widen(word, lanes))

    def multiply_add(self, value: Any, weight: Any, total: Any) -> Any:
        """Return `total` with the products of a broadcast `value` and a vector of weights added."""
        t = tirx()

        if self.sums == "float32" and not self.instruction:
            return fma(value, weight, total)
        if self.sums == "float32":
            kind = str(total.ty.dtype)
            return t.call_extern(kind, self.instruction, total, value, weight)
        if self.adds == 1:
            return total + value * weight
        kind = total.ty.dtype
        if not self._in_pairs:
            return t.call_llvm_pure_intrin(kind, self.instruction, total, value, weight)
        for a, b in zip(_int16(value), _int16(weight), strict=True):
            total = total + t.call_llvm_pure_intrin(kind, self.instruction, a, b)
        return total

    @property
    def _in_pairs(self) -> bool:
        return self.instruction in _PAIRS.values()


def _int16(value: Any) -> tuple[Any, ...]:
    """Return the even and the odd bytes of a vector as int16; a vector of int16 as it is.

    Both by shifts inside 16-bit lanes: nothing crosses lanes, so the order of products changes,
    alike for inputs and weights, and no shuffle is needed.
    """
    t = tirx()

    kind, _, count = str(value.ty.dtype).partition("x")
    if kind == "int16":
        return (value,)
    lanes = int(count) // 2
    if kind == "uint8":
        whole = t.reinterpret(f"uint16x{lanes}", value)
        halves = (whole & constant(0xFF, "uint16", lanes), whole >> constant(8, "uint16", lanes))
        return tuple(t.reinterpret(f"int16x{lanes}", half) for half in halves)
    whole, eight = t.reinterpret(f"int16x{lanes}", value), constant(8, "int16", lanes)
    return (whole << eight) >> eight, whole >> eight


_BFLOAT16 = """
declare <16 x float> @llvm.x86.avx512bf16.dpbf16ps.512(<16 x float>, <32 x bfloat>, <32 x bfloat>)

define <16 x float> @npuc_add_products_of_bfloat16(
  <16 x float> %sum, <16 x i32> %inputs, <16 x i32> %weights
) alwaysinline {
  %a = bitcast <16 x i32> %inputs to <32 x bfloat>
  %b = bitcast <16 x i32> %weights to <32 x bfloat>
  %r = call <16 x float> @llvm.x86.avx512bf16.dpbf16ps.512(
    <16 x float> %sum, <32 x bfloat> %a, <32 x bfloat> %b)
  ret <16 x float> %r
}
"""
"""`vdpbf16ps` on pairs of bfloat16 as 32-bit words: TVM has no vectors of LLVM's type."""


FLOAT = Dot(1, "float32", "float32")
"""Fused float32 arithmetic."""

WIDENED = Dot(1, "float32", "uint16")
"""The same on inputs stored as bfloat16; weights are float32."""

HALVES = Dot(2, "float32", "bfloat16", "npuc_add_products_of_bfloat16")
"""Two products of bfloat16 at a time, weights too; what is subnormal in float32 is zero."""

PLAIN = Dot(1, "int32", "int32")
"""Integer arithmetic one product at a time, in int32."""


def choose(level: Level, *, signed: bool, narrow: bool, multiple: int = 0) -> Dot:
    """Return the widest exact integer multiply-add for codes of one input.

    `signed` says that the input's codes are int8 rather than uint8, `narrow` that the weights fit
    int8; otherwise they fit int16. `multiple` is the run of input values that lie next to each
    other and cannot be padded; 0 where padding is possible.
    """
    if narrow and multiple % 4 == 0:
        four = _four(level, signed)
        if four is not None:
            return four
    if level.arch == "x86_64" and multiple % 2 == 0:
        return Dot(2, "int32", "int16", _PAIRS[level.lanes])
    return PLAIN


def of_halves(level: Level) -> Dot:
    """Return the multiply-add for inputs stored as bfloat16."""
    return HALVES if level.halves else WIDENED


def _four(level: Level, signed: bool) -> Dot | None:
    """Return the multiply-add of four 8-bit products per lane, if there is one."""
    codes = "int8" if signed else "uint8"
    if level.dot in _UNSIGNED:
        # These take unsigned inputs only.
        return Dot(4, "int32", "uint8", _UNSIGNED[level.dot], 128 if signed else 0)
    if level.dot == "i8mm" and not signed:
        return Dot(4, "int32", "uint8", "llvm.aarch64.neon.usdot.v4i32.v16i8")
    if level.dot in ("dotprod", "i8mm"):
        # And this one signed inputs only.
        shift = 0 if signed else -128
        return Dot(4, "int32", "int8", "llvm.aarch64.neon.sdot.v4i32.v16i8", shift)
    if level.arch == "x86_64":
        return Dot(4, "int32", codes, _PAIRS[level.lanes])
    return None


_UNSIGNED = {
    "avx512vnni": "llvm.x86.avx512.vpdpbusd.512",
    "avxvnni": "llvm.x86.avx512.vpdpbusd.256",
}
"""x86's dot products of unsigned by signed bytes, by the feature that has them."""
