"""Rebellions' chips, and rebel-compiler, which takes torch modules."""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from npuc.errors import ArtifactError, UsageError
from npuc.profile import Profile
from npuc.targets import kit, rebel_sdk, workers
from npuc.targets.base import Built, Evidence, Handover, LowerOptions, Toolchain
from npuc.targets.npu import Npu

DEVICES = "NPUC_ATOM_DEVICES"
"""Environment variable: the number of devices one model is spread over; 1 without it."""

NPU = "NPUC_ATOM_NPU"
"""Environment variable: the NPU to compile for; without it, the profile's ``compiler.npu``."""

ARCHIVE, REQUEST, SCRIPT = "model.pt2", "input_info.json", "compile.py"
BINARY, LOG, SCALES = "model.rbln", "compile.log", "quantization.safetensors"


def atom() -> Npu:
    """Return Rebellions ATOM."""
    return Npu.named("atom", RebelCompiler())


def atom_max() -> Npu:
    """Return Rebellions ATOM-Max, a card of four."""
    return Npu.named("atom-max", RebelCompiler())


def rebel100() -> Npu:
    """Return Rebellions Rebel100."""
    return Npu.named("rebel100", RebelCompiler())


class RebelCompiler:
    """rebel-compiler, in the Python that `NPUC_ATOM_PYTHON` names, else in this one."""

    name = rebel_sdk.NAME
    evidence: Evidence = "vendor-compiled"

    def find(self, profile: Profile) -> Toolchain:
        """Say whether rebel-compiler can run here; never raises."""
        return rebel_sdk.find().toolchain

    def kit(self, job: Handover, profile: Profile) -> dict[str, bytes]:
        """Return the exported program, the request, the script that makes it, and the scales."""
        inputs: list[dict[str, Any]] = [
            {"name": port.name, "shape": list(port.shape), "dtype": port.dtype}
            for port in job.program.inputs
        ]
        npu = os.environ.get(NPU) or str(profile.get("compiler.npu"))
        devices = _devices(int(profile.get("compiler.devices_default", 1)))
        files = {REQUEST: rebel_sdk.request(list(inputs), npu, devices), SCRIPT: _script()}
        if job.archive is not None:
            files[ARCHIVE] = job.archive.read_bytes()
        if job.quantized is not None:
            files[SCALES] = kit.scales(job.quantized)
        call = _call(inputs, npu, devices)
        how = _how(profile, call) if job.archive is not None else _incomplete(profile, call)
        parts = [how, *([_INT8] if job.quantized is not None else [])]
        files[kit.README] = kit.readme(profile, parts)
        return files

    def lacks(self, kit: Mapping[str, bytes]) -> str:
        """Say what of the exported program and the request is missing."""
        if ARCHIVE not in kit:
            return f"{ARCHIVE} is missing: it takes torch modules; {_NO_ARCHIVE}"
        return "" if REQUEST in kit else f"{REQUEST} is missing"

    def build(self, folder: Path, profile: Profile, options: LowerOptions) -> Built:
        """Compile ``model.pt2`` into ``model.rbln``; raises `ToolchainError`, `LoadError`."""
        try:
            asked = json.loads((folder / REQUEST).read_bytes())
            npu = os.environ.get(NPU) or str(asked["npu"])
            devices = _devices(int(asked["devices"]))
            request = rebel_sdk.request(asked["inputs"], npu, devices)
        except (ValueError, KeyError, TypeError) as error:
            raise ArtifactError(f"{REQUEST} is damaged: {error!r}") from error
        (folder / REQUEST).write_bytes(request)
        (folder / SCRIPT).write_bytes(_script())
        sdk = rebel_sdk.find()
        binary, log = rebel_sdk.compile_archive(sdk, folder, npu, options.timeout)
        version = sdk.toolchain.version or "of unknown version"
        built = " from the float module" if (folder / SCALES).exists() else ""
        return Built(
            files={BINARY: binary, LOG: log, REQUEST: request, SCRIPT: _script()},
            said=f"{self.name} {version} compiled {BINARY} for {npu}{built}; not run",
            version=version,
        )


def _script() -> bytes:
    """Return compile.py, which runs in the vendor's Python."""
    return workers.source("rebel_compile.py")


def _devices(default: int) -> int:
    text = os.environ.get(DEVICES) or str(default)
    if not text.isdecimal() or int(text) < 1:
        raise UsageError(f"{DEVICES}={text!r} is no number of devices", hint=f"{DEVICES}=1")
    return int(text)


def _call(inputs: list[dict[str, Any]], npu: str, devices: int) -> str:
    info = ",\n".join(f"        ({i['name']!r}, {i['shape']!r}, {i['dtype']!r})" for i in inputs)
    return f"""\
    import rebel, torch
    module = torch.export.load("model.pt2").module(check_guards=False)
    compiled = rebel.compile_from_torch(module, input_info=[
{info},
    ], npu={npu!r}, num_devices={devices})
    compiled.save("model.rbln")"""


def _how(profile: Profile, call: str) -> str:
    return f"""\
With npuc, where rebel-compiler is installed ({rebel_sdk.PYTHON} names its Python):

    npuc compile MODEL.npuc --target {profile.name}

Without npuc, unpack this folder and run, in the Python that has rebel-compiler:

    python compile.py

which writes model.rbln by this call (older compilers say tensor_parallel_size; compile.py asks):

{call}

input_info.json holds the same request; edit it for another NPU or another number of devices.
rebel-compiler: {rebel_sdk.REMEDY}."""


def _incomplete(profile: Profile, call: str) -> str:
    return f"""\
model.pt2 is missing, so compile.py cannot run yet: Rebellions' compiler takes torch modules, not
ONNX. To complete the kit, {_NO_ARCHIVE}:

    npuc compile model.pt --target {profile.name}

or, with the torch module at hand, torch.export.save it as model.pt2 here; the call is then:

{call}"""


_NO_ARCHIVE = (
    "call npuc.save(model, example_inputs, 'model.pt') where the torch model is, and compile that"
)

_INT8 = """\
Precision. The SDK documents no public int8 path for such models, so compile.py builds from the
float module, and the chip will compute in its 16-bit float. npuc's int8 numbers are those of its
host twin, after the scheme published with MLPerf Inference v3.0. quantization.safetensors holds
the calibrated scale and zero point of every tensor, for a compiler that takes them."""
