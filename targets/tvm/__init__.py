"""Lower a static ONNX program to a host shared library through TVM, and run the result.

Importing this package loads neither tvm nor onnxruntime; `lower` and `load` do.
"""

from collections.abc import Mapping

from npuc.passes.base import Pass
from npuc.program import Program
from npuc.targets.base import Runner, Toolchain
from npuc.targets.tvm.lowered import Lowered

__all__ = ["Lowered", "legalise", "load", "lower", "status"]


def legalise() -> tuple[Pass, ...]:
    """Return the passes that rewrite what TVM's importer cannot take, before quantization."""
    from npuc.passes.decompose_rnn import DecomposeRnn

    return (DecomposeRnn(),)


def lower(program: Program, *, cpu: str = "native", fallback: str = "") -> Lowered:
    """Compile a static-shape program for a CPU.

    `cpu` is ``native``, ``x86-64-v3``, ``x86-64-v4``, ``aarch64`` or ``aarch64:<LLVM CPU name>``,
    with features after plus signs (``x86-64-v4+avx512vnni``; see `cpu_level.resolve`).
    `fallback` is "" or "ort": with "ort", operators TVM cannot be trusted with run in ONNX
    Runtime. Raises `UnsupportedError` listing every such operator where `fallback` is "",
    `ToolchainError` where the linker is missing or fails, `UsageError` for an unknown `cpu`.
    """
    from npuc.targets.tvm import segments

    return segments.lower(program, cpu=cpu, fallback=fallback)


def load(files: Mapping[str, bytes], program: Program) -> Runner:
    """Return a runner over the members `lower` wrote.

    Raises `ToolchainError` where this machine cannot run them, `ArtifactError` where they are
    damaged.
    """
    from npuc.targets.tvm import runtime

    return runtime.load(files, program)


def status() -> Toolchain:
    """Say whether TVM and a linker are installed, without importing TVM; never raises."""
    from importlib import metadata

    from npuc.errors import ToolchainError
    from npuc.targets.tvm.linker import find_linker

    try:
        version = metadata.version("apache-tvm")
    except metadata.PackageNotFoundError:
        return Toolchain("TVM", "", "apache-tvm is not installed", "pip install apache-tvm")
    try:
        linker = find_linker()
    except ToolchainError as error:
        return Toolchain("TVM", version, error.message, error.hint)
    return Toolchain("TVM", f"{version}, linked by {linker.name} ({linker.version})")
