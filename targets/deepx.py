"""DEEPX's chips, and dx-com, which quantizes and compiles ONNX files."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from npuc.errors import ArtifactError
from npuc.profile import Profile
from npuc.program import Program
from npuc.targets import kit as kits
from npuc.targets.base import Built, Evidence, Handover, LowerOptions, Toolchain
from npuc.targets.foreign import Package
from npuc.targets.npu import Npu
from npuc.targets.scripted import Script

CONFIG, BINARY = "config.json", "model.dxnn"
METHODS = ("minmax", "ema")
"""What `calibration_method` may be in every 2.x release. The first is what npuc's twin observes
with; the second is dx-com's own default."""

SCRIPT = Script(
    name="dx-com",
    variable="NPUC_DXCOM_PYTHON",
    # The DataLoader argument is documented for 2.2 to 2.5.
    packages=(Package("dx-com", "dx_com", ">=2.2,<3"),),
    remedy=(
        "its licence is for customers supplied with DEEPX NPUs: get it from developer.deepx.ai, "
        "install it in a Python environment of its own, and set "
        "NPUC_DXCOM_PYTHON=/path/to/that/python"
    ),
    worker="deepx_compile.py",
    binary=BINARY,
)


def dx_m1() -> Npu:
    """Return DEEPX DX-M1."""
    return Npu.named("dx-m1", DxCom())


def dx_h1() -> Npu:
    """Return DEEPX DX-H1, a card of several."""
    return Npu.named("dx-h1", DxCom())


class DxCom:
    """dx-com, in the Python that `NPUC_DXCOM_PYTHON` names, else in this one."""

    name = SCRIPT.name
    evidence: Evidence = "vendor-compiled"

    def find(self, profile: Profile) -> Toolchain:
        """Say whether dx-com can run here; never raises."""
        return SCRIPT.find().toolchain

    def kit(self, job: Handover, profile: Profile) -> dict[str, bytes]:
        """Return the float model, its calibration data, the script, and a config for images."""
        program, calls = job.program, len(job.calibration)
        files = kits.onnx_model(program) | kits.calibration(job.calibration) | SCRIPT.files()
        files[kits.REQUEST] = kits.request(program, calls, _settings())
        parts = [SCRIPT.how(profile.name), _WHAT]
        if _takes_images(program):
            files[CONFIG] = _config(program, calls)
            parts.append(_IMAGES)
        if fault := self.lacks(files):
            parts.append(f"This kit cannot be compiled as it is: {fault}.")
        files[kits.README] = kits.readme(profile, parts)
        return files

    def lacks(self, kit: Mapping[str, bytes]) -> str:
        """Say what is missing, and which inputs dx-com's documentation rules out."""
        if missing := kits.lacks(kit):
            return missing
        faults = [
            f"input {port['name']} is {'x'.join(map(str, port['shape']))} {port['dtype']}"
            for port in kits.asked(kit[kits.REQUEST])["inputs"]
            if port["shape"][:1] != [1] or port["dtype"] != "float32"
        ]
        return f"{', '.join(faults)}; it takes batch 1 and float32 only" if faults else ""

    def build(self, folder: Path, profile: Profile, options: LowerOptions) -> Built:
        """Compile ``model.onnx`` into ``model.dxnn``; raises `ToolchainError`."""
        method = kits.asked((folder / kits.REQUEST).read_bytes())["settings"].get("method")
        if method not in METHODS:
            raise ArtifactError(f"{kits.REQUEST} is damaged: calibration method {method!r}")
        return SCRIPT.build(folder, _settings(method), profile.title, options.timeout)


def _settings(method: str = METHODS[0]) -> dict[str, Any]:
    return {"method": method, "opt_level": 1}


def _takes_images(program: Program) -> bool:
    """Whether dxcom's own image loader can feed it: one input of one or three channels."""
    if len(program.inputs) != 1:
        return False
    (port,) = program.inputs
    return len(port.shape) == 4 and port.shape[1] in (1, 3) and port.dtype == "float32"


def _config(program: Program, calls: int) -> bytes:
    (port,) = program.inputs
    height, width = port.shape[2:]
    content = {
        "inputs": {port.name: list(port.shape)},
        "calibration_num": max(calls, 1),
        "calibration_method": METHODS[0],
        "default_loader": {
            "dataset_path": "./images",
            "file_extensions": ["jpeg", "jpg", "png"],
            "preprocessings": [{"resize": {"width": width, "height": height}}],
        },
    }
    return json.dumps(content, indent=1).encode() + b"\n"


_WHAT = """\
What is compiled. model.onnx is the float32 model with fixed shapes; dx-com quantizes it by
itself, so its integer codes are its own and may differ from those of npuc's host twin.
calibration/<input>/<number>.npy are the inputs that npuc calibrated with, as the model takes
them: already preprocessed. They go in through a torch DataLoader, since dxcom's own loader reads
image files only. request.json asks for minmax ranges, as the twin has them; "ema" there is
dx-com's own default, and may be more accurate. DEEPX states that its output is not the same bytes
on every machine."""

_IMAGES = """\
From image files instead. config.json is for the command

    dxcom -m model.onnx -c config.json -o output

with calibration images in images/ beside it. npuc does not know how your images become inputs:
complete "preprocessings" with what the model was trained with (colour order, division,
normalisation) before you use it."""
