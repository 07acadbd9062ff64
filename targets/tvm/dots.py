"""The multiply-add at the centre of every product: which instruction, and how it wants its data.

A lane of one instruction adds `adds` products to its sum. Weights are packed so that a lane's
`adds` values are neighbours; as many inputs are broadcast to every lane.

Integer sums are exact: the instructions here neither saturate nor round. x86's `vpmaddubsw`, which
saturates pairs of products at 16 bits, is not among them.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np

from npuc.targets.tvm.cpu_level import Level
from npuc.targets.tvm.emit import Kernel, cast, constant, dtype_of, fma, ramp, tirx, widen

Array = np.ndarray[Any, Any]


@dataclass(frozen=True, slots=True)
class Dot:
    """One way to multiply and add.

    `instruction` is an LLVM intrinsic, or "" for plain arithmetic. `sums` is the accumulators'
    type. `inputs` is the type that the instruction takes broadcast inputs for. `shift` is added to
    every input value as it is read: start values take `shift`·Σ w off, as they do a zero point.
    """

    adds: int
    sums: str
    inputs: str
    instruction: str = ""
    shift: int = 0

    def pack(self, weights: Array, lanes: int) -> Array:
        """Order weights [G, K, N] as a kernel reads them: [G, N / lanes, K / adds, lanes, adds].

        N is padded with zeros to whole vectors; K must be a multiple of `adds`.
        """
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
            one = one if self.sums == "float32" else cast(one, self.sums)
            return widen(one - constant(zero, self.sums) if zero else one, lanes)
        some = t.BufferLoad(memory, [ramp(index, self.adds)])
        if self.adds == 2:
            some = cast(some, self.inputs)
        word = t.reinterpret("int32", some)
        if self.shift:
            # Flipping the top bit of every byte adds 128 to signed codes, or takes it off others.
            word = word ^ t.const(-0x7F7F7F80, "int32")
        return t.reinterpret(f"{self.inputs}x{lanes * self.adds}", widen(word, lanes))

    def multiply_add(self, value: Any, weight: Any, total: Any) -> Any:
        """Return `total` with the products of a broadcast `value` and a vector of weights added."""
        t = tirx()

        if self.sums == "float32":
            return fma(value, weight, total)
        if self.adds == 1:
            return total + value * weight
        kind = total.ty.dtype
        if self.adds == 2:
            return total + t.call_llvm_pure_intrin(kind, self.instruction, value, weight)
        return t.call_llvm_pure_intrin(kind, self.instruction, total, value, weight)


FLOAT = Dot(1, "float32", "float32")
"""Fused float32 arithmetic."""

PLAIN = Dot(1, "int32", "int32")
"""Integer arithmetic one product at a time, in int32."""


def choose(level: Level, *, signed: bool, narrow: bool, multiple: int = 0) -> Dot:
    """Return the widest exact integer multiply-add for codes of one input.

    `signed` says that the input's codes are int8 rather than uint8, `narrow` that the weights fit
    int8. `multiple` is the run of input values that lie next to each other and cannot be padded;
    0 where padding is possible.
    """
    if level.vnni and narrow and multiple % 4 == 0:
        return Dot(4, "int32", "uint8", "llvm.x86.avx512.vpdpbusd.512", 128 if signed else 0)
    return PLAIN
