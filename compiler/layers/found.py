"""What a look into the layers finds, as data: no library is needed to read it."""

from collections.abc import Mapping
from dataclasses import dataclass

FLOATS = "none"
"""The observer of precisions that code weights, or factors as 8-bit floats, without zero points."""

BINS = 64

WIDE = 4.0
"""A channel is wide where its peak is so many times that of the median channel: two bits."""


@dataclass(frozen=True, slots=True)
class Coded:
    """A coded tensor: the reals its codes reach, what one code is worth, and what was seen.

    `clipped` is the share of values that lie more than half a step beyond the codes. A step of 0
    stands for codes that are floats themselves.
    """

    tensor: str
    low: float
    high: float
    step: float
    seen_low: float
    seen_high: float
    clipped: float

    @property
    def used(self) -> float:
        """The share of the codes' span that was seen in use."""
        span = self.high - self.low
        inside = min(self.seen_high, self.high) - max(self.seen_low, self.low)
        return max(inside, 0.0) / span if span > 0 else 1.0


@dataclass(frozen=True, slots=True)
class Histogram:
    """Counts of a tensor's values in `BINS` equal bins over [low, high], which holds them all.

    `channels` are along axis 1 for convolutions, else along the last; `wide` counts those that
    reach `WIDE` times as far as the median channel, and `ratio` says how far the widest does
    (0 where the median is 0 or there are no channels).
    """

    tensor: str
    low: float
    high: float
    counts: tuple[int, ...]
    channels: int
    wide: int
    ratio: float


@dataclass(frozen=True, slots=True)
class Culprit:
    """One of the layers where most is born; SQNRs are in dB.

    `weights` is the layer's error with its weights coded alone, `inputs` with its inputs alone;
    None where it has no such, or is another operator than in the float program. `restored` is the
    SQNR of the model's worst output where this layer alone reads floats, None where not tried.
    """

    tensor: str
    weights: float | None
    inputs: float | None
    restored: float | None
    histograms: tuple[Histogram, ...]


@dataclass(frozen=True, slots=True)
class Layer:
    """One tensor of the float program and what it lost, as SQNR in dB over all calls.

    `accumulated` is of the quantized program; `device` of what the device computes, None where it
    never has this tensor; `born` is None where nothing can be lost: nothing about its operator was
    quantized. Infinite where nothing differs, NaN where the quantized program has NaN or Inf and
    the float program has not. `reads` names the tensors whose codes the operator computes on.
    """

    tensor: str
    node: str
    op: str
    source: str
    module: str
    accumulated: float
    born: float | None
    device: float | None = None
    reads: tuple[str, ...] = ()
    output: bool = False

    @property
    def title(self) -> str:
        """What people see: the operator and the node's name, or the tensor's where it has none."""
        return f"{self.op} {(self.node or self.tensor)!r}"

    @property
    def place(self) -> str:
        """Where in the user's model it comes from: ``net.py:31 features.3``, or ""."""
        return " ".join(filter(None, (self.source, self.module)))


@dataclass(frozen=True, slots=True)
class Layers:
    """All tensors in graph order, the coded ones by name, and the layers where most is born.

    `output` is the SQNR in dB of the worst of the model's outputs in the quantized program.
    `observer` is how ranges were found: `FLOATS` where no range matters, "" where none was coded.
    """

    layers: tuple[Layer, ...]
    coded: Mapping[str, Coded]
    worst: tuple[Culprit, ...]
    output: float
    calls: int
    observer: str = ""

    @property
    def quantized(self) -> tuple[Layer, ...]:
        """Layers where something can be born."""
        return tuple(layer for layer in self.layers if layer.born is not None)

    def find(self, tensor: str) -> Layer:
        """Return the layer that makes a tensor; raises `KeyError`."""
        found = {layer.tensor: layer for layer in self.layers}
        return found[tensor]
