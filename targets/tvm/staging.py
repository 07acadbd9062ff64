"""The shape of a convolution on NHWC tensors, and the copy of its input with a border around it."""

from dataclasses import dataclass
from typing import Any

from npuc.targets.tvm.emit import Kernel, constant, dtype_of, pieces, widen


@dataclass(frozen=True, slots=True)
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

    @property
    def staged(self) -> bool:
        """Whether the kernel reads a copy of its input instead of the input itself."""
        return any(self.pads) or self.spread != (1, 1) or self.pixel != self.channels

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
        return self.kernel == (1, 1) == self.stride and not any(self.pads) and self.groups == 1

    @property
    def multiply_adds(self) -> int:
        """Arithmetic of the whole convolution."""
        taps = self.kernel[0] * self.kernel[1] * self.channels // self.groups
        return self.batch * self.out_h * self.out_w * self.channels_out * taps

    def source(self, line: Any, column: Any) -> Any:
        """Offset in what the kernel reads of an output pixel's first input value."""
        image, row = line // self.out_h, line % self.out_h
        top = (image * self.padded_h + row * self.stride[0]) * self.padded_w
        return (top + column * self.stride[1]) * self.pixel


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
