"""Find a linker and make one shared library out of object files, the same bytes every time."""

import functools
import importlib.util
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from npuc.errors import ToolchainError

_HINT = "install a C++ linker: pip install ziglang, or your system's g++ or clang"
_TRIPLES = {"x86_64": "x86_64-linux-gnu", "aarch64": "aarch64-linux-gnu"}
TIMEOUT = 600.0
"""Seconds one link may take: gigabytes of weights pass through it."""


@dataclass(frozen=True, slots=True)
class Linker:
    """A program that links shared libraries for one machine."""

    name: str
    version: str
    command: tuple[str, ...]
    options: tuple[str, ...] = ("-fPIC", "-Wl,--build-id=none", "-Wl,-z,noexecstack")
    """What keeps builds out of each other's bytes, in this program's spelling."""


def find_linker(arch: str = "", *, host: str = "") -> Linker:
    """Return the linker for `arch` ("" is this machine), the first of the system's or zig's.

    Raises `ToolchainError` where there is none.
    """
    host = host or os.uname().machine
    arch = arch or host
    if arch not in _TRIPLES:
        raise ToolchainError(f"npuc links for {', '.join(_TRIPLES)}, not for {arch}", hint=_HINT)
    triple = _TRIPLES[arch]
    names = ("g++", "clang++") if arch == host else (f"{triple}-g++",)
    for name in names:
        path = shutil.which(name)
        if path is not None:
            return Linker(name, _version((path, "--version")), (path,))
    if importlib.util.find_spec("ziglang") is not None:
        command = (sys.executable, "-m", "ziglang")
        version = _version((*command, "version"))
        # The linker alone: as a compiler, zig would first build a C library, for minutes.
        return Linker(
            "zig", version, (*command, "ld.lld"), ("--build-id=none", "-z", "noexecstack")
        )
    raise ToolchainError(
        f"no linker for {arch}: neither {' nor '.join(names)} nor ziglang", hint=_HINT
    )


def link(objects: Mapping[str, bytes], linker: Linker, timeout: float = TIMEOUT) -> bytes:
    """Link objects, in the order given, into a shared library and return its bytes.

    It runs in a private folder under fixed relative names, so nothing of this run is recorded in
    the result, and with HOME there, so nothing is left behind. What the code calls in the C
    library is found when TVM's runtime loads it. Raises `ToolchainError` with the linker's log.
    """
    with tempfile.TemporaryDirectory(prefix="npuc-link-") as folder:
        place = Path(folder)
        for name, data in objects.items():
            (place / name).write_bytes(data)
        command = [*linker.command, "-shared", "-s", *linker.options, "-o", "model.so", *objects]
        log = _run(command, place, timeout)
        result = place / "model.so"
        if not result.exists():
            raise ToolchainError(
                f"{linker.name} {linker.version} wrote no library:\n{log}", hint=_HINT
            )
        return result.read_bytes()


def _run(command: list[str], place: Path, timeout: float) -> str:
    environment = {**os.environ, "HOME": str(place), "TMPDIR": str(place), "LC_ALL": "C"}
    shown = " ".join(command)
    try:
        done = subprocess.run(
            command, cwd=place, env=environment, timeout=timeout, capture_output=True, check=False
        )
    except subprocess.TimeoutExpired as error:
        raise ToolchainError(f"the linker ran past {timeout:g} s: {shown}", hint=_HINT) from error
    except OSError as error:
        raise ToolchainError(f"the linker could not start: {shown}: {error}", hint=_HINT) from error
    log = (done.stdout + done.stderr).decode(errors="replace")
    if done.returncode != 0:
        raise ToolchainError(
            f"the linker failed with exit code {done.returncode}: {shown}\n{log}", hint=_HINT
        )
    return log


@functools.cache
def _version(command: tuple[str, ...]) -> str:
    try:
        done = subprocess.run(command, capture_output=True, timeout=60, check=True)
    except (OSError, subprocess.SubprocessError) as error:
        raise ToolchainError(f"{' '.join(command)} failed: {error}", hint=_HINT) from error
    return done.stdout.decode(errors="replace").splitlines()[0].strip()
