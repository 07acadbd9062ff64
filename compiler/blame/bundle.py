"""Write what shows a fault into one small file, for a ticket with whoever can mend it."""

import io
import math
import platform
import sys
import zipfile
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

from npuc.atomic import atomic_write
from npuc.blame.minimal import Case
from npuc.errors import ParityError
from npuc.jsonable import canonical, plain
from npuc.program import Program, Tensors

LIMIT = 1 << 20
"""Bytes that a bundle should stay below: what ticket systems take without a thought."""

_PACKAGES = ("npuc", "numpy", "onnx", "onnx-ir", "onnxruntime", "torch", "apache-tvm")
_MAIN = "import sys\n\nfrom reproduce import main\n\nsys.exit(main())\n"


def packed(found: Case, about: Mapping[str, Any], environment: Mapping[str, Any]) -> bytes:
    """Return the bundle's bytes, the same for the same arguments.

    `about` says what is wrong: ``title`` in one line and ``lines`` of text; ``lowering``, with
    ``target`` and ``call``, where a compiler is at fault and has to run again.
    """
    least = found.ratio / 100 if found.ratio < math.inf else 1e-6
    settings = {
        "good": found.good is not None and not about.get("lowering"),
        "limit": least,  # between what is there and what rounding alone would leave
        "lowering": bool(about.get("lowering")),
        "target": about.get("target", ""),
        "call": plain(dict(about.get("call", {}))),
    }
    files = {
        "README.txt": _readme(found, about).encode(),
        "__main__.py": _MAIN.encode(),
        "bad.onnx": _model(found.bad),
        "environment.json": canonical(plain({**_here(), **environment})),
        "expected.npz": _npz(found.expected),
        "got.npz": _npz(found.got),
        "inputs.npz": _npz(found.inputs),
        "reproduce.py": (Path(__file__).parent / "reproduce.py").read_bytes(),
        "settings.json": canonical(settings),
    }
    if found.good is not None and not about.get("lowering"):
        files["good.onnx"] = _model(found.good)
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in sorted(files):
            archive.writestr(zipfile.ZipInfo(name), files[name], zipfile.ZIP_DEFLATED)
    return buffer.getvalue()


def write(path: Path, content: bytes) -> None:
    """Write a bundle as a whole or not at all; raises `OutputError`."""
    with atomic_write(path) as part:
        part.write_bytes(content)


def command(path: Path) -> str:
    """Return the command that shows the fault."""
    return f"python {path}"


def _model(program: Program) -> bytes:
    found = program.serialized()
    if found is None:
        raise ParityError("the smallest graph that shows the fault is larger than 2 GiB")
    return found


def _npz(tensors: Tensors) -> bytes:
    # Not numpy's own savez, which takes names as Python arguments.
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as archive:
        for name in sorted(tensors):
            part = io.BytesIO()
            np.lib.format.write_array(part, np.asarray(tensors[name]), allow_pickle=False)
            archive.writestr(zipfile.ZipInfo(f"{name}.npy"), part.getvalue())
    return buffer.getvalue()


def _here() -> dict[str, Any]:
    versions = {}
    for name in _PACKAGES:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return {
        "python": sys.version.split()[0],
        "platform": platform.platform(),
        "processor": platform.machine(),
        "versions": versions,
    }


def _readme(found: Case, about: Mapping[str, Any]) -> str:
    nodes = [n.op_type for n in found.bad.model.graph]
    needs = "npuc" if about.get("lowering") else "numpy and onnxruntime"
    weights = (
        "Weights and inputs are random: the fault does not need the real ones."
        if found.randomized
        else "Weights and inputs are the model's own."
    )
    lines = [
        str(about["title"]),
        "",
        *map(str, about.get("lines", ())),
        "",
        f"bad.onnx is the smallest graph that shows it: {', '.join(nodes)}.",
        "inputs.npz is what it is fed, expected.npz what it should answer, got.npz what it does.",
        *(["good.onnx is the same graph as it was before the step."] if found.good else []),
        weights,
        "",
        f"To see it: python THIS.zip   (needs {needs}; exits with 1 while the fault is there)",
    ]
    return "\n".join(lines) + "\n"


def small(found: Case, about: Mapping[str, Any], environment: Mapping[str, Any]) -> bool:
    """Whether a bundle stays below `LIMIT`."""
    return len(packed(found, about, environment)) < LIMIT
