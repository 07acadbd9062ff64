"""Integer arithmetic around a kernel: start values, scales, and the bias as int32 codes."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from npuc.targets.tvm import weights as w
from npuc.targets.tvm.direct import Finish
from npuc.targets.tvm.emit import cast, rounded
from npuc.targets.tvm.graph import Array, dtype_of, is_var, key, number, operator
from npuc.targets.tvm.plan import Plan
from npuc.targets.tvm.regions import leaf_kind

SCALE_TOLERANCE = 1e-5
"""How far a bias's scale may be from x scale · w scale, relatively, to be its accumulator's unit:
both are products of two float32, each rounded once."""


@dataclass(frozen=True, slots=True)
class Integer:
    """An int8 input, and the scale of the int32 sums: one, or one per output channel.

    Without a scale the sums themselves are the result.
    """

    activation: w.Activation
    scale: Array | None

    @property
    def signed(self) -> bool:
        """Whether the input's codes are int8 rather than uint8."""
        return dtype_of(self.activation.tensor) == "int8"

    def offset(self, shift: int) -> int:
        """What to take off an input value as it is read; 0 where nothing needs to be."""
        return self.activation.zero + shift

    def prepare(
        self, p: Plan, array: Array, lanes: int, *, shift: int = 0, taps: Array | None = None
    ) -> tuple[Any, Finish]:
        """Declare start values and scales; return the start's memory and how results end.

        `array` holds the codes as [groups, depth, columns]. Inputs are read with `shift`
        added (`dots.Dot`), so that much is taken off like a zero point. `taps` has a row for each
        class of outputs that has start values of its own, saying which taps it adds up.
        """
        groups, _, columns = array.shape
        if taps is None:
            taps = np.ones((1, 1), bool)
        by_tap = array.astype(np.int64).reshape(groups, taps.shape[1], -1, columns).sum(axis=2)
        sums = np.einsum("kt,gtc->kgc", taps.astype(np.int64), by_tap)
        begin = self._bias(p, groups * columns).reshape(groups, columns) - self.offset(shift) * sums
        room = np.zeros((len(taps), groups, -(-columns // lanes) * lanes), np.int64)
        room[:, :, :columns] = begin
        room = room[0] if len(taps) == 1 else room
        start = p.weights(room.astype(np.int32))
        if self.scale is None:
            return start, p.finish
        factors = self.scale
        p.factor = float(np.abs(factors).max())
        scales = p.weights(np.ascontiguousarray(factors)) if factors.size > 1 else None

        def finish(value: Any, width: int, channel: Any, index: Any) -> Any:
            if scales is None:
                (factor,) = p.kernel.numbers("factor", factors.reshape(-1)[:1].tolist(), width)
            else:
                factor = p.kernel.load(scales, channel, width)
            return p.finish(rounded(cast(value, "float32") * factor), width, channel, index)

        return start, finish

    def _bias(self, p: Plan, channels: int) -> Array:
        """Take a following bias into the accumulator where it is in the accumulator's unit."""
        none = np.zeros(channels, np.int64)
        if len(p.region.members) < 2:
            return none
        anchor, member = p.region.members[:2]
        expr = p.items[member][1]
        if operator(expr) != "relax.add":
            return none
        own = key(p.items[anchor][0])
        others = [a for a in expr.args if not (is_var(a) and key(a) == own)]
        if self.scale is None:
            return self._sum(p, others, channels)
        # "full" is the bias of a result of one pixel: `w.bias` takes one value per channel only.
        if len(others) != 1 or leaf_kind(others[0], p.shape) not in ("channel", "full"):
            return none
        found = w.bias(others[0], p.sources, channels)
        if found is None or not np.allclose(found[1], self.scale, rtol=SCALE_TOLERANCE, atol=0):
            return none
        p.skip(member, anchor)
        return found[0].astype(np.int64)

    def _sum(self, p: Plan, others: list[Any], channels: int) -> Array:
        """Take a following int32 constant into the accumulator: sums wrap alike in any order."""
        array = number(others[0]) if len(others) == 1 else None
        if array is None or leaf_kind(others[0], p.shape) not in ("number", "channel"):
            return np.zeros(channels, np.int64)
        anchor, member = p.region.members[:2]
        p.skip(member, anchor)
        return np.broadcast_to(array.reshape(-1), channels).astype(np.int64)
