"""NVIDIA's CUDA compiler: find it, and make machine code of CUDA source."""

import functools
import os
import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

from npuc.errors import UsageError
from npuc.targets import vendor

ARCH = "NPUC_CUDA_ARCH"
DEFAULT_ARCH = "sm_80"
HINT = f"set {ARCH} to an architecture such as {DEFAULT_ARCH} (A100), sm_86, sm_89 or sm_90"


@dataclass(frozen=True, slots=True)
class Nvcc:
    """An nvcc on PATH."""

    path: str
    version: str

    def compile(self, source: str, arch: str, folder: Path, timeout: float) -> dict[str, bytes]:
        """Return ``kernels.ptx`` and ``kernels.cubin`` of CUDA source, for `arch` alone.

        Division, square roots and subnormals are IEEE's: no fast math. Raises `UsageError` for an
        architecture this nvcc does not know, `ToolchainError` where it fails.
        """
        known = _architectures(self.path)
        if known and arch not in known:
            raise UsageError(
                f"nvcc {self.version} compiles for {', '.join(known)}, not for {arch}", hint=HINT
            )
        folder.mkdir(parents=True, exist_ok=True)
        text, ptx, cubin = (folder / f"kernels.{kind}" for kind in ("cu", "ptx", "cubin"))
        text.write_text(source)
        virtual = arch.replace("sm_", "compute_")
        steps = (
            (ptx, ["--ptx", f"-arch={virtual}", "-std=c++17", "-O3", str(text)]),
            (cubin, ["--cubin", f"-arch={arch}", str(ptx)]),
        )
        for result, options in steps:
            command = [self.path, *options, "-o", str(result)]
            vendor.run("nvcc", command, produces=result, timeout=timeout)
        return {path.name: path.read_bytes() for path in (ptx, cubin)}


def find() -> Nvcc | None:
    """Return the nvcc on PATH, or None where there is none that runs."""
    path = shutil.which("nvcc")
    version = _version(path) if path else ""
    return Nvcc(path, version) if path and version else None


def architecture() -> str:
    """Return what `NPUC_CUDA_ARCH` names; raises `UsageError` where that is no architecture."""
    arch = os.environ.get(ARCH) or DEFAULT_ARCH
    if not re.fullmatch(r"sm_[1-9]\d{1,2}[af]?", arch):
        raise UsageError(f"{ARCH} is {arch!r}, which names no NVIDIA architecture", hint=HINT)
    return arch


@functools.cache
def _version(path: str) -> str:
    match = re.search(r"release [\d.]+, V([\d.]+)", _output(path, "--version"))
    return match[1] if match else ""


@functools.cache
def _architectures(path: str) -> tuple[str, ...]:
    return tuple(re.findall(r"^sm_\w+$", _output(path, "--list-gpu-code"), re.MULTILINE))


def _output(*command: str) -> str:
    try:
        done = subprocess.run(command, capture_output=True, timeout=60, check=True)
    except (OSError, subprocess.SubprocessError):
        return ""  # an nvcc that does not say its version is none that can be used
    return done.stdout.decode(errors="replace")
