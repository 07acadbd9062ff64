"""FuriosaAI's chips: Warboy with furiosa-compiler, RNGD with furiosa-torch."""

import os
from collections.abc import Mapping
from pathlib import Path

from npuc.errors import ToolchainError, UsageError
from npuc.profile import Profile
from npuc.targets import foreign, vendor
from npuc.targets import kit as kits
from npuc.targets.base import Built, Evidence, Handover, LowerOptions, Toolchain
from npuc.targets.foreign import Found
from npuc.targets.furiosa_torch import FuriosaTorch
from npuc.targets.npu import Npu

COMPILER = "NPUC_WARBOY_COMPILER"
"""Environment variable: the command that starts furiosa-compiler; without it, PATH is searched."""

NPU = "NPUC_WARBOY_NPU"
"""Environment variable: one of `NPUS`; without it, the profile's ``compiler.npu``."""

NPUS = ("warboy", "warboy-2pe")
BINARY, CACHE = "model.enf", {"FC_CACHE_ENABLED": "0"}
VERSIONS = ">=0.10,<0.11"
"""Before, it was a subcommand of another tool; the releases after are for another chip (RNGD)."""

REMEDY = (
    "get an account for Furiosa's APT server (archive.furiosa.ai), apt install furiosa-compiler "
    f"0.10, and put it on PATH or set {COMPILER}=/path/to/furiosa-compiler"
)


def warboy() -> Npu:
    """Return FuriosaAI Warboy."""
    return Npu.named("warboy", FuriosaCompiler())


def rngd() -> Npu:
    """Return FuriosaAI RNGD."""
    return Npu.named("rngd", FuriosaTorch())


class FuriosaCompiler:
    """furiosa-compiler: the command that `NPUC_WARBOY_COMPILER` names, else the one on PATH."""

    name = "furiosa-compiler"
    evidence: Evidence = "vendor-compiled"

    def find(self, profile: Profile) -> Toolchain:
        """Say whether furiosa-compiler can run here; never raises."""
        return self._found().toolchain

    def kit(self, job: Handover, profile: Profile) -> dict[str, bytes]:
        """Return the float model with the range of every tensor in its metadata."""
        from npuc.targets import furiosa_ranges

        codes = tuple(profile.get("int8.activation_range", (-128, 127)))
        values = furiosa_ranges.ranges(job.program, job.quantized, job.calibration, codes)
        metadata = {furiosa_ranges.KEY: furiosa_ranges.yaml(values)} if values else {}
        files = kits.onnx_model(job.program, metadata)
        files[kits.REQUEST] = kits.request(job.program, 0, {"ranges": len(values)})
        parts = [_how(profile, _npu(profile)), _RANGES]
        if fault := self.lacks(files):
            parts.append(f"This kit cannot be compiled as it is: {fault}.")
        files[kits.README] = kits.readme(profile, parts)
        return files

    def lacks(self, kit: Mapping[str, bytes]) -> str:
        """Say what of the model and its ranges is missing."""
        if missing := kits.lacks(kit, calibrated=False):
            return missing
        if not kits.asked(kit[kits.REQUEST])["settings"].get("ranges"):
            return "no calibrated ranges: compile with --precision int8, or give --calibration"
        return ""

    def build(self, folder: Path, profile: Profile, options: LowerOptions) -> Built:
        """Compile ``model.onnx`` into ``model.enf``; raises `ToolchainError`."""
        found, npu, binary = self._found(), _npu(profile), folder / BINARY
        if found.toolchain.missing:
            raise ToolchainError(f"{self.name} cannot run: {found.toolchain.missing}", hint=REMEDY)
        settings = kits.asked((folder / kits.REQUEST).read_bytes())["settings"]
        request = kits.settled(folder, {"ranges": settings.get("ranges")})
        log = vendor.run(
            self.name,
            [*found.command, str(folder / kits.MODEL), "-o", str(binary), "--target-npu", npu],
            produces=binary,
            timeout=options.timeout,
            env=CACHE,
        )
        version = found.toolchain.version
        return Built(
            files={
                BINARY: binary.read_bytes(),
                kits.REQUEST: request,
                **({kits.LOG: log} if log else {}),
            },
            said=f"{self.name} {version} compiled {BINARY} for {npu}; not run",
            version=version,
        )

    def _found(self) -> Found:
        return foreign.program(self.name, COMPILER, self.name, REMEDY, VERSIONS)


def _npu(profile: Profile) -> str:
    npu = os.environ.get(NPU) or str(profile.get("compiler.npu", NPUS[-1]))
    if npu not in NPUS:
        raise UsageError(f"{NPU}={npu!r} is none of {', '.join(NPUS)}", hint=f"{NPU}={NPUS[0]}")
    return npu


def _how(profile: Profile, npu: str) -> str:
    return f"""\
With npuc, where furiosa-compiler is installed:

    npuc compile MODEL.npuc --target {profile.name}

Without npuc, unpack this folder and run

    FC_CACHE_ENABLED=0 furiosa-compiler model.onnx -o model.enf --target-npu {npu}

--target-npu warboy is one processing element, warboy-2pe is two that work as one ({NPU}
chooses). The cache is off because it keeps failures too. request.json is npuc's own note.
furiosa-compiler: {REMEDY}."""


_RANGES = """\
What is compiled. model.onnx is the float32 model with fixed shapes in opset 13 at most, and its
metadata holds the range of every tensor under the name that furiosa-quantizer writes,
FurisoaAI.CalibrationResult: furiosa-compiler quantizes by them. A tensor that npuc's twin keeps
in int8 has the range of the twin's codes; the others have what the calibration inputs showed."""
