"""Open zip archives that strangers wrote: nothing is inflated, shadowed or placed elsewhere."""

import zipfile
import zlib
from collections import Counter
from pathlib import Path

from npuc.errors import LoadError

MAX_MEMBERS = 1_000_000

MAX_RATIO, MAX_INFLATED = 100, 2**28
"""TorchScript deflates its source text: about 3:1, and kilobytes. Deflate can reach 1032:1."""


_AGAIN = "copy or download the file again; compare its size with the original's"


def open_zip(path: Path) -> zipfile.ZipFile:
    """Open a zip written by torch or npuc, which store members and compress at most source code.

    Raises `LoadError` for a truncated archive, members that inflate beyond reason or overlap
    (the two kinds of zip bomb), names that occur twice (two readers may pick different ones),
    absolute names and names with ``..``.
    """
    try:
        archive = zipfile.ZipFile(path)
    except (zipfile.BadZipFile, NotImplementedError, ValueError, EOFError) as error:
        raise LoadError(
            f"{path}: a zip archive that is truncated or damaged ({error})",
            hint=_AGAIN,
        ) from error
    faults = _faults(archive, path.stat().st_size)
    if faults:
        archive.close()
        raise LoadError(
            f"{path}: unsafe zip archive:\n  " + "\n  ".join(faults[:20]),
            hint="no tool that writes models makes such a file; get it from a source you trust",
        )
    return archive


def refuse_damage(archive: zipfile.ZipFile, path: Path) -> None:
    """Read every member once and raise `LoadError` naming the first whose checksum is wrong."""
    try:
        bad = archive.testzip()
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError) as error:
        raise LoadError(f"{path}: damaged zip archive: {error}", hint=_AGAIN) from error
    if bad is not None:
        raise LoadError(f"{path}: damaged: the checksum of {bad!r} is wrong", hint=_AGAIN)


def strip_root(names: list[str]) -> tuple[str, list[str]]:
    """Split off the folder that torch puts all members under: ``model/data.pkl`` → ``model``."""
    roots = {name.split("/", 1)[0] for name in names}
    if len(roots) != 1 or not all("/" in name for name in names):
        return "", names
    (root,) = roots
    return root, [name[len(root) + 1 :] for name in names]


def _faults(archive: zipfile.ZipFile, size: int) -> list[str]:
    infos = archive.infolist()
    if len(infos) > MAX_MEMBERS:
        return [f"{len(infos)} members"]
    faults = []
    for info in infos:
        stored = info.compress_type == zipfile.ZIP_STORED
        if not stored and info.file_size > MAX_RATIO * max(info.compress_size, 100):
            faults.append(
                f"{info.filename!r} inflates from {info.compress_size} to {info.file_size} bytes"
            )
        elif stored and info.compress_size != info.file_size:
            faults.append(f"{info.filename!r} is stored but declares two different sizes")
        if info.flag_bits & 0x1:
            faults.append(f"{info.filename!r} is encrypted")
        if not _plain(info.orig_filename):
            faults.append(f"{info.orig_filename!r} would be placed outside its folder")
    # torch's reader ignores case, Python's does not; names that differ only by case are a trap.
    for name, count in Counter(info.filename.lower() for info in infos).items():
        if count > 1:
            faults.append(f"{name!r} occurs {count} times")
    inflated = sum(i.file_size for i in infos if i.compress_type != zipfile.ZIP_STORED)
    if inflated > MAX_INFLATED:
        faults.append(f"compressed members inflate to {inflated} bytes")
    total = sum(info.compress_size for info in infos)
    if total > size:
        faults.append(f"members overlap: {total} bytes declared in a file of {size}")
    return faults


def _plain(name: str) -> bool:
    drive = len(name) > 1 and name[1] == ":"
    odd = name.startswith(("/", "\\")) or "\0" in name or "\\" in name
    return bool(name) and not drive and not odd and ".." not in name.split("/")
