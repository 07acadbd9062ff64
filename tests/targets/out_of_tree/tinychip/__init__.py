"""A target in a package of its own: a profile, npuc's twin, and a tool that is a command."""

import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path

from npuc.profile import Profile
from npuc.targets import kit, vendor
from npuc.targets.base import Built, Evidence, Handover, LowerOptions, Toolchain
from npuc.targets.npu import Npu

COMMAND = "tinyc"


def tiny() -> Npu:
    """Return the target; the entry point names this function."""
    return Npu(Profile.load("tiny", package="tinychip"), TinyCompiler())


class TinyCompiler:
    """``tinyc model.onnx model.tiny``."""

    name = COMMAND
    evidence: Evidence = "vendor-compiled"

    def find(self, profile: Profile) -> Toolchain:
        """Look for the command on PATH."""
        if shutil.which(COMMAND) is None:
            remedy = f"put {COMMAND} on PATH"
            return Toolchain(COMMAND, "", "not on PATH", remedy)
        done = subprocess.run([COMMAND, "--version"], capture_output=True, text=True)
        return Toolchain(COMMAND, done.stdout.strip() or "unknown version")

    def kit(self, job: Handover, profile: Profile) -> Mapping[str, bytes]:
        """Return the float model."""
        how = f"{COMMAND} model.onnx model.tiny"
        return {**kit.onnx_model(job.program), kit.README: kit.readme(profile, [how])}

    def lacks(self, kit: Mapping[str, bytes]) -> str:
        """Say whether the model is there."""
        return "" if "model.onnx" in kit else "model.onnx is missing"

    def build(self, folder: Path, profile: Profile, options: LowerOptions) -> Built:
        """Run the command."""
        out = folder / "model.tiny"
        log = vendor.run(
            COMMAND,
            [COMMAND, str(folder / "model.onnx"), str(out)],
            produces=out,
            timeout=options.timeout,
        )
        files = {"model.tiny": out.read_bytes(), "compile.log": log}
        return Built(files, f"{COMMAND} compiled model.tiny; not run", self.find(profile).version)
