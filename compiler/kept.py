"""Keep what a stage of a compile found, so that the next target with equal inputs takes it."""

import hashlib
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from npuc.jsonable import canonical

Array = np.ndarray[Any, Any]
Arrays = Mapping[str, Array]


class Kept:
    """What stages found in this process. Nothing is known by a name, a place or a date.

    `npuc.cache.stages` has one for all processes of a user.
    """

    def __init__(self) -> None:
        self._known: dict[str, Arrays] = {}

    def arrays(self, stage: str, about: Any, make: Callable[[], Arrays]) -> Arrays:
        """Return arrays by name as `make` gives them, or as it gave them where `about` was equal.

        `about` is JSON that says all that decides the result: hashes of contents, and facts.
        """
        key = self.key(stage, about)
        if key not in self._known:
            self._known[key] = make()
        return self._known[key]

    @staticmethod
    def key(*about: Any) -> str:
        """Return a hash of JSON values."""
        return hashlib.sha256(canonical({"stage": about})).hexdigest()
