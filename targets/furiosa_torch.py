"""furiosa-torch, the compiler for FuriosaAI RNGD: torch modules in bfloat16."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from npuc.profile import Profile
from npuc.targets import kit as kits
from npuc.targets.base import Built, Evidence, Handover, LowerOptions, Toolchain
from npuc.targets.foreign import Package
from npuc.targets.torch_worker import TorchWorker, settings_of

BINARY = "model.edf"

WORKER = TorchWorker(
    name="furiosa-torch",
    packages=(Package("furiosa-torch", "furiosa.torch", ">=2026.4,<2026.5"),),
    worker="furiosa_torch_compile.py",
    binary=BINARY,
    pattern="model*.edf",
)

SHARE = 0.9
"""Of the time that the tool has: what its parts may take, so that it can still say what it did."""


class FuriosaTorch:
    """furiosa-torch, in npuc's environment for it or where its variable says."""

    name = WORKER.name
    evidence: Evidence = "vendor-compiled"

    def find(self, profile: Profile) -> Toolchain:
        """Say whether furiosa-torch can run here; never raises, never imports it."""
        return WORKER.find(profile).toolchain

    def kit(self, job: Handover, profile: Profile) -> dict[str, bytes]:
        """Return the float graph, the settings and the script."""
        files = WORKER.kit(job, _limits(3600.0))
        parts = [WORKER.how(profile), _WHAT, *([_INT8] if job.precision == "int8" else [])]
        if fault := self.lacks(files):
            parts.append(f"This kit cannot be compiled as it is: {fault}.")
        files[kits.README] = kits.readme(profile, parts)
        return files

    def lacks(self, kit: Mapping[str, bytes]) -> str:
        """Say what of the graph is missing."""
        return WORKER.lacks(kit)

    def build(self, folder: Path, profile: Profile, options: LowerOptions) -> Built:
        """Compile the kit into ``model.edf``, or its parts; raises `ToolchainError`."""
        settings_of(folder)
        done = WORKER.build(folder, profile, _limits(options.timeout), options.timeout)
        return Built(
            files=done.files,
            said=f"{self.name} {done.version} compiled {described(done.summary)}; not run",
            version=done.version,
        )


def described(summary: Mapping[str, Any]) -> str:
    """Say in a few words what was compiled."""
    parts, host = summary.get("parts", []), summary.get("host", [])
    if summary.get("whole"):
        return f"{BINARY} in bfloat16"
    count = sum(len(part["nodes"]) for part in parts)
    return (
        f"{len(parts)} parts of the graph in bfloat16, {count} of {count + len(host)} nodes; "
        "the others are for the host (summary.json says why)"
    )


def _limits(timeout: float) -> dict[str, float]:
    """Return seconds for everything, for the whole graph, and for one of its parts."""
    budget = SHARE * timeout
    return {"budget_s": budget, "whole_s": budget / 6, "part_s": max(90.0, budget / 30)}


_WHAT = """\
What is compiled. The float graph in bfloat16. Where the compiler does not take all of it, runs of
nodes are compiled: model.000.edf and so on, each with its nodes in summary.json; what is in none
of them is left to the host, with the compiler's own words. The .edf files are what
furiosa.torch's Runnable.deserialize reads."""

_INT8 = """\
Precision. The public compiler takes bfloat16, so that is what is compiled. npuc's int8 numbers
are those of its host twin."""
