"""What may lie in an artifact, under which names."""

import zipfile
from collections import Counter
from collections.abc import Collection
from pathlib import Path

from npuc.errors import ArtifactError

MANIFEST = "manifest.json"
MODEL, WEIGHTS = "model/program.onnx", "model/program.safetensors"
REFERENCE, PARITY = "reference.safetensors", "parity.json"
PLACES = ("model/", "payload/", "vendor/", REFERENCE, PARITY)
"""Where members may lie. All sort after the manifest, so sorted means manifest first."""


def check_names(names: Collection[str], source: Path) -> None:
    """Raise `ArtifactError` naming every member that could escape, collide or be ambiguous."""
    faults = [f"{name!r} is {unsafe(name)}" for name in names if unsafe(name)]
    folded: dict[str, str] = {}
    for name in names:
        other = folded.setdefault(name.lower(), name)
        if other != name:
            faults.append(f"{name!r} and {other!r} are one file on some systems")
        faults += [f"{name!r} lies in {up!r}" for up in map(str, Path(name).parents) if up in names]
    if faults:
        raise ArtifactError(f"{source} has unsafe members:\n  " + "\n  ".join(faults))


def unsafe(name: str) -> str:
    """Say why a member may not have this name; "" where it may."""
    parts = name.split("/")
    if name.startswith("/") or name[1:2] == ":":
        return "an absolute path"
    if ".." in parts:
        return "a path out of the artifact"
    if not name.isascii() or not name.isprintable() or set(name) & set('\\:*?"<>|'):
        return "a name that some systems cannot hold"
    if any(part in ("", ".") or part[-1] in " ." for part in parts):
        return "a path with an empty or ambiguous part"
    if len(name) > 1000:
        return "a name of more than 1000 characters"
    if not any(name == p or (p.endswith("/") and name.startswith(p)) for p in PLACES):
        return f"outside {', '.join(PLACES)}"
    return ""


def zip_faults(path: Path, members: Collection[str]) -> tuple[str, ...]:
    """Say how a zip's listing departs from the members it should have; () where unreadable."""
    try:
        with zipfile.ZipFile(path) as file:
            infos = file.infolist()
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError, EOFError):
        return ()
    listed, seen = {MANIFEST, *members}, Counter(info.filename for info in infos)
    faults = []
    for info in infos:
        name, count = info.filename, seen[info.filename]
        if count > 1:
            faults.append(f"{name!r} occurs {count} times")
        elif name != MANIFEST and unsafe(name):
            faults.append(f"{name!r} is {unsafe(name)}")
        elif name not in listed:
            faults.append(f"{name!r} is not listed in the manifest")
        elif info.compress_type != zipfile.ZIP_STORED:
            faults.append(f"{name!r} is compressed")
    faults += [f"{name!r} is missing" for name in sorted(listed - set(seen))]
    return tuple(dict.fromkeys(faults))[:20]
