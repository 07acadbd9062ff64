"""Keep what a long calibration has seen in a file, so that it goes on where it was stopped."""

import hashlib
import io
import json
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from npuc.atomic import atomic_write
from npuc.errors import ArtifactError
from npuc.program import Tensors

Array = np.ndarray[Any, Any]
EVERY = 20.0
"""Seconds between two saves: little work is lost, and saving takes a hundredth of the time."""
_ABOUT = "npuc"


class Stateful(Protocol):
    """What can be kept and restored (see `npuc.quantization.streaming.Watcher`)."""

    def state(self) -> Mapping[str, Array]:
        """Return all that was seen, as arrays."""
        ...

    def restore(self, state: Mapping[str, Array], /) -> None:
        """Go on from what `state` returned."""
        ...


class Checkpoint:
    """One file for one job. `key` says which: a file of another job is not resumed but replaced.

    `every` is the least number of seconds between two saves.
    """

    def __init__(self, path: Path, key: str, every: float = EVERY) -> None:
        self.path, self.key, self.every = path, key, every
        self._saved = time.monotonic()

    def resume(self, watchers: Mapping[str, Stateful]) -> int:
        """Restore the watchers; returns how many calls they have seen, 0 to begin anew.

        Raises `ArtifactError` where the file is damaged.
        """
        if not self.path.exists():
            return 0
        try:
            with self.path.open("rb") as file, np.load(file, allow_pickle=False) as data:
                about = json.loads(str(data[_ABOUT]))
                if about["key"] != self.key or about["names"] != list(watchers):
                    return 0
                states: list[dict[str, Array]] = [{} for _ in watchers]
                for key in data.files:
                    index, _, field = key.partition("/")
                    if key != _ABOUT:
                        states[int(index)][field] = data[key]
                for watcher, state in zip(watchers.values(), states, strict=True):
                    watcher.restore(state)
                return int(about["done"])
        except Exception as error:  # zipfile, numpy and json each have their own
            raise ArtifactError(
                f"{self.path}: not an interrupted calibration: {error}", hint=f"rm {self.path}"
            ) from error

    def tick(self, done: int, watchers: Mapping[str, Stateful]) -> None:
        """Save where the last time is long ago."""
        if time.monotonic() - self._saved >= self.every:
            self.save(done, watchers)

    def save(self, done: int, watchers: Mapping[str, Stateful]) -> None:
        """Write the file whole, or leave the old one; raises `OutputError` where it cannot."""
        about = {"key": self.key, "done": done, "names": list(watchers)}
        arrays = {
            f"{index}/{field}": array
            for index, watcher in enumerate(watchers.values())
            for field, array in watcher.state().items()
        }
        buffer = io.BytesIO()
        np.savez_compressed(buffer, **{_ABOUT: np.array(json.dumps(about)), **arrays})  # type: ignore[arg-type]
        with atomic_write(self.path) as part:
            part.write_bytes(buffer.getvalue())
        self._saved = time.monotonic()

    def remove(self) -> None:
        """Delete the file: the job is done."""
        self.path.unlink(missing_ok=True)


def key(parts: Iterable[str], samples: Iterable[Tensors]) -> str:
    """Return a hash of a job: whatever `parts` say, and every byte of the samples."""
    found = hashlib.sha256(json.dumps(list(parts)).encode())
    for call in samples:
        for name in sorted(call):
            array = np.ascontiguousarray(call[name])
            found.update(f"{name} {array.dtype} {array.shape}".encode())
            found.update(array.tobytes())
    return found.hexdigest()
