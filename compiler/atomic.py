"""Write a file so that its name always holds either the old content or the whole new one."""

import errno
import fcntl
import os
import secrets
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from npuc.errors import OutputError

_SUFFIX = ".npuc-part"

# What the file system may answer to a write; any other OSError in the body (an input that cannot
# be read, say) is not about the output and passes through unchanged.
_WRITE_ERRORS = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO})


@contextmanager
def atomic_write(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield a temporary path beside `path`; on success sync it and rename it into place.

    On any exception, Ctrl-C included, the temporary file is removed and `path` is untouched.
    A process that is killed leaves a hidden ``.<name>.<random>.npuc-part``, which the next
    write of the same name removes (a lock tells it from one that is still being written).
    A symbolic link is followed, so the link stays; an existing file keeps its permissions.
    Raises `OutputError` where the output cannot be written.
    """
    target = Path(os.path.realpath(path))
    part = target.with_name(f"{_prefix(target)}{secrets.token_hex(6)}{_SUFFIX}")
    lock = -1
    try:
        _check(target)
        _remove_stale(target)
        lock = os.open(part, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o666)
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield part
        _publish(part, target)
    except OSError as error:
        if error.errno in _WRITE_ERRORS or error.filename in (part, str(part), str(target)):
            raise _explain(target, error) from error
        raise
    finally:
        if lock >= 0:
            part.unlink(missing_ok=True)  # missing once it was renamed
            os.close(lock)


def _prefix(target: Path) -> str:
    return f".{target.name[:60]}."  # cut: a name may have 255 bytes, and this adds 24


def _check(target: Path) -> None:
    if not target.parent.is_dir():
        raise OutputError(
            f"cannot write {target}: the folder {target.parent} does not exist",
            hint=f"mkdir -p {target.parent}",
        )
    if target.exists() and not stat.S_ISREG(target.stat().st_mode):
        kind = "a directory" if target.is_dir() else "not a regular file"
        raise OutputError(f"cannot write {target}: it is {kind}", hint="choose another output name")
    if target.exists() and not os.access(target, os.W_OK):
        raise OutputError(f"cannot write {target}: the file exists and is read-only")


def _publish(part: Path, target: Path) -> None:
    """Make the content durable, then visible, then make the new name durable."""
    if target.exists():
        part.chmod(stat.S_IMODE(target.stat().st_mode))
    with part.open("rb") as file:
        os.fsync(file.fileno())
    os.replace(part, target)
    folder = os.open(target.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def _remove_stale(target: Path) -> None:
    """Remove what killed writers of this name left; a live writer holds the lock on its file."""
    prefix = _prefix(target)
    for entry in os.scandir(target.parent):
        middle = entry.name[len(prefix) : -len(_SUFFIX)]
        ours = entry.name.startswith(prefix) and entry.name.endswith(_SUFFIX)
        if ours and len(middle) == 12 and entry.is_file(follow_symlinks=False):
            # Somebody else's leftover that we may not open or delete is no reason to fail.
            with suppress(OSError), open(entry.path, "r+b") as file:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                os.unlink(entry.path)


def _explain(target: Path, error: OSError) -> OutputError:
    reason = error.strerror or str(error)
    hints = {
        errno.ENOSPC: "free some space, or choose another folder with -o",
        errno.EDQUOT: "free some of your quota, or choose another folder with -o",
        errno.EFBIG: "raise the file size limit (ulimit -f), or choose another folder with -o",
        errno.EACCES: "check the folder's permissions, or choose another folder with -o",
        errno.EROFS: "the file system is read-only; choose another folder with -o",
    }
    return OutputError(f"cannot write {target}: {reason}", hint=hints.get(error.errno or 0, ""))
