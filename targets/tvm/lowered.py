"""What lowering through TVM gives."""

from collections.abc import Mapping
from dataclasses import dataclass

from npuc.targets.base import Evidence


@dataclass(frozen=True, slots=True)
class Lowered:
    """A compiled program.

    `files` are artifact members by path, all under ``payload/``: the same program and options
    give the same bytes. `toolchain` names every tool with its version. `placement` maps each
    operator kind to "tvm" or "onnxruntime". `notes` are sentences for the report.
    """

    files: Mapping[str, bytes]
    toolchain: Mapping[str, str]
    placement: Mapping[str, str]
    notes: tuple[str, ...] = ()
    runs_here: bool = True

    @property
    def evidence(self) -> Evidence:
        """What a result of this program on the CPU it was compiled for rests on.

        The CPU is the device: where this machine is one, the device itself ran it; where it was
        cross-compiled, only the compiler accepted it.
        """
        return "device" if self.runs_here else "vendor-compiled"
