"""Let one process at a time work on a key; a lock goes with its process, however that ends."""

import contextlib
import fcntl
import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path


@contextlib.contextmanager
def held(folder: Path, keys: Iterable[str], waiting: Callable[[str], None]) -> Iterator[None]:
    """Hold the locks of some keys; `waiting` is called before another process is waited for.

    They are taken in one order by all, so that no two processes wait for each other.
    """
    with contextlib.ExitStack() as stack:
        for key in sorted(set(keys)):
            if not stack.enter_context(_one(folder / key, block=False)):
                waiting(key)
                stack.enter_context(_one(folder / key, block=True))
        yield


@contextlib.contextmanager
def tried(folder: Path, key: str) -> Iterator[bool]:
    """Hold a key's lock if nobody else does, and say whether."""
    with _one(folder / key, block=False) as got:
        yield got


@contextlib.contextmanager
def _one(path: Path, block: bool) -> Iterator[bool]:
    lock = _taken(path, block)
    try:
        yield lock is not None
    finally:
        if lock is not None:
            path.unlink(missing_ok=True)  # while it is held: nobody else may hold this file
            os.close(lock)


def _taken(path: Path, block: bool) -> int | None:
    """Lock a file of this name; it may be removed by whoever held it before, then a new one."""
    while True:
        lock = os.open(path, os.O_CREAT | os.O_RDWR, 0o666)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | (0 if block else fcntl.LOCK_NB))
            if _same(lock, path):
                return lock
        except BlockingIOError:
            os.close(lock)
            return None
        except BaseException:
            os.close(lock)
            raise
        os.close(lock)


def _same(lock: int, path: Path) -> bool:
    try:
        found = path.stat()
    except FileNotFoundError:
        return False
    own = os.fstat(lock)
    return (own.st_dev, own.st_ino) == (found.st_dev, found.st_ino)
