"""Depthwise convolution on NHWC tensors: every channel has its own filter.

A vector holds neighbouring channels of one pixel. Arithmetic is as in `direct`: fused float32, or
exact int32 with the zero point folded into the start value.
"""

from dataclasses import dataclass
from typing import Any

from npuc.targets.tvm.direct import Finish
from npuc.targets.tvm.emit import Kernel, cast, constant, fma, lanes_of, pieces
from npuc.targets.tvm.staging import Geometry, Span, stage

PIXELS = 8
"""Output pixels computed together, each in one register."""

WRITTEN_OUT = 7
"""Filter widths up to this are written out; wider ones are a loop."""


@dataclass(frozen=True)
class Depthwise:
    """Writes the kernel for one geometry; weights are [taps, channels]."""

    k: Kernel
    g: Geometry
    finish: Finish
    integer: bool = False
    heavy: bool = False
    classed: bool = False
    """Whether `start` has values of its own for every class of rows and columns (`Geometry`)."""

    def write(self, x: Any, weights: Any, start: Any, y: Any) -> None:
        """Write the body. `start` holds what each accumulator begins with; None means zero."""
        k, g = self.k, self.g
        x = stage(k, x, g)
        lanes = k.level.lanes
        whole = g.channels // lanes
        job = _Job(self, x, weights, start, y)
        if whole:
            job.channels(0, whole, lanes)
        for first, width in pieces(g.channels - whole * lanes, lanes):
            job.channels(whole * lanes + first, 1, width)


@dataclass(frozen=True)
class _Job:
    d: Depthwise
    x: Any
    weights: Any
    start: Any
    y: Any

    def channels(self, first: int, count: int, width: int) -> None:
        """Compute `count` vectors of `width` channels, from `first`, at every pixel."""
        k, g = self.d.k, self.d.g
        lines = g.batch * g.out_h
        rows = min(PIXELS, g.out_w)
        rows = -(-g.out_w // -(-g.out_w // rows))
        work = lines * g.out_w * g.kernel[0] * g.kernel[1] * count
        with k.units(lines, work) as line:
            for column, times, pixels in g.tiles(rows):
                # Channels innermost: neighbours in memory, which processors fetch ahead.
                with k.loop(times) as step, k.loop(count) as block:
                    channel = k.let(block * width + first)
                    self.tile(line, column + step * rows, pixels, channel, width)

    def tile(self, line: Any, column: Any, rows: int, channel: Any, width: int) -> None:
        """Compute `rows` pixels of a line for `width` channels."""
        d, k, g = self.d, self.d.k, self.d.g
        kind = "int32" if d.integer else "float32"
        total = k.registers(rows, kind)
        spans = g.columns(column, rows)
        for register, span in zip(total, spans, strict=True):
            k.store(register, self._begin(channel, width, line, span), 0)
        sources = [k.let(g.source(line, column + m) + channel) for m in range(rows)]
        wide = g.kernel[1]
        everywhere = all(span == (0, wide) for span in spans)
        first, count = g.inside(k, line)
        with k.loop(count) as turn:
            row = k.let(first + turn)
            down = k.let(row * (g.dilation[0] * g.pitch))
            if wide <= WRITTEN_OUT or not everywhere:
                for across in range(wide):
                    active = [m for m, (low, high) in enumerate(spans) if low <= across < high]
                    some = [total[m] for m in active]
                    start = [sources[m] for m in active]
                    self._tap(some, start, row * wide + across, down, across, channel, width)
            else:
                with k.loop(wide) as across:
                    self._tap(total, sources, row * wide + across, down, across, channel, width)
        if rows > 1 and d.heavy:
            copy = k.scratch(rows * width, kind)
            for m, register in enumerate(total):
                k.store(copy, k.load(register, 0, width), m * width)
            with k.loop(rows) as step:
                self._end(k.load(copy, step * width, width), line, column + step, channel)
        else:
            for m, register in enumerate(total):
                self._end(k.load(register, 0, width), line, column + m, channel)

    def _end(self, value: Any, line: Any, column: Any, channel: Any) -> None:
        """Finish one pixel of a tile and store it; see `direct` on heavy endings."""
        d, k, g = self.d, self.d.k, self.d.g
        out = k.let((line * g.out_w + column) * g.channels + channel)
        k.store(self.y, d.finish(value, lanes_of(value), channel, out), out)

    def _tap(
        self,
        total: list[Any],
        sources: list[Any],
        tap: Any,
        down: Any,
        across: Any,
        channel: Any,
        width: int,
    ) -> None:
        k, g = self.d.k, self.d.g
        weight = k.let(self._read(self.weights, tap * g.channels + channel, width))
        offset = down + across * (g.dilation[1] * g.pixel)
        for register, source in zip(total, sources, strict=True):
            value = self._read(self.x, source + offset, width)
            old = k.load(register, 0, width)
            new = old + value * weight if self.d.integer else fma(value, weight, old)
            k.store(register, new, 0)

    def _read(self, memory: Any, index: Any, width: int) -> Any:
        value = self.d.k.load(memory, index, width)
        return cast(value, "int32") if self.d.integer else value

    def _begin(self, channel: Any, width: int, line: Any, span: Span) -> Any:
        k, g = self.d.k, self.d.g
        if self.start is None:
            return constant(0, "int32" if self.d.integer else "float32", width)
        if self.d.classed:
            columns = g.column_classes
            kind = g.row_class(k, line) * len(columns) + columns.index(span)
            channel = k.let(kind * g.channels + channel)
        return k.load(self.start, channel, width)
