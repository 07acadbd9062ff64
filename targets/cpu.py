"""The host CPU as a target: code that TVM and LLVM generate, run on this machine."""

from collections.abc import Mapping
from pathlib import Path

from npuc.passes.base import Pass
from npuc.profile import SHORT, Profile
from npuc.program import Program
from npuc.targets import tvm
from npuc.targets.base import Evidence, LowerOptions, Payload, Runner, Toolchain


class Cpu:
    """Compiles a program for a CPU and runs it here."""

    name = "cpu"

    def __init__(self) -> None:
        self.profile = Profile.load("cpu")

    def toolchain(self) -> Toolchain:
        """Say whether TVM and a linker are here; never raises."""
        return tvm.status()

    def evidence(self) -> Evidence:
        """Return "device": this machine is the device."""
        return "device"

    def legalise(self) -> tuple[Pass, ...]:
        """Return the passes that rewrite what TVM's importer cannot take."""
        return tvm.legalise()

    def numerics(self, precision: str) -> tuple[Pass, ...]:
        """Return nothing, but at "bf16" what rounds the factors of products.

        A CPU computes the program as it is written; its dot products of bfloat16 add up in
        float32.
        """
        from npuc.passes.round_floats import RoundFloats

        formats = self.profile.at(precision).float_formats if precision in SHORT else ()
        return tuple(RoundFloats(form) for form in formats)

    def lower(self, program: Program, options: LowerOptions, workdir: Path) -> Payload:
        """Compile; raises `UnsupportedError`, `ToolchainError` or `UsageError`."""
        done = tvm.lower(program, cpu=options.cpu, fallback=options.fallback)
        note = self.profile.get(f"notes.{options.precision}")
        return Payload(
            files=done.files,
            evidence=done.evidence,
            toolchain=done.toolchain,
            placement=done.placement,
            notes=(*done.notes, *([str(note)] if note else [])),
            settings={"cpu": options.cpu, "fallback": options.fallback},
            runs_here=done.runs_here,
        )

    def runner(self, files: Mapping[str, bytes], program: Program) -> Runner:
        """Return a runner; raises `ToolchainError` where this machine cannot run the code."""
        return tvm.load(files, program)
