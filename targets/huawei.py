"""Huawei's Ascend chips, and ATC, which compiles ONNX files."""

import os
import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from npuc.errors import ToolchainError
from npuc.profile import Profile
from npuc.targets import foreign, vendor
from npuc.targets import kit as kits
from npuc.targets.base import Built, Evidence, Handover, LowerOptions, Toolchain
from npuc.targets.foreign import Found
from npuc.targets.npu import Npu

COMPILER = "NPUC_ATC"
"""Environment variable: the command that starts ATC; without it, PATH is searched."""

SOC = "NPUC_ASCEND_SOC"
"""Environment variable: ATC's --soc_version, as Ascend310P3. Only its owner knows which it is."""

BINARY, SUCCESS = "model.om", b"ATC run success"

REMEDY = (
    "install the CANN toolkit (hiascend.com), source its set_env.sh, and name the chip: "
    f"{SOC}=Ascend followed by the Name that npu-smi info shows"
)


def ascend_910() -> Npu:
    """Return Huawei Ascend 910."""
    return Npu.named("ascend-910", Atc())


def ascend_310p() -> Npu:
    """Return Huawei Ascend 310P."""
    return Npu.named("ascend-310p", Atc())


class Atc:
    """ATC: the command that `NPUC_ATC` names, else the one on PATH."""

    name = "atc"
    evidence: Evidence = "vendor-compiled"

    def find(self, profile: Profile) -> Toolchain:
        """Say whether ATC can run here, and for which chip; never raises."""
        return self._found().toolchain

    def kit(self, job: Handover, profile: Profile) -> dict[str, bytes]:
        """Return the float model; for int8 also the ranges that npuc calibrated, for AMCT."""
        files = kits.onnx_model(job.program)
        files[kits.REQUEST] = kits.request(job.program, 0, {"framework": 5})
        if job.quantized is not None:
            files["quantization.safetensors"] = kits.scales(job.quantized)
        parts = [_how(profile, _shapes(files)), *([_INT8] if job.quantized is not None else [])]
        files[kits.README] = kits.readme(profile, parts)
        return files

    def lacks(self, kit: Mapping[str, bytes]) -> str:
        """Say what of the model and the request is missing."""
        return kits.lacks(kit, calibrated=False)

    def build(self, folder: Path, profile: Profile, options: LowerOptions) -> Built:
        """Compile ``model.onnx`` into ``model.om``; raises `ToolchainError`.

        ATC's exit codes are not documented: success is the file and the line that says so.
        """
        found, soc, binary = self._found(), os.environ.get(SOC, ""), folder / BINARY
        if found.toolchain.missing:
            raise ToolchainError(f"{self.name} cannot run: {found.toolchain.missing}", hint=REMEDY)
        request = kits.settled(folder, {"framework": 5})
        log = vendor.run(
            self.name,
            [
                *found.command,
                f"--model={folder / kits.MODEL}",
                "--framework=5",
                f"--output={binary.with_suffix('')}",
                f"--soc_version={soc}",
                f"--input_shape={_shapes({kits.REQUEST: request})}",
            ],
            produces=binary,
            timeout=options.timeout,
        )
        if SUCCESS not in log:
            raise ToolchainError(
                f"{self.name} wrote {BINARY} but did not say {SUCCESS.decode()!r}",
                hint="read its output above: the file may be of another run",
            )
        version = found.toolchain.version
        return Built(
            files={BINARY: binary.read_bytes(), kits.LOG: log, kits.REQUEST: request},
            said=f"{self.name} {version} compiled {BINARY} for {soc}; not run",
            version=version,
        )

    def _found(self) -> Found:
        found = foreign.program(self.name, COMPILER, "atc", REMEDY, ask="--help")
        soc = os.environ.get(SOC, "")
        if found.toolchain.missing or re.fullmatch(r"Ascend\w+", soc):
            return found
        fault = f"{SOC}={soc!r} is no name like Ascend310P3" if soc else f"{SOC} is not set"
        return Found(replace(found.toolchain, missing=fault, remedy=REMEDY))


def _shapes(files: Mapping[str, bytes]) -> str:
    """Spell the inputs as ATC does: ``x:1,3,32,32;y:1,5``."""
    ports = kits.asked(files[kits.REQUEST])["inputs"]
    return ";".join(f"{p['name']}:{','.join(map(str, p['shape']))}" for p in ports)


def _how(profile: Profile, shapes: str) -> str:
    return f"""\
With npuc, where CANN is installed and its set_env.sh was sourced:

    {SOC}=Ascend... npuc compile MODEL.npuc --target {profile.name}

Without npuc, unpack this folder and run

    atc --model=model.onnx --framework=5 --output=model --soc_version=Ascend... \\
        --input_shape="{shapes}"

which writes model.om and prints "ATC run success". --soc_version is "Ascend" and the Name that
npu-smi info shows. To look into the result: atc --mode=1 --om=model.om --json=model.json.
CANN promises that an .om runs on later releases for one year.
{REMEDY}."""


_INT8 = """\
Precision. ATC compiles the float model, which the chip computes in float16. npuc's int8 numbers
are those of its host twin. quantization.safetensors holds the scale and zero point of every tensor
that the twin codes; Huawei's own quantizer (AMCT) calibrates for itself."""
