"""OpenVINO on the host's CPU: its own form of the model, and the answers it gives there."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from npuc.errors import ToolchainError
from npuc.profile import Profile
from npuc.program import Program
from npuc.targets import environments, tvm, vendor, workers
from npuc.targets import kit as kits
from npuc.targets.base import Built, Evidence, Handover, LowerOptions, Runner, Toolchain
from npuc.targets.foreign import Found, Package
from npuc.targets.npu import FOLDER, Npu
from npuc.targets.openvino_runner import OpenVinoRunner
from npuc.targets.scripted import SCRIPT

XML, WEIGHTS = "openvino.xml", "openvino.bin"
PACKAGES = (Package("openvino", "openvino", ">=2026.4,<2026.5"),)


def openvino() -> Npu:
    """Return OpenVINO on the host's CPU."""
    return OpenVino.named("openvino", Converter())


class Converter:
    """OpenVINO's converter, in npuc's environment for it, where its variable says, or here."""

    name = "openvino"
    evidence: Evidence = "device"

    def find(self, profile: Profile) -> Toolchain:
        """Say whether OpenVINO can run here; never raises, never imports it."""
        return found(profile).toolchain

    def kit(self, job: Handover, profile: Profile) -> dict[str, bytes]:
        """Return the model, with QuantizeLinear and DequantizeLinear for int8, and the script."""
        program = job.quantized or job.program
        files = {**kits.onnx_model(program), SCRIPT: _script()}
        files[kits.REQUEST] = kits.request(program, 0, {})
        files[kits.README] = kits.readme(profile, [_how(profile)])
        return files

    def lacks(self, kit: Mapping[str, bytes]) -> str:
        """Say what of the model and the request is missing."""
        return kits.lacks(kit, calibrated=False)

    def build(self, folder: Path, profile: Profile, options: LowerOptions) -> Built:
        """Convert ``model.onnx``; raises `ToolchainError`, and `LoadError` for a bad model."""
        here = found(profile)
        if here.toolchain.missing:
            raise ToolchainError(
                f"{self.name} cannot run: {here.toolchain.missing}", hint=here.toolchain.remedy
            )
        request = kits.settled(folder, {})
        (folder / SCRIPT).write_bytes(_script())
        (folder / WEIGHTS).unlink(missing_ok=True)
        log = vendor.run(
            self.name,
            [*here.command, str(folder / SCRIPT)],
            produces=folder / XML,
            timeout=options.timeout,
            magic=b"<?xml",
        )
        if not (folder / WEIGHTS).is_file():
            raise ToolchainError(f"{self.name} ended without an error and without {WEIGHTS}")
        version = here.toolchain.version
        files = {name: (folder / name).read_bytes() for name in (XML, WEIGHTS)}
        native = options.cpu == "native"  # else nobody says that this machine is the device
        return Built(
            files={**files, kits.LOG: log, kits.REQUEST: request, SCRIPT: _script()},
            said=f"{self.name} {version} converted {XML}"
            + (", which ran on this CPU" if native else "; not run"),
            version=version,
            evidence=None if native else "vendor-compiled",
        )


@dataclass(frozen=True, slots=True)
class OpenVino(Npu):
    """OpenVINO, whose device is the machine that npuc runs on."""

    def runner(self, files: Mapping[str, bytes], program: Program) -> Runner:
        """Return a runner over OpenVINO where it is here, else over the host twin."""
        here = found(self.profile)
        if FOLDER + XML not in files or here.toolchain.missing:
            return tvm.load(files, program)
        model = {name: files[FOLDER + name] for name in (XML, WEIGHTS) if FOLDER + name in files}
        return OpenVinoRunner(here, model, program)


def found(profile: Profile) -> Found:
    """Find a Python that has OpenVINO; never raises."""
    return environments.find("openvino", profile, PACKAGES)


def _script() -> bytes:
    return workers.source("openvino_compile.py")


def _how(profile: Profile) -> str:
    environment = environments.of(profile)
    assert environment is not None
    return f"""\
With npuc, after {environment.remedy}:

    npuc compile MODEL.npuc --target {profile.name}

Without npuc, unpack this folder and run, in a Python that has
{", ".join(environment.requirements)}:

    python compile.py

which writes openvino.xml and openvino.bin: the model in OpenVINO's form, weights in float32.
In int8, model.onnx holds QuantizeLinear and DequantizeLinear; how OpenVINO merges them into
integer arithmetic is its own choice, and its codes can differ from those of npuc's twin."""
