"""The shape of a convolution on NHWC tensors, and the copy of its input with a border around it."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from npuc.targets.tvm.emit import (
    Kernel,
    cast,
    constant,
    dtype_of,
    pieces,
    tirx,
    widen,
)

CLIPPED = 3
"""Output pixels at either end of a line that may miss columns of the filter: each of their tiles
is written out by itself. Beyond, and for dilated filters whose borders are wide, a copy is made."""

Span = tuple[int, int]
"""Positions of a filter's rows or columns that lie inside the input, from and to."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where outputs go that are every `step`-th pixel of an image of `height` by `width`."""

    height: int
    width: int
    step: tuple[int, int]
    first: tuple[int, int]


@dataclass(frozen=True)
class Geometry:
    """A convolution, or with a 1x1 filter a matrix product of `batch·h·w` rows.

    `pads` are top, left, bottom, right. `spread` puts that many minus one zeros between input
    values, which makes a convolution a transposed one. `round_channels` is the multiple that the
    channels of the copy are padded to. `fill` is the value that stands for zero.
    """

    batch: int
    height: int
    width: int
    channels: int
    channels_out: int
    kernel: tuple[int, int] = (1, 1)
    stride: tuple[int, int] = (1, 1)
    dilation: tuple[int, int] = (1, 1)
    pads: tuple[int, int, int, int] = (0, 0, 0, 0)
    spread: tuple[int, int] = (1, 1)
    groups: int = 1
    round_channels: int = 1
    fill: int = 0
    planes: bool = False
    """Whether the input is NCHW: then a copy is always made, which is NHWC."""
    place: Place | None = None
    """Where outputs are stored, if not one after the other."""

    @cached_property
    def staged(self) -> bool:
        """Whether the kernel reads a copy of its input instead of the input itself."""
        if self.spread != (1, 1) or self.pixel != self.channels or self.planes:
            return True
        return any(self.pads) and not self._clips

    @property
    def _clips(self) -> bool:
        """Whether kernels can leave out what lies on the border, instead of reading a copy."""
        whole = (0, self.kernel[1])
        ends = [span == whole for span in self.column_spans]
        if any(a >= b for a, b in (*self.row_spans, *self.column_spans)):
            return False
        if len(ends) <= 2 * CLIPPED:
            return True
        return all(ends[CLIPPED:-CLIPPED])

    @cached_property
    def row_spans(self) -> tuple[Span, ...]:
        """For every line of the output, the filter's rows that lie inside the input."""
        return _spans(self.out_h, self.height, self, 0, self.pads[0])

    @cached_property
    def column_spans(self) -> tuple[Span, ...]:
        """For every column of the output, the filter's columns that lie inside the input."""
        return _spans(self.out_w, self.width, self, 1, self.pads[1])

    @property
    def pitch(self) -> int:
        """Values from one line to the next in what the kernel reads."""
        return (self.padded_w if self.staged else self.width) * self.pixel

    @property
    def pixel(self) -> int:
        """Values per pixel in what the kernel reads."""
        return -(-self.channels // self.round_channels) * self.round_channels

    @property
    def spread_h(self) -> int:
        """Height with the zeros of a transposed convolution, without the border."""
        return (self.height - 1) * self.spread[0] + 1

    @property
    def spread_w(self) -> int:
        """Width with the zeros of a transposed convolution, without the border."""
        return (self.width - 1) * self.spread[1] + 1

    @property
    def padded_h(self) -> int:
        """Height of what the kernel reads."""
        return self.spread_h + self.pads[0] + self.pads[2]

    @property
    def padded_w(self) -> int:
        """Width of what the kernel reads."""
        return self.spread_w + self.pads[1] + self.pads[3]

    @property
    def out_h(self) -> int:
        """Height of the output."""
        return (self.padded_h - (self.kernel[0] - 1) * self.dilation[0] - 1) // self.stride[0] + 1

    @property
    def out_w(self) -> int:
        """Width of the output."""
        return (self.padded_w - (self.kernel[1] - 1) * self.dilation[1] - 1) // self.stride[1] + 1

    @property
    def flat(self) -> bool:
        """Whether pixels of all lines form one long line: a matrix product."""
        plain = self.kernel == (1, 1) == self.stride and self.place is None
        return plain and not any(self.pads) and self.groups == 1

    @property
    def multiply_adds(self) -> int:
        """Arithmetic of the whole convolution."""
        taps = self.kernel[0] * self.kernel[1] * self.channels // self.groups
        return self.batch * self.out_h * self.out_w * self.channels_out * taps

    def source(self, line: Any, column: Any) -> Any:
        """Offset in what the kernel reads of an output pixel's first input value.

        Without a copy that may lie on the border, where the kernel does not read.
        """
        image, row = line // self.out_h, line % self.out_h
        if self.staged:
            top = (image * self.padded_h + row * self.stride[0]) * self.padded_w
            return (top + column * self.stride[1]) * self.pixel
        top = (image * self.height + row * self.stride[0] - self.pads[0]) * self.width
        return (top + column * self.stride[1] - self.pads[1]) * self.pixel

    def target(self, line: Any, column: Any) -> Any:
        """Which pixel of the stored output an output pixel is."""
        if self.place is None:
            return line * self.out_w + column
        at, (down, across) = self.place, self.place.step
        image, row = line // self.out_h, line % self.out_h
        top = (image * at.height + row * down + at.first[0]) * at.width
        return top + column * across + at.first[1]

    def inside(self, k: Kernel, line: Any) -> tuple[Any, Any]:
        """Return the first and the number of the filter's rows inside the input at a line."""
        high, step = self.kernel[0], self.dilation[0]
        if self.staged or set(self.row_spans) == {(0, high)}:
            return 0, high
        t = tirx()
        start = k.let(line % self.out_h * self.stride[0] - self.pads[0])
        first = k.let((t.max(0 - start, 0) + (step - 1)) // step)
        last = t.min((self.height - start + (step - 1)) // step, high)
        return first, k.let(last - first)

    def tiles(self, rows: int) -> list[tuple[int, int, int]]:
        """Cut a line of the output into tiles of up to `rows` pixels.

        Returns (first column, count, pixels) of runs of equal tiles: those that miss columns of
        the filter come one by one.
        """
        result: list[tuple[int, int, int]] = []
        for column in range(0, self.out_w, rows):
            pixels = min(rows, self.out_w - column)
            whole = all(span == (0, self.kernel[1]) for span in self.columns(column, pixels))
            if whole and result and result[-1][2] == pixels and result[-1][1] < 0:
                first, count, _ = result.pop()
                result.append((first, count - 1, pixels))
            else:
                result.append((column, -1 if whole else 1, pixels))
        return [(column, abs(count), pixels) for column, count, pixels in result]

    def columns(self, column: Any, pixels: int) -> list[Span]:
        """Return the filter's columns inside the input, of some neighbouring pixels.

        A `column` that is not a number is one of a run of `tiles`.
        """
        if self.staged or self.flat or not isinstance(column, int):
            return [(0, self.kernel[1])] * pixels
        return list(self.column_spans[column : column + pixels])

    @property
    def row_classes(self) -> list[Span]:
        """The spans of rows that occur, in order."""
        return list(dict.fromkeys(self.row_spans))

    @property
    def column_classes(self) -> list[Span]:
        """The spans of columns that occur, in order."""
        return list(dict.fromkeys(self.column_spans))

    def row_class(self, k: Kernel, line: Any) -> Any:
        """Return which of `row_classes` a line of the output is in."""
        t = tirx()
        row = k.let(line % self.out_h)
        result: Any = 0
        for at in range(1, self.out_h):
            if self.row_spans[at] != self.row_spans[at - 1]:
                result = result + t.Cast("int32", row >= at)
        return k.let(result)


def _spans(count: int, size: int, g: Geometry, axis: int, pad: int) -> tuple[Span, ...]:
    taps, stride, step = g.kernel[axis], g.stride[axis], g.dilation[axis]
    starts = [at * stride - pad for at in range(count)]
    return tuple((-(min(s, 0) // step), min(-(-(size - s) // step), taps)) for s in starts)


def stage(k: Kernel, x: Any, g: Geometry) -> Any:
    """Copy the input with its border, zeros and padded channels; return what to read."""
    if not g.staged:
        return x
    dtype = dtype_of(x).name
    lanes = k.level.lanes * 4 // dtype_of(x).itemsize
    line = g.padded_w * g.pixel
    copy = k.scratch(g.batch * g.padded_h * line, dtype)
    with k.units(g.batch * g.padded_h, g.batch * g.padded_h * line) as unit:
        image, row = k.let(unit // g.padded_h), k.let(unit % g.padded_h - g.pads[0])
        start = k.let(unit * line)
        _fill(k, copy, start, line, constant(g.fill, dtype), lanes)
        inside = [row >= 0, row < g.spread_h]
        if g.spread[0] > 1:
            inside.append(row % g.spread[0] == 0)
        with k.when(_all(inside)):
            source = k.let((image * g.height + row // g.spread[0]) * g.width * g.channels)
            _copy_line(k, x, copy, source, start + g.pads[1] * g.pixel, g, lanes)
    return copy


Code = Callable[[Any], Any]
"""(vector of an input's values) → what the kernel reads in their place."""


def stage_planes(k: Kernel, x: Any, g: Geometry, dtype: str, code: Code) -> Any:
    """Copy an NCHW input of a few channels as `stage` does an NHWC one; return what to read.

    `code` is applied to every value, such as its quantization to `dtype`: for the first layer of
    a network this is the only time that the image is read.
    """
    lanes = k.level.lanes
    line, plane = g.padded_w * g.pixel, g.height * g.width
    copy = k.scratch(g.batch * g.padded_h * line, dtype)
    wide = lanes * 4 // np.dtype(dtype).itemsize
    with k.units(g.batch * g.padded_h, g.batch * g.padded_h * line * 4) as unit:
        image, row = k.let(unit // g.padded_h), k.let(unit % g.padded_h - g.pads[0])
        start = k.let(unit * line)
        _fill(k, copy, start, line, constant(g.fill, dtype), wide)
        with k.when(_all([row >= 0, row < g.height])):
            source = k.let(image * g.channels * plane + row * g.width)
            target = k.let(start + g.pads[1] * g.pixel)
            whole = g.width // lanes
            with k.loop(whole) as step:
                _interleave(k, x, copy, source + step * lanes, target, step * lanes, g, lanes, code)
            for first, width in pieces(g.width - whole * lanes, lanes):
                at = whole * lanes + first
                _interleave(k, x, copy, source + at, target, at, g, width, code)
    return copy


def _interleave(
    k: Kernel, x: Any, copy: Any, source: Any, target: Any, column: Any, g: Geometry, width: int,
    code: Code,
) -> None:  # fmt: skip
    """Store the channels of `width` neighbouring pixels, pixel by pixel."""
    plane = g.height * g.width
    values = [k.hold(code(k.load(x, source + c * plane, width))) for c in range(g.channels)]
    t = tirx()
    at = k.let(target + column * g.pixel)
    if g.pixel == 4 and values[0].ty.dtype != "float32" and dtype_of(copy).itemsize == 1:
        # Held word by word: TVM's simplifier takes shifts of vectors for those of numbers.
        spare = (g.fill & 255) << 24 if g.channels < 4 else 0
        word = constant(spare - (1 << 32 if spare >> 31 else 0), "int32", width)
        for c, value in enumerate(values):
            byte = k.hold(cast(value, "int32"))
            byte = k.hold(byte & constant(255, "int32", width))
            word = k.hold(word | k.hold(byte << constant(8 * c, "int32", width)))
        k.store(copy, t.reinterpret(f"{dtype_of(copy).name}x{4 * width}", word), at)
        return
    order = [c * width + pixel for pixel in range(width) for c in range(g.channels)]
    if g.pixel == g.channels and width > 1:
        k.store(copy, t.Shuffle(values, order), at)
        return
    for pixel in range(width):
        for c, value in enumerate(values):
            lane = t.Shuffle([value], [pixel]) if width > 1 else value
            k.store(copy, lane, at + pixel * g.pixel + c)


def _copy_line(
    k: Kernel, x: Any, copy: Any, source: Any, target: Any, g: Geometry, lanes: int
) -> None:
    if g.spread[1] == 1 and g.pixel == g.channels:
        _move(k, x, copy, source, target, g.width * g.channels, lanes)
        return
    with k.loop(g.width) as column:
        at = k.let(target + column * (g.spread[1] * g.pixel))
        _move(k, x, copy, k.let(source + column * g.channels), at, g.channels, lanes)


def _move(k: Kernel, x: Any, y: Any, source: Any, target: Any, count: int, lanes: int) -> None:
    whole = count // lanes
    if whole:
        with k.loop(whole) as step:
            k.store(y, k.load(x, source + step * lanes, lanes), target + step * lanes)
    for start, width in pieces(count - whole * lanes, lanes):
        at = whole * lanes + start
        k.store(y, k.load(x, source + at, width), target + at)


def _fill(k: Kernel, y: Any, target: Any, count: int, value: Any, lanes: int) -> None:
    whole = count // lanes
    if whole:
        with k.loop(whole) as step:
            k.store(y, widen(value, lanes), target + step * lanes)
    for start, width in pieces(count - whole * lanes, lanes):
        k.store(y, widen(value, width), target + whole * lanes + start)


def _all(conditions: list[Any]) -> Any:
    from tvm import tirx as t

    return t.all(*conditions)
