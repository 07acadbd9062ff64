"""Arm's Ethos-U devices: ExecuTorch quantizes and delegates, Vela compiles."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from npuc.errors import ToolchainError, UsageError
from npuc.profile import Profile
from npuc.targets import kit as kits
from npuc.targets.base import Built, Evidence, Handover, LowerOptions, Toolchain
from npuc.targets.foreign import Package
from npuc.targets.npu import Npu
from npuc.targets.torch_worker import TorchWorker

NPU = "NPUC_ETHOS_U_NPU"
"""Environment variable: a device's configuration; without it, the profile's ``compiler.npu``."""

BINARY, IDENTIFIER = "model.pte", b"ET12"

WORKER = TorchWorker(
    name="executorch",
    packages=(Package("executorch", "executorch", ">=1.5.1,<1.6"),),
    worker="ethos_u_compile.py",
    binary=BINARY,
    calibrated=True,
)


def ethos_u55() -> Npu:
    """Return Arm Ethos-U55."""
    return Npu.named("ethos-u55", ExecuTorch())


def ethos_u65() -> Npu:
    """Return Arm Ethos-U65."""
    return Npu.named("ethos-u65", ExecuTorch())


def ethos_u85() -> Npu:
    """Return Arm Ethos-U85."""
    return Npu.named("ethos-u85", ExecuTorch())


class ExecuTorch:
    """ExecuTorch with Vela, in npuc's environment for them or where its variable says."""

    name = WORKER.name
    evidence: Evidence = "vendor-compiled"

    def find(self, profile: Profile) -> Toolchain:
        """Say whether ExecuTorch can run here; never raises."""
        return WORKER.find(profile).toolchain

    def kit(self, job: Handover, profile: Profile) -> dict[str, bytes]:
        """Return the float graph, calibration inputs, settings and the script."""
        files = WORKER.kit(job, settings(profile))
        parts = [WORKER.how(profile), _WHAT]
        if fault := self.lacks(files):
            parts.append(f"This kit cannot be compiled as it is: {fault}.")
        files[kits.README] = kits.readme(profile, parts)
        return files

    def lacks(self, kit: Mapping[str, bytes]) -> str:
        """Say what of the graph and its calibration is missing."""
        return WORKER.lacks(kit)

    def build(self, folder: Path, profile: Profile, options: LowerOptions) -> Built:
        """Compile the kit into ``model.pte``; raises `ToolchainError`."""
        wanted = settings(profile)
        done = WORKER.build(folder, profile, wanted, options.timeout)
        if done.files[BINARY][4:8] != IDENTIFIER:
            raise ToolchainError(f"{self.name} wrote a {BINARY} that is no ExecuTorch program")
        return Built(
            files=done.files,
            said=f"{self.name} {done.version} compiled {BINARY} for {wanted['npu']}: "
            f"{described(done.summary)}; not run",
            version=done.version,
        )


def settings(profile: Profile) -> dict[str, Any]:
    """Return the device's configuration; raises `UsageError` for one that it does not have."""
    known = list(profile.get("compiler.npus", ()))
    npu = os.environ.get(NPU, "")
    if npu not in known:  # another family's: the variable is one for all of them
        if npu and npu.rpartition("-")[0] == profile.name:
            raise UsageError(f"{NPU}={npu!r} is none of {', '.join(known)}")
        npu = str(profile.get("compiler.npu"))
    return {
        "npu": npu,
        "system_config": profile.get("compiler.system_config"),
        "memory_mode": profile.get("compiler.memory_mode"),
    }


def described(summary: Mapping[str, Any]) -> str:
    """Say in a few words what is delegated, and what Vela estimates; "" where it is not known."""
    parts = []
    if about := summary.get("delegation"):
        nodes = about["delegated_nodes"] + about["host_nodes"]
        parts.append(
            f"{about['delegated_nodes']} of {nodes} nodes in {about['subgraphs']} subgraphs"
        )
    cycles = sum(part.get("cycles_total", 0.0) for part in summary.get("vela", ()))
    if cycles:
        parts.append(f"{cycles:.0f} cycles by Vela's estimate")
    return ", ".join(parts)


_WHAT = """\
What is compiled. ExecuTorch quantizes the float model to int8 by itself, from the inputs in
calibration.npz, so its integer codes are its own and may differ from those of npuc's host twin.
What it does not delegate to the device is in the same file and runs in ExecuTorch's own kernels
on the host; summary.json lists both, with Vela's estimate of cycles and memory. Nothing here runs
the program: that takes a board, or Arm's Corstone simulator."""
