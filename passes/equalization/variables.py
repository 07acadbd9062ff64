"""One unknown factor per channel of a tensor, and what the operators say about which are equal."""

from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]


class Variables:
    """A union-find over factors: each is another's equal or its inverse, or held at 1.

    Number 0 is the factor that is held at 1.
    """

    def __init__(self) -> None:
        self._parent = [0]
        self._sign = [1]
        self._held = [True]

    def fresh(self, count: int) -> Array:
        """Return the numbers of new factors that nothing is known of."""
        first = len(self._parent)
        self._parent.extend(range(first, first + count))
        self._sign.extend([1] * count)
        self._held.extend([False] * count)
        return np.arange(first, first + count)

    def hold(self, ids: Array) -> None:
        """Let factors be 1."""
        for number in np.unique(ids):
            self._held[self._find(int(number))[0]] = True

    def join(self, one: Array, other: Array, sign: int = 1) -> None:
        """Let factors be equal pair by pair, or with `sign` -1 each the inverse of the other."""
        first, second = np.broadcast_arrays(one, other)
        count = len(self._parent)
        for pair in np.unique(first * count + second):  # as one number: many times faster to sort
            self._unite(*divmod(int(pair), count), sign)

    def known(self, ids: Array) -> Array:
        """Return factors with those that are equal by now under one number, 0 where held."""
        numbers, places = np.unique(ids, return_inverse=True)
        found = [self._find(int(number)) for number in numbers]
        least = [
            0 if self._held[root] else root if sign > 0 else int(number)
            for number, (root, sign) in zip(numbers, found, strict=True)
        ]
        return np.array(least, np.int64)[places].reshape(ids.shape)

    def resolved(self) -> tuple[Array, Array]:
        """Return each factor's representative, 0 where it is held, and its sign (1 or -1)."""
        found = [self._find(number) for number in range(len(self._parent))]
        roots = [0 if self._held[root] else root for root, _ in found]
        return np.array(roots), np.array([sign for _, sign in found])

    def _find(self, number: int) -> tuple[int, int]:
        path, sign = [], 1
        while self._parent[number] != number:
            path.append(number)
            number = self._parent[number]
        for step in reversed(path):  # from the root's side: each sign becomes one to the root
            sign *= self._sign[step]
            self._parent[step], self._sign[step] = number, sign
        return number, sign

    def _unite(self, first: int, second: int, sign: int) -> None:
        (one, left), (other, right) = self._find(first), self._find(second)
        relation = left * right * sign
        if one == other:
            if relation < 0:  # equal to its own inverse
                self._held[one] = True
            return
        self._parent[other], self._sign[other] = one, relation
        self._held[one] = self._held[one] or self._held[other]
