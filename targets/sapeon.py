"""SAPEON's chips: an academic front end is public for X220, nothing for X330."""

import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from npuc.errors import ToolchainError
from npuc.profile import Profile
from npuc.targets import foreign, vendor
from npuc.targets import kit as kits
from npuc.targets.base import Built, Evidence, Handover, LowerOptions, Toolchain
from npuc.targets.foreign import Found
from npuc.targets.furiosa_ranges import ranges
from npuc.targets.npu import Npu
from npuc.targets.undocumented import Undocumented

COMPILER = "NPUC_AXFC"
"""Environment variable: the command that starts the front end: python3 /path/src/AxfcMain.py."""

MACHINE, LAUNCHER = "NPUC_AXFC_MACHINE", "NPUC_AXFC_LAUNCHER"
"""Environment variables: the machine description of the chip, and the folder of the launcher."""

BINARY, TABLE = "model.aixgraph", "calibration.tbl"

REMEDY = (
    "get the front end (QCL-PKNU/Sapeon-Frontend-Compiler) with SAPEON's launcher and machine "
    f"description, and set {COMPILER}='python3 /path/src/AxfcMain.py', {MACHINE} and {LAUNCHER}"
)


def x220() -> Npu:
    """Return SAPEON X220."""
    return Npu.named("x220", AixFrontend())


def x330() -> Npu:
    """Return SAPEON X330."""
    return Npu.named("x330", Undocumented("SAPEON SDK", "SAPEON (now Rebellions)"))


class AixFrontend:
    """The AIX front end, which writes the AIXGraph that SAPEON's own compiler takes."""

    name = "AixFrontend"
    evidence: Evidence = "twin"

    def find(self, profile: Profile) -> Toolchain:
        """Say whether the front end and what it needs are here; never raises."""
        return self._found().toolchain

    def kit(self, job: Handover, profile: Profile) -> dict[str, bytes]:
        """Return the float model and the calibration table."""
        codes = tuple(profile.get("int8.activation_range", (-128, 127)))
        files = kits.onnx_model(job.program)
        files[kits.REQUEST] = kits.request(job.program, len(job.calibration), {})
        found = ranges(job.program, job.quantized, job.calibration, codes)
        if found:
            files[TABLE] = table(job, found)
        files[kits.README] = kits.readme(profile, [_HOW])
        return files

    def lacks(self, kit: Mapping[str, bytes]) -> str:
        """Say what of the model and its table is missing."""
        missing = kits.lacks(kit, calibrated=False)
        return missing or ("" if TABLE in kit else f"{TABLE} missing: give --calibration")

    def build(self, folder: Path, profile: Profile, options: LowerOptions) -> Built:
        """Write ``model.aixgraph``; raises `ToolchainError`.

        The front end ends with exit status 0 for errors, too: what counts is the file.
        """
        found, binary = self._found(), folder / BINARY
        if found.toolchain.missing:
            raise ToolchainError(f"{self.name} cannot run: {found.toolchain.missing}", hint=REMEDY)
        request = kits.settled(folder, {})
        log = vendor.run(
            self.name,
            [
                *found.command,
                "-m", os.environ[MACHINE],
                "-i", str(folder / kits.MODEL),
                "-k", os.environ[LAUNCHER],
                "-c", str(folder / TABLE),
                "-o", str(binary),
                "-f", "binary",
            ],
            produces=binary,
            timeout=options.timeout,
        )  # fmt: skip
        return Built(
            files={BINARY: binary.read_bytes(), kits.LOG: log, kits.REQUEST: request},
            said=f"{self.name} wrote {BINARY}; SAPEON's own compiler has not seen it",
            version=found.toolchain.version,
        )

    def _found(self) -> Found:
        if not os.environ.get(COMPILER):
            return Found(Toolchain(self.name, "", f"{COMPILER} is not set", REMEDY))
        found = foreign.program(self.name, COMPILER, self.name, REMEDY, ask="--help")
        absent = [name for name in (MACHINE, LAUNCHER) if not _there(name)]
        if found.toolchain.missing or not absent:
            return found
        fault = f"{' and '.join(absent)}: not set, or nothing is there"
        return Found(replace(found.toolchain, missing=fault, remedy=REMEDY))


def table(job: Handover, found: Mapping[str, tuple[float, float]]) -> bytes:
    """Return the calibration table: number, layer, "output", 0.0 and the largest magnitude.

    A layer is a node by its name; the inputs are the first. Source: the sample tables of the
    front end (tst/*_calib.tbl), read off their columns.
    """
    named = [(port.name, port.name) for port in job.program.inputs]
    named += [
        (node.name or "", node.outputs[0].name or "")
        for node in job.program.model.graph
        if node.outputs
    ]
    rows = [(layer, found[tensor]) for layer, tensor in named if tensor in found]
    lines = (
        f"{number:3d}{layer:>21}     output {0.0:16.1f} {max(abs(low), abs(high)):16.6f}\n"
        for number, (layer, (low, high)) in enumerate(rows)
    )
    return "".join(lines).encode()


def _there(name: str) -> bool:
    return bool(os.environ.get(name)) and Path(os.environ[name]).exists()


_HOW = f"""\
With npuc, where the AIX front end is installed:

    npuc compile MODEL.npuc --target x220

Without npuc, unpack this folder and run, in the front end's folder:

    python3 src/AxfcMain.py -m MACHINE_DESCRIPTION -i model.onnx -k LAUNCHER_FOLDER \\
        -c calibration.tbl -o model.aixgraph -f binary

The machine description and the launcher are SAPEON's. What comes out is the graph that SAPEON's
own compiler takes; npuc knows of no public description of that one. calibration.tbl holds the
largest magnitude of every layer's output on the calibration inputs, in the layout of the front
end's samples.
{REMEDY}."""
