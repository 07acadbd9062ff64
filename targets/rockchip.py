"""Rockchip RK3588, and rknn-toolkit2, which quantizes and compiles ONNX files."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from npuc.profile import Profile
from npuc.program import Program
from npuc.targets import kit as kits
from npuc.targets.base import Built, Evidence, Handover, LowerOptions, Toolchain
from npuc.targets.foreign import Package
from npuc.targets.npu import Npu
from npuc.targets.scripted import Script

BINARY, MAGIC = "model.rknn", b"RKNN"
DATASET = "dataset.txt"
SCRIPT = Script(
    name="rknn-toolkit2",
    variable="NPUC_RKNN_PYTHON",
    # 2.3.2 is the documentation read, 2.5.0 the newest release whose interface is known.
    packages=(Package("rknn-toolkit2", "rknn", ">=2.3,<3"),),
    remedy=(
        "its licence is for applications on Rockchip chips: install rknn-toolkit2 (PyPI, torch "
        "up to 2.4) in a Python environment of its own, and set "
        "NPUC_RKNN_PYTHON=/path/to/that/python"
    ),
    worker="rockchip_compile.py",
    binary=BINARY,
    magic=MAGIC,
)


def rk3588() -> Npu:
    """Return Rockchip RK3588."""
    return Npu.named("rk3588", Rknn())


class Rknn:
    """rknn-toolkit2, in the Python that `NPUC_RKNN_PYTHON` names, else in this one."""

    name = SCRIPT.name
    evidence: Evidence = "vendor-compiled"

    def find(self, profile: Profile) -> Toolchain:
        """Say whether rknn-toolkit2 can run here; never raises."""
        return SCRIPT.find().toolchain

    def kit(self, job: Handover, profile: Profile) -> dict[str, bytes]:
        """Return the float model and the script; for int8 the calibration data and its list."""
        int8 = job.precision == "int8"
        calls = job.calibration if int8 else ()
        files = kits.onnx_model(job.program) | SCRIPT.files() | kits.calibration(calls)
        settings = _settings(profile, int8)
        files[kits.REQUEST] = kits.request(job.program, len(calls), settings)
        if calls:
            files[DATASET] = _dataset(job.program, len(calls))
        parts = [SCRIPT.how(profile.name), _WHAT, _INT8 if int8 else _FLOAT]
        if fault := self.lacks(files):
            parts.append(f"This kit cannot be compiled as it is: {fault}.")
        files[kits.README] = kits.readme(profile, parts)
        return files

    def lacks(self, kit: Mapping[str, bytes]) -> str:
        """Say what is missing; float models need no calibration."""
        if missing := kits.lacks(kit, calibrated=False):
            return missing
        if not kits.asked(kit[kits.REQUEST])["settings"].get("quantize"):
            return ""
        return kits.lacks(kit) or ("" if DATASET in kit else f"{DATASET} missing")

    def build(self, folder: Path, profile: Profile, options: LowerOptions) -> Built:
        """Compile ``model.onnx`` into ``model.rknn``; raises `ToolchainError`."""
        from npuc.onnx_file import read_onnx

        wanted = kits.asked((folder / kits.REQUEST).read_bytes())
        int8 = bool(wanted["settings"].get("quantize"))
        if int8:
            program = read_onnx(folder / kits.MODEL)
            (folder / DATASET).write_bytes(_dataset(program, wanted["calls"]))
        return SCRIPT.build(folder, _settings(profile, int8), profile.title, options.timeout)


def _settings(profile: Profile, int8: bool) -> dict[str, Any]:
    return {"target_platform": profile.name, "quantize": int8}


def _dataset(program: Program, calls: int) -> bytes:
    """Return dataset.txt: a line per call, the paths of its inputs relative to this file."""
    named = kits.folders([port.name for port in program.inputs])
    lines = (
        " ".join(f"{kits.CALIBRATION}/{folder}/{number:04}.npy" for folder in named.values())
        for number in range(calls)
    )
    return "".join(f"{line}\n" for line in lines).encode()


_WHAT = """\
What is compiled. model.onnx is the float32 model with fixed shapes, inputs in its own layout.
Neither mean_values nor std_values are given: the model's inputs are already normalised, and so
must be what you feed the chip. rknn-toolkit2 logs lines that begin with E for models it compiles;
what counts is that every call returns 0 and that model.rknn begins with RKNN."""

_INT8 = """\
rknn-toolkit2 quantizes by itself (w8a8, per channel, algorithm "normal"), so its integer codes are
its own and may differ from those of npuc's host twin. dataset.txt lists the inputs that npuc
calibrated with: a line per call, its inputs in the model's order with spaces between them, paths
relative to the list. A model that is quantized already is not handed over: version 2.5.0 ends
with a segmentation fault on one with attention."""

_FLOAT = """\
Without quantization: the chip computes in float16."""
