"""Ask for weights ahead of the steps that read them: for few rows they come from memory.

A network's weights lie in the order of its kernels, so that what follows a kernel's last block is
the first block of the next.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from npuc.targets.tvm.emit import Kernel, dtype_of
from npuc.targets.tvm.staging import Geometry
from npuc.targets.tvm.tiles import Tile

AHEAD = 4096
"""Bytes further on that weights are prefetched from: the next page, which hardware does not look
into by itself. A product of 8 rows, whose weights come from memory, takes a fifth less time."""

LINE = 64
"""Bytes of a cache line."""

FEW = 4
"""Tiles of rows up to which most of the time goes into waiting for weights: more find them in the
cache, where the first left them."""

STREAMS = 4
"""Vectors up to which a tile reads too few places at a time to keep the memory busy."""

COLD = 1 << 18
"""Bytes of weights from which they are not in the cache when a kernel begins."""

TILES = 64
"""Tiles of a block of channels up to which asking for the next block's weights is worth it: a
ResNet-50's convolutions of one image take 5 % less time, those of eight as much as without."""


@dataclass(frozen=True)
class Ahead:
    """Asks for the weights of one kernel, in every `steps` steps of its innermost loop."""

    k: Kernel
    g: Geometry
    memory: Any
    stride: int
    """Values that a stream, a vector of channels, holds per step."""
    steps: int

    @property
    def cold(self) -> bool:
        """Whether weights are not in the cache when the kernel begins."""
        g = self.g
        values = g.kernel[0] * g.kernel[1] * g.pixel // g.groups * g.channels_out
        return values * dtype_of(self.memory).itemsize >= COLD

    def few(self, tile: Tile) -> bool:
        """Whether so few rows read each weight that `same` is worth it."""
        pixels = self.g.batch * self.g.out_h * self.g.out_w
        few = self.g.flat and pixels <= FEW * tile.rows and tile.vectors <= STREAMS
        return few and self.cold

    def same(self, streams: list[Any], step: Any) -> None:
        """Ask for what the same steps read `AHEAD` bytes further on."""
        size = dtype_of(self.memory).itemsize
        for stream in streams:
            for byte in range(AHEAD, AHEAD + self.steps * self.stride * size, LINE):
                self.k.prefetch(self.memory, stream + step * self.stride + byte // size)

    def share(self, vectors: int, tiles: int) -> int:
        """Return how many values of the next block every step of a tile should ask for.

        `tiles` read each block of `vectors` streams; 0 where asking is not worth it. No more than
        a share each: two blocks of a 3x3 filter ahead would push out of the cache what is read.
        """
        if tiles > TILES or not self.cold:
            return 0
        return -(-vectors * self.stride // tiles)

    def next(self, base: Any, before: Any, share: int) -> Callable[[Any], None]:
        """Return what asks, at a step, for that step's share of the block at `base`.

        `before` are the steps that earlier tiles have gone.
        """
        line = LINE // dtype_of(self.memory).itemsize
        lines = -(-share * self.steps // line)

        def ask(step: Any) -> None:
            place = self.k.let(base + (before + step) * share)
            for nth in range(lines):
                self.k.prefetch(self.memory, place + nth * line)

        return ask
