"""The hand-over kit: everything Rebellions' compiler needs, for a machine that has it."""

from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from npuc.passes.graphs import constant
from npuc.profile import GRADES, Profile
from npuc.program import Program
from npuc.targets import rebel_sdk

FOLDER = "vendor/"
ARCHIVE = f"{FOLDER}model.pt2"
REQUEST = f"{FOLDER}input_info.json"
SCRIPT = f"{FOLDER}compile.py"
SCALES = f"{FOLDER}quantization.safetensors"
README = f"{FOLDER}README.txt"
BINARY = f"{FOLDER}model.rbln"
LOG = f"{FOLDER}compile.log"

NO_ARCHIVE = "it takes torch modules, and this model did not come as one"
NO_ARCHIVE_REMEDY = (
    "call npuc.save(model, example_inputs, 'model.pt') where the torch model is, and compile that"
)


def members(
    program: Program, profile: Profile, precision: str, archive: Path | None, npu: str, devices: int
) -> dict[str, bytes]:
    """Return the kit's members by path; without an archive it explains what is missing."""
    inputs = [
        {"name": port.name, "shape": list(port.shape), "dtype": port.dtype}
        for port in program.inputs
    ]
    files = {
        REQUEST: rebel_sdk.request(list(inputs), npu, devices),
        SCRIPT: script(),
    }
    if archive is not None:
        files[ARCHIVE] = archive.read_bytes()
    if precision == "int8":
        from safetensors.numpy import save

        files[SCALES] = save(scales(program))
    call = _call(inputs, npu, devices)
    files[README] = _readme(profile, precision, archive is not None, call).encode()
    return files


def script() -> bytes:
    """Return compile.py, which runs in the vendor's Python."""
    return Path(__file__).with_name("rebel_compile.py").read_bytes()


def scales(program: Program) -> dict[str, "np.ndarray[Any, Any]"]:
    """Return ``<tensor>.scale`` and ``<tensor>.zero_point`` for every quantized tensor.

    A tensor goes by the name it has in the program before quantization; scales are float32,
    scalars or one per output channel, and real = scale·(code - zero point).
    """
    found: dict[str, np.ndarray[Any, Any]] = {}
    for node in program.model.graph.all_nodes():
        name = _quantized(node)
        scale = constant(node.inputs[1]) if name else None
        if scale is None:
            continue
        found[f"{name}.scale"] = np.ascontiguousarray(scale)
        zero = constant(node.inputs[2]) if len(node.inputs) > 2 else None
        if zero is not None:
            found[f"{name}.zero_point"] = np.ascontiguousarray(zero)
    return dict(sorted(found.items()))


def _quantized(node: ir.Node) -> str:
    """Name the real tensor that a QuantizeLinear codes, or that a DequantizeLinear weight is."""
    source = node.inputs[0] if node.inputs else None
    if source is None:
        return ""
    if node.op_type == "QuantizeLinear":
        return source.name or ""
    if node.op_type == "DequantizeLinear" and source.is_initializer():
        return (source.name or "").removesuffix("_quantized")
    return ""


def _call(inputs: list[dict[str, Any]], npu: str, devices: int) -> str:
    info = ",\n".join(f"        ({i['name']!r}, {i['shape']!r}, {i['dtype']!r})" for i in inputs)
    return f"""\
    import rebel, torch
    module = torch.export.load("model.pt2").module(check_guards=False)
    compiled = rebel.compile_from_torch(module, input_info=[
{info},
    ], npu={npu!r}, num_devices={devices})
    compiled.save("model.rbln")"""


def _readme(profile: Profile, precision: str, complete: bool, call: str) -> str:
    parts = [f"Hand-over kit for {profile.title}", _how(call) if complete else _incomplete(call)]
    if precision == "int8":
        parts.append(_INT8)
    facts = (
        f"  {key} = {fact.value!r} [{fact.grade}: {GRADES[fact.grade]}]"
        for key, fact in sorted(profile.assumed.items())
    )
    parts.append("What npuc's host twin assumes of this device:\n\n" + "\n".join(facts))
    return "\n\n".join(parts) + "\n"


def _how(call: str) -> str:
    return f"""\
With npuc, where rebel-compiler is installed ({rebel_sdk.PYTHON} names its Python):

    npuc compile MODEL.npuc --target atom

Without npuc, unpack this folder and run, in the Python that has rebel-compiler:

    python compile.py

which writes model.rbln by this call (older compilers say tensor_parallel_size; compile.py asks):

{call}

input_info.json holds the same request; edit it for another NPU or another number of devices.
rebel-compiler: {rebel_sdk.REMEDY}."""


def _incomplete(call: str) -> str:
    return f"""\
model.pt2 is missing, so compile.py cannot run yet: Rebellions' compiler takes torch modules, not
ONNX. To complete the kit, {NO_ARCHIVE_REMEDY}:

    npuc compile model.pt --target atom

or, with the torch module at hand, torch.export.save it as model.pt2 here; the call is then:

{call}"""


_INT8 = """\
Precision. The SDK documents no public int8 path for such models, so compile.py builds from the
float module, and the chip will compute in its 16-bit float. npuc's int8 numbers are those of its
host twin, after the scheme published with MLPerf Inference v3.0. quantization.safetensors holds
the calibrated scale and zero point of every tensor, for a compiler that takes them."""
