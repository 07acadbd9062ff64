"""NVIDIA GPUs as a target: kernels that TVM writes and nvcc compiles, beside a host twin."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from npuc.errors import ArtifactError, ToolchainError, UnsupportedError
from npuc.passes.base import Pass
from npuc.profile import Profile
from npuc.program import Program
from npuc.targets import nvcc, tvm
from npuc.targets.base import Evidence, LowerOptions, Payload, Runner, Toolchain

FOLDER = "payload/cuda/"
SHARED_OBJECT, SOURCE, INDEX = "model.so", "kernels.cu", "index.json"
PTX, CUBIN = "kernels.ptx", "kernels.cubin"
REMEDY = "install NVIDIA's CUDA toolkit (developer.nvidia.com/cuda-downloads), nvcc on PATH"


@dataclass(frozen=True, slots=True)
class _Gpu:
    """The part of a payload that is for the GPU."""

    files: Mapping[str, bytes]
    evidence: Evidence
    said: str
    toolchain: Mapping[str, str]


class Cuda:
    """Compiles a program for a GPU as far as this machine can, and runs it there or on the host.

    The architecture is `NPUC_CUDA_ARCH`, by default ``sm_80``.
    """

    name = "cuda"

    def __init__(self) -> None:
        self.profile = Profile.load("cuda")

    def toolchain(self) -> Toolchain:
        """Say whether TVM, a linker and nvcc are here, and whether a GPU is; never raises."""
        from npuc.targets.tvm.gpu_runtime import no_gpu

        host = tvm.status()
        if host.missing:
            return host
        found = nvcc.find()
        if found is None:
            return Toolchain("TVM and nvcc", host.version, "nvcc is not on PATH", REMEDY)
        gpu = no_gpu() or "a GPU is here"
        return Toolchain("TVM and nvcc", f"TVM {host.version}; nvcc {found.version}; {gpu}")

    def evidence(self) -> Evidence:
        """Say what numbers rest on here: the GPU, nvcc's machine code, or the host twin."""
        from npuc.targets.tvm.gpu_runtime import no_gpu

        if nvcc.find() is None:
            return "twin"
        return "vendor-compiled" if no_gpu() else "device"

    def legalise(self) -> tuple[Pass, ...]:
        """Return the passes that rewrite what TVM's importer cannot take."""
        return tvm.legalise()

    def numerics(self, precision: str) -> tuple[Pass, ...]:
        """Return nothing: a GPU computes the program as it is written, in float32."""
        return ()

    def lower(self, program: Program, options: LowerOptions, workdir: Path) -> Payload:
        """Compile the host twin and the GPU's kernels.

        Raises `UnsupportedError` listing all operators that cannot be compiled, unless
        `options.fallback` lets the host run them; `UsageError` for an unknown architecture;
        `ToolchainError` where a compiler fails, or nvcc is missing and `options.vendor` is
        "require".
        """
        arch = nvcc.architecture()
        if options.vendor == "require" and nvcc.find() is None:
            raise ToolchainError("nvcc is not on PATH", hint=REMEDY)
        twin = tvm.lower(program, cpu=options.cpu, fallback=options.fallback)
        try:
            gpu = _lower(program, arch, options, workdir)
        except UnsupportedError as error:
            if not options.fallback or options.vendor == "require":
                raise
            reason = error.message.replace("\n", ";")
            gpu = _Gpu({}, "twin", f"no GPU kernels: {reason}; answers are the host twin's", {})
        return Payload(
            files={**twin.files, **gpu.files},
            evidence=gpu.evidence,
            toolchain={**twin.toolchain, **gpu.toolchain},
            vendor=gpu.said,
            placement=twin.placement,
            notes=(*twin.notes, f"kernels are for {arch}: {nvcc.ARCH} chooses another GPU"),
            settings={"cpu": options.cpu, "fallback": options.fallback, "arch": arch},
            runs_here=twin.runs_here,
        )

    def runner(self, files: Mapping[str, bytes], program: Program) -> Runner:
        """Return a runner on the GPU where there is one that takes the kernels, else the twin.

        Raises `ToolchainError` where neither runs here, `ArtifactError` for damaged members.
        """
        from npuc.targets.tvm import gpu_runtime

        if FOLDER + CUBIN not in files:
            return tvm.load(files, program)
        members = [FOLDER + name for name in (INDEX, SHARED_OBJECT, SOURCE, PTX, CUBIN)]
        missing = [name for name in members if name not in files]
        if missing:
            raise ArtifactError(f"the artifact has no {', '.join(missing)}")
        index, library, source, ptx, cubin = (files[name] for name in members)
        arch = str(json.loads(index)["arch"])
        if gpu_runtime.unusable(arch):
            return tvm.load(files, program)
        runner: Runner = gpu_runtime.load(library, source.decode(), cubin, ptx, arch, program)
        return runner


def _lower(program: Program, arch: str, options: LowerOptions, workdir: Path) -> _Gpu:
    """Compile for the GPU: with TVM to CUDA source, and with nvcc to machine code."""
    from npuc.targets.tvm import cpu_level, gpu, gpu_runtime, linker

    level = cpu_level.resolve(options.cpu)
    done = gpu.compile_program(program.model, arch, level, linker.find_linker(level.arch))
    index = json.dumps({"arch": arch})
    files = {SHARED_OBJECT: done.library, SOURCE: done.source.encode(), INDEX: index.encode()}
    files = {FOLDER + name: content for name, content in files.items()}
    found = None if options.vendor == "skip" else nvcc.find()
    if found is None or not done.source:
        why = "--no-vendor" if options.vendor == "skip" else "nvcc is not on PATH"
        why = why if done.source else "the program has no kernels"
        said = f"CUDA source for {arch}, not compiled: {why}; answers are the host twin's"
        return _Gpu(files, "twin", said, {})
    made = found.compile(done.source, arch, workdir / "cuda", options.timeout)
    files |= {FOLDER + name: content for name, content in made.items()}
    reason = gpu_runtime.unusable(arch)
    compiled = f"compiled for {arch} by nvcc {found.version}"
    if reason:
        said = f"{compiled}, NOT run: {reason}; answers are the host twin's"
    else:
        said = f"{compiled}; answers are those of {gpu_runtime.device_name()}"
    evidence: Evidence = "vendor-compiled" if reason else "device"
    return _Gpu(files, evidence, said, {"nvcc": found.version})
