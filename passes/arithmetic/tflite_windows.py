"""The windows of a pooling operator, in numbers: where they lie and how many values they hold."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce
from typing import Any

import numpy as np
import onnx_ir as ir

from npuc.passes.writer import Unfit

Array = np.ndarray[Any, Any]


@dataclass(frozen=True, slots=True)
class Window:
    """One entry per spatial axis. `end` pads exactly as far as the last window reaches.

    `limit` is where the input and what the operator pads end; `include` counts padding as values.
    """

    size: tuple[int, ...]
    kernel: tuple[int, ...]
    stride: tuple[int, ...]
    dilation: tuple[int, ...]
    begin: tuple[int, ...]
    end: tuple[int, ...]
    outputs: tuple[int, ...]
    limit: tuple[int, ...]
    include: bool

    @classmethod
    def of(cls, node: ir.Node, shape: Sequence[int], result: Sequence[int]) -> "Window":
        """Read an AveragePool of a static shape; raises `Unfit` for an auto_pad it cannot be."""
        size, outputs = tuple(shape[2:]), tuple(result[2:])
        ones, rank = (1,) * len(size), len(size)
        kernel = tuple(node.attributes.get_ints("kernel_shape", ()))
        stride = tuple(node.attributes.get_ints("strides", ones))
        dilation = tuple(node.attributes.get_ints("dilations", ones))
        reach = [
            (n - 1) * s + (k - 1) * d + 1
            for n, s, k, d in zip(outputs, stride, kernel, dilation, strict=True)
        ]
        auto = node.attributes.get_string("auto_pad", "NOTSET")
        if auto in ("SAME_UPPER", "SAME_LOWER"):
            total = [max(r - n, 0) for r, n in zip(reach, size, strict=True)]
            begin = tuple(t // 2 if auto == "SAME_UPPER" else (t + 1) // 2 for t in total)
            after = tuple(t - b for t, b in zip(total, begin, strict=True))
        elif auto in ("NOTSET", "VALID"):
            pads = tuple(node.attributes.get_ints("pads", (0,) * (2 * rank)))
            begin, after = (pads[:rank], pads[rank:]) if auto == "NOTSET" else ((0,) * rank,) * 2
        else:
            raise Unfit(f"auto_pad is {auto!r}")
        end = tuple(max(r - b - n, 0) for r, b, n in zip(reach, begin, size, strict=True))
        limit = tuple(n + a for n, a in zip(size, after, strict=True))
        include = bool(node.attributes.get_int("count_include_pad", 0))
        return cls(size, kernel, stride, dilation, begin, end, outputs, limit, include)

    def tap(self, axis: int, index: int) -> tuple[int, int]:
        """Return (start, stop) along a padded axis of the values at one place of every window."""
        start = index * self.dilation[axis]
        return start, start + (self.outputs[axis] - 1) * self.stride[axis] + 1

    def count(self) -> Array:
        """Return by what each window's sum is divided, as int64 of the result's spatial shape."""
        return self._counted(self.limit, [-b for b in self.begin]) if self.include else self._own()

    def padded(self) -> Array:
        """Return how many of the counted values are padding."""
        return self.count() - self._own()

    def _own(self) -> Array:
        return self._counted(self.size, [0] * len(self.size))

    def _counted(self, stops: Sequence[int], starts: Sequence[int]) -> Array:
        """Count each window's places from `starts` up to `stops`, in the input's coordinates."""
        axes = []
        for axis, (start, stop) in enumerate(zip(starts, stops, strict=True)):
            first = np.arange(self.outputs[axis]) * self.stride[axis] - self.begin[axis]
            places = first[:, None] + np.arange(self.kernel[axis]) * self.dilation[axis]
            axes.append(((places >= start) & (places < stop)).sum(axis=1))
        return np.asarray(reduce(np.multiply.outer, axes), np.int64)


def fits(window: Window) -> bool:
    """Whether every window holds a value: the kernel divides by their number."""
    return bool(math.prod(window.outputs)) and bool((window.count() > 0).all())
