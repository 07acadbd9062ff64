"""What one model's folder holds, and how it is read: numpy only, for NNCF's Python reads it too.

calibration.npz and held_out.npz have one array per call and input, named `INDEX.INPUT`, so that a
call is read when it is asked for and samples take no memory worth counting.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, overload

import numpy as np

Array = np.ndarray[Any, Any]
Call = dict[str, Array]

CALIBRATION, HELD_OUT, LABELS, FACTS = "calibration.npz", "held_out.npz", "labels.npy", "facts.json"


class Calls(Sequence[Call]):
    """The first `count` calls of a file (all by default), each read anew when it is asked for."""

    def __init__(self, path: Path, count: int | None = None) -> None:
        self._file = np.load(path)
        self._names = sorted({key.partition(".")[2] for key in self._file.files})
        stored = len(self._file.files) // len(self._names)
        self._count = stored if count is None else count
        if not 0 < self._count <= stored:
            raise SystemExit(f"{path} holds {stored} calls, {self._count} were asked for")

    def __len__(self) -> int:
        return self._count

    @overload
    def __getitem__(self, index: int) -> Call: ...
    @overload
    def __getitem__(self, index: slice) -> list[Call]: ...
    def __getitem__(self, index: int | slice) -> Call | list[Call]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(self._count))]
        if not -self._count <= index < self._count:
            raise IndexError(index)
        return {name: self._file[f"{index % self._count:05}.{name}"] for name in self._names}

    def __iter__(self) -> Iterator[Call]:
        return (self[index] for index in range(self._count))


def write(path: Path, calls: Sequence[Call]) -> None:
    """Store calls so that `Calls` can read them."""
    arrays = {
        f"{i:05}.{name}": array for i, call in enumerate(calls) for name, array in call.items()
    }
    np.savez(path, **arrays)  # type: ignore[arg-type, unused-ignore]
