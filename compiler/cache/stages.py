"""Keep what stages of a compile found by content: what two targets share is computed once."""

import io
from collections.abc import Callable
from pathlib import Path

import numpy as np

from npuc.gate.cache import Cache, Damaged
from npuc.kept import Arrays, Kept
from npuc.progress import Progress

_FOUND = "found.npz"


class Stages(Kept):
    """What stages found, for all processes that have this store.

    `versions` says what computes: npuc's code, libraries, the CPU, variables. It is asked again
    before anything is kept: what computed must not have changed meanwhile.
    """

    def __init__(self, store: Cache, versions: Callable[[], str], shown: Progress) -> None:
        super().__init__()
        self.store, self.versions, self.shown = store, versions, shown

    def arrays(self, stage: str, about: object, make: Callable[[], Arrays]) -> Arrays:
        """Do what `Kept.arrays` does. Two processes never compute the same at once."""
        versions = self.versions()
        key = self.key(stage, versions, about)
        if (found := self._get(stage, key)) is not None:
            return found

        def waiting(_: str) -> None:
            self.shown.stage(f"wait for another process ({stage})")

        with self.store.locked([key], waiting):
            if (found := self._get(stage, key)) is not None:
                return found
            made = make()
            if self.versions() == versions:
                with self.store.workplace(key) as folder:
                    _write(folder / _FOUND, made)
                    self.store.put_files(key, folder)
        return made

    def _get(self, stage: str, key: str) -> Arrays | None:
        try:
            place = self.store.files(key)
            if place is None:
                return None
            found = _read(place / _FOUND)
        except Damaged as error:
            self.shown.stage(f"what was kept is damaged ({error}): {stage} again")
            return None
        except FileNotFoundError:  # another process needed the room
            return None
        self.shown.stage(f"{stage}: take what was kept")
        return found


def _write(path: Path, arrays: Arrays) -> None:
    # By number, since a tensor's name may be no name of a file in an archive.
    numbered = {str(number): array for number, array in enumerate(arrays.values())}
    buffer = io.BytesIO()
    np.savez(buffer, names=np.array(list(arrays), np.str_), **numbered)  # type: ignore[arg-type]
    path.write_bytes(buffer.getvalue())


def _read(path: Path) -> Arrays:
    with np.load(io.BytesIO(path.read_bytes()), allow_pickle=False) as data:
        return {str(name): data[str(number)] for number, name in enumerate(data["names"])}
