"""Google's TPU: torchax and JAX write StableHLO, which XLA compiles on the TPU's host."""

from collections.abc import Mapping
from pathlib import Path

from npuc.errors import ToolchainError
from npuc.profile import Profile
from npuc.targets import kit as kits
from npuc.targets.base import Built, Evidence, Handover, LowerOptions, Toolchain
from npuc.targets.foreign import Package
from npuc.targets.npu import Npu
from npuc.targets.torch_worker import TorchWorker

BINARY = "model.mlir"

WORKER = TorchWorker(
    name="torchax",
    packages=(Package("torchax", "torchax", ">=0.0.13,<0.1"),),
    worker="stablehlo_compile.py",
    binary=BINARY,
)


def tpu() -> Npu:
    """Return Google's TPU."""
    return Npu.named("tpu", StableHlo())


class StableHlo:
    """torchax, in npuc's environment for it or where its variable says."""

    name = WORKER.name
    evidence: Evidence = "twin"

    def find(self, profile: Profile) -> Toolchain:
        """Say whether torchax can run here; never raises."""
        return WORKER.find(profile).toolchain

    def kit(self, job: Handover, profile: Profile) -> dict[str, bytes]:
        """Return the float graph, the script, and how to go on on the TPU's host."""
        files = WORKER.kit(job, {"platform": "tpu"})
        parts = [WORKER.how(profile), _WHAT]
        if fault := self.lacks(files):
            parts.append(f"This kit cannot be written as StableHLO as it is: {fault}.")
        files[kits.README] = kits.readme(profile, parts)
        return files

    def lacks(self, kit: Mapping[str, bytes]) -> str:
        """Say what of the graph is missing."""
        return WORKER.lacks(kit)

    def build(self, folder: Path, profile: Profile, options: LowerOptions) -> Built:
        """Write the kit as ``model.mlir``; raises `ToolchainError`.

        The evidence stays a twin's: StableHLO is what XLA takes, and XLA has not compiled it.
        """
        done = WORKER.build(folder, profile, {"platform": "tpu"}, options.timeout)
        if b"stablehlo." not in done.files[BINARY]:
            raise ToolchainError(f"{self.name} wrote a {BINARY} without StableHLO operations")
        count = sum(done.summary.get("operations", {}).values())
        return Built(
            files=done.files,
            said=f"{self.name} {done.version} wrote {BINARY}: {count} StableHLO operations for "
            "the platform tpu; XLA has not compiled it",
            version=done.version,
        )


_WHAT = """\
What is written. model.mlir is StableHLO in MLIR's text form, lowered for the platform "tpu", with
fixed shapes and float32 inputs; the weights are constants in it. On the TPU's host, JAX compiles
and runs it, at XLA's default precision: float32 factors are rounded to bfloat16 where they enter
the matrix unit, and sums are float32. That is what npuc's host twin computes."""
