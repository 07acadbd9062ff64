"""Choose the cheapest items that together save enough: greedily, from every start, then pruned."""

from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]


def cover(excess: Array, saves: Array, costs: Array) -> tuple[int, ...] | None:
    """Return indices of items whose `saves` [items, outputs] sum to at least `excess` [outputs].

    Greedy by what is saved of the excess per cost, once plainly and once from each item that it
    is begun with; what is not needed is taken out again, the dearest first. The cheapest result
    counts, the first of equals. It is a heuristic for an NP-hard problem; None where all items
    together do not save enough.
    """
    if (excess <= 0).all():
        return ()
    if (saves.sum(axis=0) < excess).any():
        return None
    starts: list[tuple[int, ...]] = [(), *((i,) for i in range(len(costs)))]
    found = [
        _pruned(_greedy(excess, saves, costs, start), excess, saves, costs) for start in starts
    ]
    return min(found, key=lambda items: float(costs[list(items)].sum()))


def _greedy(excess: Array, saves: Array, costs: Array, start: tuple[int, ...]) -> tuple[int, ...]:
    chosen = list(start)
    left = excess - saves[chosen].sum(axis=0)
    free = np.ones(len(costs), bool)
    free[chosen] = False
    while (left > 0).any() and free.any():
        gains = np.minimum(saves, np.maximum(left, 0)).sum(axis=1) / costs
        best = int(np.argmax(np.where(free, gains, -1.0)))
        chosen.append(best)
        free[best] = False
        left = left - saves[best]
    return tuple(chosen)


def _pruned(items: tuple[int, ...], excess: Array, saves: Array, costs: Array) -> tuple[int, ...]:
    kept = list(items)
    for item in sorted(items, key=lambda i: (-costs[i], i)):
        less = [i for i in kept if i != item]
        if (saves[less].sum(axis=0) >= excess).all():
            kept = less
    return tuple(sorted(kept))
