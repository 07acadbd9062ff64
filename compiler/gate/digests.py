"""Hash files and folders by content, and remember it as long as the file system says no change."""

import contextlib
import hashlib
import json
import os
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from npuc.atomic import atomic_write
from npuc.errors import OutputError, UsageError

RACY = 2_000_000_000
"""Nanoseconds: a file changed so shortly before it is hashed may change again without its times
showing it, on file systems that keep coarse ones. It is hashed anew the next time."""

MOST = 4096
"""Digests that are remembered; what was not asked for in a run goes first."""

_CHUNK = 1 << 20
_SKIPPED = frozenset({"__pycache__", "node_modules", "site-packages"})


class Digests:
    """SHA-256 of contents. With a `memo` file, contents are read once per change of a file.

    What counts as no change are equal paths, sizes, inodes, and times of change of both kinds: of
    content, and of the inode, which programs cannot set back.
    """

    def __init__(self, memo: Path | None = None) -> None:
        self.memo = memo
        self._known: dict[str, str] = {}
        self._used: dict[str, str] = {}
        if memo is not None:
            with contextlib.suppress(OSError, ValueError):  # forgotten: all is hashed again
                read = json.loads(memo.read_text())
                self._known = {str(k): str(v) for k, v in read.items()}
        self._before = dict(self._known)

    def of(self, path: Path, suffix: str = "") -> str:
        """Return the digest of a file, or of a folder: relative names and contents.

        Of a folder only files with `suffix`; hidden folders, virtual environments and caches of
        Python's are left out. Raises `UsageError` where something cannot be read.
        """
        try:
            files = [path] if not path.is_dir() else sorted(_files(path, suffix))
            root = path if path.is_dir() else path.parent
            return self._remembered(files, lambda: _content(root, files))
        except OSError as error:
            raise UsageError(f"cannot read {error.filename or path}: {error.strerror}") from error

    def once(self, path: Path, what: str, find: Callable[[Path], str]) -> str:
        """Return `find(path)`, which depends on the file's content alone; `what` names it."""
        try:
            return self._remembered([path], lambda: find(path), what)
        except OSError as error:
            raise UsageError(f"cannot read {path}: {error.strerror}") from error

    def save(self) -> None:
        """Write what is remembered; a cache that cannot be written forgets, and that is all."""
        if self.memo is None or self._used.items() <= self._before.items():
            return
        kept = {**self._before, **self._used} if len(self._before) < MOST else self._used
        with contextlib.suppress(OutputError), atomic_write(self.memo) as part:
            part.write_text(json.dumps(kept))

    def _remembered(self, files: list[Path], find: Callable[[], str], what: str = "") -> str:
        stats = [(str(f.absolute()), s) for f in files for s in (f.stat(),)]
        state = [(n, s.st_size, s.st_mtime_ns, s.st_ctime_ns, s.st_ino) for n, s in stats]
        key = hashlib.sha256(repr((what, state)).encode()).hexdigest()
        if key in self._known:
            self._used[key] = self._known[key]
            return self._known[key]
        found = find()
        newest = max((max(s.st_mtime_ns, s.st_ctime_ns) for _, s in stats), default=0)
        if newest < time.time_ns() - RACY:
            self._known[key] = self._used[key] = found
        return found


def _files(folder: Path, suffix: str) -> Iterator[Path]:
    for place, folders, names in os.walk(folder):
        folders[:] = [
            name
            for name in folders
            if not name.startswith(".")
            and name not in _SKIPPED
            and not os.path.exists(os.path.join(place, name, "pyvenv.cfg"))
        ]
        for name in names:
            if name.endswith(suffix) and not name.endswith(".pyc"):
                yield Path(place, name)


def _content(root: Path, files: Iterable[Path]) -> str:
    found = hashlib.sha256()
    for file in files:
        name = str(file.relative_to(root)) if file != root and len(root.parts) else file.name
        found.update(f"{name}\0{sha256(file)}\n".encode())
    return found.hexdigest()


def sha256(path: Path) -> str:
    """Return the SHA-256 of a file's content."""
    found = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            found.update(chunk)
    return found.hexdigest()
