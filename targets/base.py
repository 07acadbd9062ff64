"""What a target adapter must offer, and the values that cross that boundary."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol

from npuc.passes.base import Pass
from npuc.profile import Profile
from npuc.program import Program, Tensors

Evidence = Literal["twin", "vendor-compiled", "vendor-simulator", "device"]
"""What a number rests on, weakest first: npuc's numerics model on the host, the vendor's compiler
accepted the model, the vendor's simulator ran it, the chip ran it."""


class Runner(Protocol):
    """Anything that answers: eager torch, an ONNX graph, a twin, a simulator, a device."""

    @property
    def name(self) -> str:
        """What ran, for the report."""
        ...

    def __call__(self, inputs: Tensors) -> Tensors:
        """Run one call. Outputs are by name and must not be overwritten by the next call."""
        ...


@dataclass(frozen=True, slots=True)
class Toolchain:
    """Whether a target's vendor compiler can run here. `missing` is empty when it can."""

    name: str
    version: str = ""
    missing: str = ""
    remedy: str = ""


@dataclass(frozen=True, slots=True)
class Handover:
    """The model as vendors' tools take it.

    `program` is float32 with fixed shapes, after the target's legalisation; `calibration` are
    calls that fit its ports. `quantized` is the same with QuantizeLinear and DequantizeLinear,
    where the precision asks for it. `archive` is the torch.export archive of the original where
    there is one.
    """

    program: Program
    calibration: Sequence[Tensors] = ()
    precision: str = "float"
    quantized: Program | None = None
    archive: Path | None = None


@dataclass(frozen=True, slots=True)
class Built:
    """What a vendor's tool made: files by name, beside those of the kit, its log among them.

    `said` is one line on what it did and for what; `evidence` is what that is worth, where it is
    not what the tool's success is always worth (`Tool.evidence`).
    """

    files: Mapping[str, bytes]
    said: str
    version: str
    evidence: Evidence | None = None


class Tool(Protocol):
    """A vendor's compiler, as npuc drives it. A kit is a folder of files: names have no path."""

    @property
    def name(self) -> str:
        """What reports call it."""
        ...

    @property
    def evidence(self) -> Evidence:
        """What its own success is worth."""
        ...

    def find(self, profile: Profile) -> Toolchain:
        """Say whether it can run here; never raises, never imports it."""
        ...

    def kit(self, job: Handover, profile: Profile) -> Mapping[str, bytes]:
        """Return the files that the tool's documented use needs, and a README.txt on that use."""
        ...

    def lacks(self, kit: Mapping[str, bytes]) -> str:
        """Say what the tool needs and the kit does not have, and how to get it; or ""."""
        ...

    def build(self, folder: Path, profile: Profile, options: "LowerOptions") -> Built:
        """Run the tool on the kit in `folder`.

        The kit may come out of a stranger's artifact: scripts in it are never run, but written
        anew. Raises `ToolchainError` where the tool fails, in whatever way.
        """
        ...


@dataclass(frozen=True, slots=True)
class LowerOptions:
    """The user's choices that concern lowering.

    `cpu` is a CPU level or LLVM CPU name for host code. `fallback` is "" or "ort". `vendor` says
    what to do with a vendor's compiler: "use" it where it is here, "require" it, or "skip" it.
    """

    precision: str = "float"
    cpu: str = "native"
    fallback: str = ""
    vendor: Literal["use", "require", "skip"] = "use"
    timeout: float = 3600.0
    handover: Handover | None = None


@dataclass(frozen=True, slots=True)
class Payload:
    """What lowering produced.

    `files` are artifact members by path (under ``payload/`` for the host artifact, ``vendor/``
    for the vendor's binary or hand-over kit). `runs_here` is False where host code is for another
    CPU than this machine's. `placement` maps each operator kind to where it
    runs. `vendor` says in one line what the vendor's compiler did, or that it was not run.
    """

    files: Mapping[str, bytes]
    evidence: Evidence
    toolchain: Mapping[str, str]
    vendor: str = ""
    placement: Mapping[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    settings: Mapping[str, Any] = field(default_factory=dict)
    runs_here: bool = True


class Target(Protocol):
    """An adapter. Vendor packages are imported in `lower` and `runner` only, or in a subprocess."""

    name: str
    profile: Profile

    def toolchain(self) -> Toolchain:
        """Say whether the vendor's compiler can run here; never raises."""
        ...

    def evidence(self) -> Evidence:
        """Say what the numbers of a compile on this machine would rest on; never raises."""
        ...

    def legalise(self) -> tuple[Pass, ...]:
        """Passes that rewrite what this target cannot run, before quantization."""
        ...

    def numerics(self, precision: str) -> tuple[Pass, ...]:
        """Passes that make the program compute as the device does, after quantization."""
        ...

    def lower(self, program: Program, options: LowerOptions, workdir: Path) -> Payload:
        """Compile the legalised program. Raises `UnsupportedError` or `ToolchainError`."""
        ...

    def runner(self, files: Mapping[str, bytes], program: Program) -> Runner:
        """Return a runner over an artifact's members; `program` gives ports and fallbacks."""
        ...
