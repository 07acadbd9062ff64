"""Direct convolution and matrix multiplication: one kernel, weights packed at compile time.

A tile is some pixels by a few vectors of output channels, held in registers while the kernel runs
over every input value under the filter. A matrix product is the case of a 1x1 filter.

float32: one fused multiply-add per input value and vector, in a fixed order: the result does not
depend on the number of threads.

int8: Σ (x - zx)·w + b is computed exactly in int32, as Σ x·w + (b - zx·Σ w), and padding holds zx.
int32 wraps around as the same sum in any order would; only a true sum beyond ±2³¹ is wrong, as
on every device with 32-bit accumulators.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from npuc.targets.tvm import packing
from npuc.targets.tvm.cpu_level import Level
from npuc.targets.tvm.dots import FLOAT, Dot
from npuc.targets.tvm.emit import Kernel, dtype_of, pieces
from npuc.targets.tvm.staging import Geometry, Span, stage

Finish = Callable[[Any, int, Any, Any], Any]
"""(accumulated values, lanes, first channel, flat output index) → what is stored."""

UNROLL = 4
"""Steps of the innermost loop written out: with cold weights it is worth a fifth."""

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


@dataclass(frozen=True, slots=True)
class Tile:
    """Pixels and vectors of output channels that one pass over the input computes."""

    rows: int
    vectors: int


PACKED = 4
"""Vectors of channels whose codes one store takes, in a CPU of 32 registers: with as many in a
tile, a ResNet-50's convolutions take 2 to 8 % less time than with two."""


MORE = 24
"""Accumulators that still leave room for a step's weights and input among 32 registers."""


