"""A vendor's compiler whose use is not public: the kit holds what any such tool needs."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from npuc.errors import ToolchainError
from npuc.profile import Profile
from npuc.targets import kit as kits
from npuc.targets.base import Built, Evidence, Handover, LowerOptions, Toolchain


@dataclass(frozen=True, slots=True)
class Undocumented:
    """A tool that npuc cannot drive, since `owner` publishes no command or interface of it."""

    name: str
    owner: str
    about: str = ""
    evidence: Evidence = "twin"

    def find(self, profile: Profile) -> Toolchain:
        """Say that nothing public tells how to run it; never raises."""
        return Toolchain(
            self.name,
            "",
            "its command line is not public, so npuc cannot run it",
            f"ask {self.owner} for the tool, and give it the files of the hand-over kit",
        )

    def kit(self, job: Handover, profile: Profile) -> dict[str, bytes]:
        """Return the float model, the calibration inputs and, for int8, npuc's own scales."""
        files = kits.onnx_model(job.program) | kits.calibration(job.calibration)
        files[kits.REQUEST] = kits.request(job.program, len(job.calibration), {})
        if job.quantized is not None:
            files["quantization.safetensors"] = kits.scales(job.quantized)
        parts = [_WHAT.format(name=self.name, owner=self.owner), *filter(None, [self.about])]
        files[kits.README] = kits.readme(profile, parts)
        return files

    def lacks(self, kit: Mapping[str, bytes]) -> str:
        """Say what of the model and the request is missing."""
        return kits.lacks(kit, calibrated=False)

    def build(self, folder: Path, profile: Profile, options: LowerOptions) -> Built:
        """Raise `ToolchainError`: there is nothing public to run."""
        found = self.find(profile)
        raise ToolchainError(f"{self.name} cannot run: {found.missing}", hint=found.remedy)


_WHAT = """\
{owner} publishes no command line of {name}, so npuc has no adapter that could run it and this kit
is not in a form that was read off its documents. It holds what such a tool needs: model.onnx, the
float32 model with fixed shapes; calibration/<input>/<number>.npy, the inputs npuc calibrated with,
already preprocessed (request.json lists them); and, for int8, quantization.safetensors, the scale
and zero point of every tensor in npuc's host twin."""
