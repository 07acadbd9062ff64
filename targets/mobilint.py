"""Mobilint's chips, and qbcompiler (formerly qubee), which quantizes and compiles ONNX files."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from npuc.profile import Profile
from npuc.targets import kit as kits
from npuc.targets.base import Built, Evidence, Handover, LowerOptions, Toolchain
from npuc.targets.foreign import Package
from npuc.targets.npu import Npu
from npuc.targets.scripted import Script

BINARY = "model.mxq"
SCRIPT = Script(
    name="qbcompiler",
    variable="NPUC_MOBILINT_PYTHON",
    packages=(
        Package("qbcompiler", "qbcompiler", ">=1,<2"),
        # The last releases under the old name; those before 0.11 take other arguments.
        Package("qubee", "qubee", ">=0.11,<1"),
    ),
    remedy=(
        "get it from dl.mobilint.com (an account is needed) or its Docker image "
        "mobilint/qbcompiler, and set NPUC_MOBILINT_PYTHON=/path/to/its/python"
    ),
    worker="mobilint_compile.py",
    binary=BINARY,
)


def aries() -> Npu:
    """Return Mobilint ARIES."""
    return Npu.named("aries", QbCompiler())


def regulus() -> Npu:
    """Return Mobilint REGULUS, which runs models on single cores only."""
    return Npu.named("regulus", QbCompiler(scheme="single"))


class QbCompiler:
    """qbcompiler, in the Python that `NPUC_MOBILINT_PYTHON` names, else in this one.

    `scheme` is how a model is spread over cores: "all" compiles every way the chip has.
    """

    name = SCRIPT.name
    evidence: Evidence = "vendor-compiled"

    def __init__(self, scheme: str = "all") -> None:
        self.scheme = scheme

    def find(self, profile: Profile) -> Toolchain:
        """Say whether qbcompiler can run here; never raises."""
        return SCRIPT.find().toolchain

    def kit(self, job: Handover, profile: Profile) -> dict[str, bytes]:
        """Return the float model, its calibration data in Mobilint's layout, and the script."""
        files = kits.onnx_model(job.program) | SCRIPT.files()
        files |= kits.calibration(job.calibration, channels_last)
        settings = self._settings()
        files[kits.REQUEST] = kits.request(job.program, len(job.calibration), settings)
        parts = [SCRIPT.how(profile.name), _WHAT]
        if fault := self.lacks(files):
            parts.append(f"This kit cannot be compiled as it is: {fault}.")
        files[kits.README] = kits.readme(profile, parts)
        return files

    def lacks(self, kit: Mapping[str, bytes]) -> str:
        """Say what is missing, and which images are not single ones."""
        if missing := kits.lacks(kit):
            return missing
        ports = kits.asked(kit[kits.REQUEST])["inputs"]
        wide = [p["name"] for p in ports if len(p["shape"]) == 4 and p["shape"][0] != 1]
        return f"input {', '.join(wide)}: it takes images one by one, batch 1" if wide else ""

    def build(self, folder: Path, profile: Profile, options: LowerOptions) -> Built:
        """Compile ``model.onnx`` into ``model.mxq``; raises `ToolchainError`."""
        return SCRIPT.build(folder, self._settings(), profile.title, options.timeout)

    def _settings(self) -> dict[str, Any]:
        return {
            "inference_scheme": self.scheme,
            "device": "cpu",
            # Mobilint's examples: per-channel weights, ranges from the upper percentile.
            "calibration": {
                "method": 1,
                "output": 0,
                "mode": 1,
                "max_percentile": {"percentile": 0.9999, "topk_ratio": 0.01},
            },
        }


def channels_last(array: "np.ndarray[Any, Any]") -> "np.ndarray[Any, Any]":
    """[1, C, H, W] → [H, W, C], the documented form of an image; anything else stays."""
    return array[0].transpose(1, 2, 0) if array.ndim == 4 and len(array) == 1 else array


_WHAT = """\
What is compiled. model.onnx is the float32 model with fixed shapes; qbcompiler quantizes it by
itself, so its integer codes are its own and may differ from those of npuc's host twin.
calibration/<input>/<number>.npy are the inputs that npuc calibrated with, already preprocessed.
An input of four dimensions [1, C, H, W] is stored as [H, W, C], which is how Mobilint documents
images without CPU offloading; any other is stored as the model takes it. Mobilint asks for the
shape that the input has in the MBLT file: where that differs, rearrange the arrays. compile.py
passes the folder of a single input, and for several a calib.json that it writes.

Mobilint ships the compiler per product (the wheel's name says which): use the one for this chip.
Its releases ignore keywords that they do not know; read the log for the settings it used."""
