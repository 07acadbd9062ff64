"""Keep artifacts and their verdicts by content, for all processes of a user.

An entry is a folder named by its key (`npuc.gate.identity`), which appears as a whole or not at
all: it is made beside and renamed. A process that was killed leaves a folder of another name,
which the next one that holds the key's lock removes.
"""

import contextlib
import hashlib
import json
import os
import re
import secrets
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from npuc.errors import OutputError, UsageError
from npuc.gate import locks
from npuc.gate.digests import Digests, sha256
from npuc.jsonable import canonical
from npuc.report import Report

SIZE = 2 << 30
"""Bytes that the cache may take; ``NPUC_CACHE_SIZE`` says otherwise."""

ARTIFACT, VERDICT, USED, LISTED = "artifact.npuc", "verdict.json", "used", "files.json"
_PART, _TRASH = ".part-", ".trash-"
_UNITS = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}


@dataclass(frozen=True, slots=True)
class Kept:
    """What an entry holds."""

    report: Report
    artifact: Path


class Damaged(Exception):
    """An entry is there and is not what was written; says why."""


class Cache:
    """A folder of entries. `limit` bounds their bytes: what was used longest ago goes first."""

    def __init__(self, folder: Path, limit: int | None = None) -> None:
        self.folder = folder
        self.limit = _limit() if limit is None else limit
        self.entries, self.locks = folder / "entries", folder / "locks"
        self.findings = folder / "findings"
        with self._writing():
            for place in (self.entries, self.locks, self.findings):
                place.mkdir(parents=True, exist_ok=True)

    @classmethod
    def own(cls) -> "Cache":
        """Return the user's: ``$NPUC_CACHE``, or ``npuc/gate`` in the cache folder."""
        if chosen := os.environ.get("NPUC_CACHE"):
            return cls(Path(chosen))
        base = os.environ.get("XDG_CACHE_HOME")
        return cls((Path(base) if base else Path.home() / ".cache") / "npuc" / "gate")

    def digests(self) -> Digests:
        """Return digests that remember in this cache."""
        return Digests(self.folder / "digests.json")

    def get(self, key: str) -> Kept | None:
        """Return an entry, None where there is none; raises `Damaged`. Loads no heavy library."""
        place = self.entries / key
        try:
            data = json.loads((place / VERDICT).read_bytes())
            body = data["body"]
            if hashlib.sha256(canonical(body)).hexdigest() != data["sha256"]:
                raise Damaged(f"{VERDICT} has another hash than it says")
            if body["key"] != key or sha256(place / ARTIFACT) != body["artifact"]:
                raise Damaged(f"{ARTIFACT} is not the one that was compared")
            report = _report(body["report"])
            os.utime(place / USED)
        except FileNotFoundError as error:
            if place.is_dir():
                raise Damaged(f"{Path(str(error.filename)).name} is missing") from error
            return None
        except (OSError, ValueError, KeyError, TypeError, UsageError) as error:
            raise Damaged(f"{type(error).__name__}: {error}") from error
        return Kept(report, place / ARTIFACT)

    def put(self, key: str, report: Report, artifact: Path) -> Kept:
        """Keep a verdict and move its artifact here; the caller holds the key's lock."""
        place, part = self.entries / key, self._part(key)
        with self._writing():
            part.mkdir()
            os.replace(artifact, part / ARTIFACT)
            data = report.to_json()
            body = {"key": key, "artifact": sha256(part / ARTIFACT), "report": data}
            digest = hashlib.sha256(canonical(body)).hexdigest()
            _write(part / VERDICT, canonical({"sha256": digest, "body": body}))
            _write(part / USED, b"")
            _synced(part / ARTIFACT)
            if place.exists():  # it was damaged
                self._remove(place)
            os.rename(part, place)
        return Kept(report, place / ARTIFACT)

    def files(self, key: str) -> Path | None:
        """Return the folder of files kept under a key; raises `Damaged` where one is another."""
        place = self.entries / key
        try:
            for name, digest in json.loads((place / LISTED).read_bytes()).items():
                if sha256(place / name) != digest:
                    raise Damaged(f"{name} is not what was kept")
            os.utime(place / USED)
        except FileNotFoundError as error:
            if place.is_dir():
                raise Damaged(f"{Path(str(error.filename)).name} is missing") from error
            return None
        except (OSError, ValueError, AttributeError, TypeError) as error:
            raise Damaged(f"{type(error).__name__}: {error}") from error
        return place

    def put_files(self, key: str, folder: Path) -> None:
        """Keep the files of a folder, by moving it here; the caller holds the key's lock.

        `folder` is a `workplace`.
        """
        with self._writing():
            names = sorted(path.name for path in folder.iterdir())
            listed = {name: sha256(folder / name) for name in names}
            _write(folder / LISTED, canonical(listed))
            _write(folder / USED, b"")
            for name in names:
                _synced(folder / name)
            if (place := self.entries / key).exists():  # it was damaged
                self._remove(place)
            os.rename(folder, place)

    @contextmanager
    def locked(self, keys: Sequence[str], waiting: Callable[[str], None]) -> Iterator[None]:
        """Hold the locks of keys, and remove what killed processes left of them."""
        with self._writing():
            stack = contextlib.ExitStack()
            stack.enter_context(locks.held(self.locks, keys, waiting))
        with stack:
            for key in keys:
                for part in self.entries.glob(f"{_PART}{key}-*"):
                    shutil.rmtree(part, ignore_errors=True)
            yield

    @contextmanager
    def workplace(self, key: str) -> Iterator[Path]:
        """Make a folder to compile in, on the same file system; the caller holds the key's lock."""
        with self._writing():
            place = self._part(key)
            place.mkdir()
        try:
            yield place
        finally:
            shutil.rmtree(place, ignore_errors=True)

    def trim(self, keep: Sequence[str] = ()) -> None:
        """Remove entries until the others fit in `limit`, and what killed processes left.

        Those in `keep`, and those that other processes are at work on, stay.
        """
        for trash in self.entries.glob(f"{_TRASH}*"):
            shutil.rmtree(trash, ignore_errors=True)
        for part in self.entries.glob(f"{_PART}*"):
            with locks.tried(self.locks, part.name.split("-")[1]) as free:
                if free:
                    shutil.rmtree(part, ignore_errors=True)
        found = sorted(self._sized())
        total = sum(size for _, size, _ in found)
        for _, size, place in found:
            if total <= self.limit:
                return
            if place.name in keep:
                continue
            with locks.tried(self.locks, place.name) as free:
                if free:
                    self._remove(place)
                    total -= size

    def _sized(self) -> Iterator[tuple[int, int, Path]]:
        """Yield every entry: when it was last used, its bytes, its place."""
        for place in self.entries.iterdir():
            if not place.name.startswith("."):
                with contextlib.suppress(FileNotFoundError):  # another process removed it
                    size = sum(file.stat().st_size for file in place.iterdir())
                    used = place / USED
                    yield (used if used.exists() else place).stat().st_mtime_ns, size, place

    def _remove(self, place: Path) -> None:
        """Remove an entry: nobody sees half of it."""
        trash = self.entries / f"{_TRASH}{secrets.token_hex(6)}"
        with contextlib.suppress(FileNotFoundError):
            os.rename(place, trash)
        shutil.rmtree(trash, ignore_errors=True)

    def _part(self, key: str) -> Path:
        return self.entries / f"{_PART}{key}-{secrets.token_hex(6)}"

    @contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise OutputError(
                f"cannot write to the cache {self.folder}: {error.strerror or error}",
                hint="set NPUC_CACHE to a folder that can be written, or use --no-cache",
            ) from error


def _report(data: Any) -> Report:
    from npuc.outlets import reading

    return reading.report(data)


def _limit() -> int:
    text = os.environ.get("NPUC_CACHE_SIZE", "")
    if not text:
        return SIZE
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMGT]?)(?:i?B)?", text.strip(), re.IGNORECASE)
    if match is None:
        raise UsageError(f"NPUC_CACHE_SIZE={text!r} is no size", hint="2G, 500M or bytes")
    return int(float(match[1]) * _UNITS[match[2].upper()])


def _write(path: Path, data: bytes) -> None:
    path.write_bytes(data)
    _synced(path)


def _synced(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())
