"""Quotients by a known scale in two operations, where all codes are those of a division.

With h = 1 / scale rounded and r the rest of it, x·h + x·r is within 2⁻⁴⁷ of the quotient: rounded
it may differ from the rounded quotient, but hardly ever beside one of the few hundred ties at which
codes change. Both grow with x, so that comparing them there says it of every x.
"""

import functools
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]

BESIDE = 3
"""Numbers on either side of a tie that are tried: both change within two of them."""


@functools.cache
def factors(scale: np.float32, low: int, high: int) -> tuple[np.float32, np.float32] | None:
    """Return h and r, float32; None where an integer of `low` to `high` would be another one."""
    inverse = 1 / np.float64(scale)
    head = np.float32(inverse)
    rest = np.float32(inverse - np.float64(head))
    return (head, rest) if exact(scale, head, rest, low, high) else None


def exact(scale: np.float32, head: np.float32, rest: np.float32, low: int, high: int) -> bool:
    """Whether x·head + x·rest rounds to the integer x / scale does, from `low` to `high`."""
    below = above = ((np.arange(low, high) + 0.5) * np.float64(scale)).astype(np.float32)
    tried = [below]
    for _ in range(BESIDE):
        below = np.nextafter(below, np.float32(-np.inf))
        above = np.nextafter(above, np.float32(np.inf))
        tried += [below, above]
    x = np.concatenate(tried)
    return bool((np.rint(x / scale) == np.rint(fused(x, head, x * rest))).all())


def fused(a: Array, b: np.float32, c: Array) -> Array:
    """Return a·b + c of float32, rounded once.

    The product is exact in float64. The sum's last bit is made odd where something is lost of it:
    rounding it again is then rounding the exact sum (Boldo and Melquiond 2008, "Emulation of a FMA
    and correctly rounded sums: proved algorithms using rounding to odd").
    """
    product, added = a.astype(np.float64) * np.float64(b), c.astype(np.float64)
    total = product + added
    part = total - product
    lost = (product - (total - part)) + (added - part)
    even = (total.view(np.int64) & 1) == 0
    odd = np.nextafter(total, np.where(lost > 0, np.inf, -np.inf))
    result: Array = np.where((lost != 0) & even, odd, total).astype(np.float32)
    return result
