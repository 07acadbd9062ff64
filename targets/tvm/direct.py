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
from npuc.targets.tvm.dots import FLOAT, Dot
from npuc.targets.tvm.emit import Kernel, pieces
from npuc.targets.tvm.prefetch import Ahead
from npuc.targets.tvm.staging import Geometry, Span, stage
from npuc.targets.tvm.tiles import Tile, cut, tile_for

Finish = Callable[[Any, int, Any, Any], Any]
"""(accumulated values, lanes, first channel, flat output index) → what is stored."""

UNROLL = 4
"""Steps of the innermost loop written out: with cold weights it is worth a fifth."""


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
        ahead = Ahead(k, g, weights, k.level.lanes * self.dot.adds, UNROLL)
        job = _Job(self, x, weights, start, y, x_base, y_base, vectors, ahead, ahead.few(tile))
        if whole:
            job.blocks(whole, 0, tile, tile.vectors * k.level.lanes)
        if rest:
            done = whole * tile.vectors
            job.blocks(1, done, Tile(tile.rows, rest), columns - done * k.level.lanes)


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
    ahead: Ahead
    few: bool
    """Whether each step asks for weights of the same streams."""

    def blocks(self, count: int, first: int, tile: Tile, columns: int) -> None:
        """Compute `count` blocks of a tile's vectors of channels at every pixel.

        `first` is the first block's first vector, `columns` how many of a block's lanes are used.
        """
        g, k, rows, vectors = self.d.g, self.d.k, tile.rows, tile.vectors
        lines, whole, last = g.batch * g.out_h, 0, 0
        if g.flat:
            # One long line: its tiles are the units that threads share.
            whole, last = cut(g.out_w * lines, tile, k.level)
            lines = whole + bool(last)
        work = g.multiply_adds * count * columns // max(g.channels_out, 1)
        runs = [] if g.flat else g.tiles(rows)
        tiles = sum(times for _, times, _ in runs) or 1
        share = 0 if self.few else self.ahead.share(vectors, lines * tiles)
        with k.units(g.groups * count * lines, work) as unit:
            line = k.let(unit % lines)
            block = k.let(unit // lines % count)
            group = k.let(unit // (lines * count)) if g.groups > 1 else 0
            at = _Block(group, k.let(block * vectors + first), vectors, columns, share)
            if not g.flat:
                before = 0
                for column, times, pixels in runs:
                    with k.loop(times) as step:
                        turn = k.let(line * tiles + (before + step))
                        self.tile(line, column + step * rows, pixels, at, turn)
                    before += times
            elif not (whole and last):
                self.tile(0, line * rows, rows if whole else last, at, line)
            else:
                with k.when(line < whole):
                    self.tile(0, line * rows, rows, at, line)
                with k.when(line >= whole):
                    self.tile(0, whole * rows, last, at, line)

    def tile(self, line: Any, column: Any, rows: int, at: "_Block", turn: Any) -> None:
        """Compute `rows` pixels of a line by one block of channels, its tile number `turn`."""
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
        self._accumulate(total, sources, spans, line, at, turn)
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
        turn: Any,
    ) -> None:
        """Run over every input value under the filter that is not on the border."""
        d, g, k = self.d, self.d.g, self.d.k
        dot = d.dot.adds
        high, wide = g.kernel
        per_pixel = g.pixel // g.groups
        steps = per_pixel // dot
        size = high * wide * steps * k.level.lanes * dot
        streams = [
            k.let((at.group * self.vectors + at.first + v) * size) for v in range(at.vectors)
        ]
        everywhere = all(span == (0, wide) for span in spans)
        merged = everywhere and g.dilation[1] == 1 and g.groups == 1
        first, count = g.inside(k, line)
        ask = None
        if at.share:
            after = k.let((at.group * self.vectors + at.first + at.vectors) * size)
            ask = self.ahead.next(after, k.let(turn * (high * wide * steps)), at.share)
        with k.loop(count) as nth:
            row = k.let(first + nth)
            x_row, w_row = k.let(row * (g.dilation[0] * g.pitch)), k.let(row * (wide * steps))
            if merged:
                self._run(total, sources, streams, x_row, w_row, steps * wide, ask)
            elif everywhere:
                with k.loop(wide) as column:
                    x_tap = k.let(x_row + column * (g.dilation[1] * g.pixel))
                    w_tap = k.let(w_row + column * steps)
                    self._run(total, sources, streams, x_tap, w_tap, steps, ask)
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
                        ask,
                    )

    def _run(
        self,
        total: list[list[Any]],
        sources: list[Any],
        streams: list[Any],
        x: Any,
        w: Any,
        steps: int,
        ask: Callable[[Any], None] | None,
    ) -> None:
        """Multiply neighbouring input values of each pixel, UNROLL steps of them at a time."""
        k, dot = self.d.k, self.d.dot.adds
        if not total:
            return
        if steps >= UNROLL:
            with k.loop(steps // UNROLL) as outer:
                if self.few:
                    self.ahead.same(streams, w + outer * UNROLL)
                if ask is not None:
                    ask(w + outer * UNROLL)
                for inner in range(UNROLL):
                    step = outer * UNROLL + inner
                    self._step(total, sources, streams, x + step * dot, w + step)
        for step in range(steps - steps % UNROLL, steps):
            self._step(total, sources, streams, x + step * dot, w + step)

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
    share: int
    """Values of the next block's weights that every step asks for."""
