"""Find where the numbers of one array come from among those of others, which never repeat."""

from collections.abc import Callable, Iterable, Mapping

import numpy as np
import torch
from torch import Tensor

from npuc.simulation.evaluator import Array, Values

Rule = Callable[[Values], Tensor]
"""A constant as a function of others."""


class Origin:
    """Arrays in which no number comes twice (see `unique`), by name."""

    def __init__(self, fresh: Mapping[str, Array]) -> None:
        self._names = list(fresh)
        self._flat = np.concatenate([array.reshape(-1) for array in fresh.values()])
        self._ends = np.cumsum([array.size for array in fresh.values()])
        self._order = np.argsort(self._flat)

    def of(self, array: Array | None, before: Array) -> Rule | None:
        """Return what gathers `array`, other than numbers that `before` has in the same place.

        None where there are others still, or nothing else.
        """
        if array is None or array.shape != before.shape:
            return None
        wanted = array.reshape(-1)
        place = np.searchsorted(self._flat, wanted, sorter=self._order)
        index = self._order[np.minimum(place, self._flat.size - 1)]
        found = self._flat[index] == wanted
        rest = np.where(found, 0, before.reshape(-1))
        if not found.any() or not np.array_equal(rest, np.where(found, 0, wanted)):
            return None
        return _gathered(self._names, index, found, rest, array.shape, self._ends)


def unique(shapes: Iterable[tuple[int, ...]], seed: int = 0) -> list[Array]:
    """Return positive float32 arrays in which no number comes twice, in random order.

    Every other float from 0.5 on, spread over [0.5, 2) where they are few. The last bit of each is
    set: none is a number of a shorter format.
    """
    wanted = list(shapes)
    sizes = [int(np.prod(shape)) for shape in wanted]
    total, span = sum(sizes), 2**23  # every other float in [0.5, 2)
    start = int(np.float32(0.5).view(np.int32)) + 1
    bits = start + 2 * np.arange(total, dtype=np.int32) * max(1, span // max(total, 1))
    flat = np.random.default_rng(seed).permutation(bits).view(np.float32)
    parts = np.split(flat, np.cumsum(sizes))  # and a last one, which is empty
    return [part.reshape(shape) for part, shape in zip(parts, wanted, strict=False)]


def half(array: Array, first: int) -> Array:
    """Return an array with zeros in the first half of its last axis, or in the second."""
    kept = array.copy()
    middle = array.shape[-1] // 2 if array.ndim else 0
    if array.ndim:
        kept[..., slice(middle) if first else slice(middle, None)] = 0
    return kept


def _gathered(
    live: list[str], index: Array, found: Array, rest: Array, shape: tuple[int, ...], ends: Array
) -> Rule:
    """Pick numbers out of the constants laid end to end, of those that are picked from."""
    owner = np.searchsorted(ends, index, side="right")
    used = np.unique(owner[found])
    sizes = np.diff(ends, prepend=0)
    shift = np.zeros(len(live), np.int64)
    shift[used] = np.cumsum([0, *sizes[used][:-1]]) - (ends - sizes)[used]
    picks = torch.tensor(np.where(found, index + shift[owner], 0))
    names = [live[i] for i in used]
    where, other = torch.tensor(found), torch.tensor(rest)

    def rule(values: Values) -> Tensor:
        flat = torch.cat([values[name].reshape(-1) for name in names])
        device = flat.device
        taken = flat[picks.to(device)]
        return torch.where(where.to(device), taken, other.to(device)).reshape(shape)

    return rule