def tile_for(
    pixels: int, vectors: int, level: Level, *, packed: bool = False, line: bool = False
) -> Tile:
    """Choose a tile: at most 16 accumulators (12 where there are 16 registers), even rows.

    `packed` says that its results are codes to be stored together. `line` says that `pixels` are
    those of one line, whose last tile comes again and again: where it would be half a tile or
    less, as 2 of 14 pixels are in tiles of 4, there may be 24 accumulators in 32 registers.
    """
    budget = 12 if level.lanes == 8 else 16
    least = PACKED if packed and level.lanes == 16 and vectors % PACKED == 0 else 2
    wide = min(vectors, max(least, budget // max(pixels, 1)))
    rows = _even(pixels, budget // wide)
    if line and level.lanes == 16 and 0 < pixels % rows <= rows // 2:
        more = _even(pixels, MORE // wide)
        rows = more if -(-pixels // more) < -(-pixels // rows) else rows
    return Tile(rows, wide)


def _even(pixels: int, most: int) -> int:
    """Cut pixels into as few tiles of up to `most` as will do, of about the same size."""
    return -(-pixels // -(-pixels // min(pixels, most)))


@dataclass(frozen=True)
class Direct:
    """Writes the kernel for one geometry; `dot` is the instruction that multiplies and adds."""

    k: Kernel
    g: Geometry
    finish: Finish
    dot: Dot = FLOAT
    zero: int = 0
    """Taken off every input value; for weights known at compile time, `start` does it instead."""
    heavy: bool = False
    """Whether `finish` is long."""
    classed: bool = False
    """Whether `start` has values of its own for every class of rows and columns (`Geometry`)."""
    codes: str = ""
    """Type of the codes that `finish` gives full vectors of as int32, to be packed; "" for none."""

    def write(self, x: Any, weights: Any, start: Any, y: Any) -> None:
        """Write the body. `start` holds what each accumulator begins with; None means zero."""
        x = x if self.g.planes else stage(self.k, x, self.g)
        self.sweep(x, weights, start, y, 0, 0)

    def sweep(self, x: Any, weights: Any, start: Any, y: Any, x_base: Any, y_base: Any) -> None:
        """Compute every pixel and channel from what `stage` returned."""
        g, k = self.g, self.k
        columns = g.channels_out // g.groups
        vectors = -(-columns // k.level.lanes)
        pixels = g.batch * g.out_h * g.out_w if g.flat else g.out_w
        tile = tile_for(pixels, vectors, k.level, packed=bool(self.codes), line=not g.flat)
        whole = columns // k.level.lanes // tile.vectors
        rest = vectors - whole * tile.vectors
        ahead = g.flat and pixels <= FEW * tile.rows and tile.vectors <= STREAMS
        ahead = ahead and columns * g.pixel * dtype_of(weights).itemsize >= COLD
        job = _Job(self, x, weights, start, y, x_base, y_base, vectors, ahead)
        if whole:
            job.blocks(whole, 0, tile.rows, tile.vectors, tile.vectors * k.level.lanes)
        if rest:
            done = whole * tile.vectors
            job.blocks(1, done, tile.rows, rest, columns - done * k.level.lanes)


@dataclass(frozen=True)
class _Job:
    """One kernel's tensors."""

    d: Direct
    x: Any
    weights: Any
    start: Any
    y: Any
    x_base: Any
    y_base: Any
    vectors: int
    ahead: bool = False
    """Whether weights are asked for ahead of the steps that read them."""

    def blocks(self, count: int, first: int, rows: int, vectors: int, columns: int) -> None:
        """Compute `count` blocks of `vectors` vectors of channels at every pixel.

        `first` is the first block's first vector, `columns` how many of a block's lanes are used.
        """
        g, k = self.d.g, self.d.k
        lines = g.batch * g.out_h
        per_line, left = divmod(g.out_w * (lines if g.flat else 1), rows)
        if g.flat:
            # One long line: its tiles are the units that threads share.
            lines, per_line, left = (per_line, 1, left) if per_line else (1, 0, left)
        work = g.multiply_adds * count * columns // max(g.channels_out, 1)
        with k.units(g.groups * count * lines, work) as unit:
            line = k.let(unit % lines)
            block = k.let(unit // lines % count)
            group = k.let(unit // (lines * count)) if g.groups > 1 else 0
            at = _Block(group, k.let(block * vectors + first), vectors, columns)
            if g.flat and per_line:
                self.tile(0, line * rows, rows, at)
            elif g.flat:
                self.tile(0, 0, left, at)
            else:
                for column, times, pixels in g.tiles(rows):
                    with k.loop(times) as step:
                        self.tile(line, column + step * rows, pixels, at)
        if left and g.flat and per_line:
            with k.units(count, work // max(lines, 1)) as unit:
                at = _Block(0, k.let(unit * vectors + first), vectors, columns)
                self.tile(0, lines * rows, left, at)

    def tile(self, line: Any, column: Any, rows: int, at: "_Block") -> None:
        """Compute `rows` pixels of a line by one block of channels."""
        d, g, k = self.d, self.d.g, self.d.k
        lanes = k.level.lanes
        base = self.x_base + at.group * (g.channels // g.groups)
        sources = [k.let(base + g.source(line, column + m)) for m in range(rows)]
        kind = d.dot.sums
        total = [k.registers(at.vectors, kind) for _ in range(rows)]
        spans = g.columns(column, rows)
        for v in range(at.vectors):
            channel = (at.group * self.vectors + at.first + v) * lanes
            begins = {span: self._begin(channel, line, span) for span in dict.fromkeys(spans)}
            for row, span in zip(total, spans, strict=True):
                k.store(row[v], begins[span], 0)
        self._accumulate(total, sources, spans, line, at)
        if rows > 1 and d.heavy:
            # One copy of a long ending instead of one per pixel, over a copy of the registers:
            # these must only be indexed by numbers to be registers.
            copies = [k.scratch(rows * lanes, kind) for _ in range(at.vectors)]
            for m, row in enumerate(total):
                for v, register in enumerate(row):
                    k.store(copies[v], k.load(register, 0, lanes), m * lanes)
            with k.loop(rows) as step:
                self._end([(copy, step * lanes) for copy in copies], line, column + step, at)
        else:
            for m, row in enumerate(total):
                self._end([(register, 0) for register in row], line, column + m, at)

    def _end(self, total: list[tuple[Any, Any]], line: Any, column: Any, at: "_Block") -> None:
        """Finish one pixel of a tile, vector by vector from (memory, index), and store it."""
        d, g, k = self.d, self.d.g, self.d.k
        lanes = k.level.lanes
        pixel = k.let(g.target(line, column) * g.channels_out)
        wide: list[tuple[Any, Any]] = []
        for v, (memory, index) in enumerate(total):
            used = min(lanes, at.columns - v * lanes)
            for offset, width in pieces(used, lanes):
                value = k.load(memory, index + offset, width)
                first = at.group * (g.channels_out // g.groups) + (at.first + v) * lanes
                channel = k.let(first + offset)
                out = k.let(self.y_base + pixel + channel)
                result = d.finish(value, width, channel, out)
                if d.codes and width == lanes:
                    wide.append((result, out))
                else:
                    k.store(self.y, result, out)
        while wide:
            count = next((n for n in packing.GROUPS if n <= len(wide)), 1)
            values, (_, out) = [value for value, _ in wide[:count]], wide[0]
            pack = packing.packed if count > 1 else packing.single
            k.store(self.y, pack(values, d.codes), out)
            wide = wide[count:]

    def _begin(self, channel: Any, line: Any, span: Span) -> Any:
        k, g = self.d.k, self.d.g
        if self.start is None:
            return self.d.dot.begin(k.level.lanes)
        if self.d.classed:
            columns = g.column_classes
            kind = g.row_class(k, line) * len(columns) + columns.index(span)
            channel = k.let(kind * (g.groups * self.vectors * k.level.lanes) + channel)
        return k.let(k.load(self.start, channel, k.level.lanes))

    def _accumulate(
        self,
        total: list[list[Any]],
        sources: list[Any],
        spans: list[Span],
        line: Any,
        at: "_Block",
    ) -> None:
        """Run over every input value under the filter that is not on the border."""
        d, g, k = self.d, self.d.g, self.d.k
        dot = d.dot.adds
        high, wide = g.kernel
        per_pixel = g.pixel // g.groups
        steps = per_pixel // dot
        streams = [
            k.let(
                (at.group * self.vectors + at.first + v)
                * (high * wide * steps * k.level.lanes * dot)
            )
            for v in range(at.vectors)
        ]
        everywhere = all(span == (0, wide) for span in spans)
        merged = everywhere and g.dilation[1] == 1 and g.groups == 1
        first, count = g.inside(k, line)
        with k.loop(count) as turn:
            row = k.let(first + turn)
            x_row, w_row = k.let(row * (g.dilation[0] * g.pitch)), k.let(row * (wide * steps))
            if merged:
                self._run(total, sources, streams, x_row, w_row, steps * wide)
            elif everywhere:
                with k.loop(wide) as column:
                    x_tap = k.let(x_row + column * (g.dilation[1] * g.pixel))
                    self._run(total, sources, streams, x_tap, k.let(w_row + column * steps), steps)
            else:
                for column in range(wide):
                    active = [m for m, (low, high_) in enumerate(spans) if low <= column < high_]
                    self._run(
                        [total[m] for m in active],
                        [sources[m] for m in active],
                        streams,
                        k.let(x_row + column * (g.dilation[1] * g.pixel)),
                        k.let(w_row + column * steps),
                        steps,
                    )

    def _run(
        self,
        total: list[list[Any]],
        sources: list[Any],
        streams: list[Any],
        x: Any,
        w: Any,
        steps: int,
    ) -> None:
        """Multiply neighbouring input values of each pixel, UNROLL steps of them at a time."""
        k, dot = self.d.k, self.d.dot.adds
        if not total:
            return
        if steps >= UNROLL:
            with k.loop(steps // UNROLL) as outer:
                if self.ahead:
                    self._prefetch(streams, w + outer * UNROLL)
                for inner in range(UNROLL):
                    step = outer * UNROLL + inner
                    self._step(total, sources, streams, x + step * dot, w + step)
        for step in range(steps - steps % UNROLL, steps):
            self._step(total, sources, streams, x + step * dot, w + step)

    def _prefetch(self, streams: list[Any], w: Any) -> None:
        """Ask for what the same steps read `AHEAD` bytes further on."""
        k = self.d.k
        size = dtype_of(self.weights).itemsize
        stride = k.level.lanes * self.d.dot.adds
        for stream in streams:
            for byte in range(AHEAD, AHEAD + UNROLL * stride * size, LINE):
                k.prefetch(self.weights, stream + w * stride + byte // size)

    def _step(
        self, total: list[list[Any]], sources: list[Any], streams: list[Any], x: Any, w: Any
    ) -> None:
        """Multiply one step's input values of each pixel by their weights."""
        d, k, dot = self.d, self.d.k, self.d.dot
        stride = k.level.lanes * dot.adds
        weights = [k.let(dot.weights(k, self.weights, stream + w * stride)) for stream in streams]
        for row, source in zip(total, sources, strict=True):
            value = k.let(dot.value(k, self.x, source + x, d.zero))
            for register, weight in zip(row, weights, strict=True):
                old = k.load(register, 0, k.level.lanes)
                k.store(register, dot.multiply_add(value, weight, old), 0)


@dataclass(frozen=True, slots=True)
class _Block:
    """Vectors of channels: the first of a group's, how many, and how many lanes are used."""

    group: Any
    first: Any
    vectors: int
    columns: int
