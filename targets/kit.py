"""The files that hand-over kits have in common."""

import io
import json
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from npuc.errors import ArtifactError, UnsupportedError
from npuc.passes.graphs import constant
from npuc.profile import GRADES, Profile
from npuc.program import Program, Tensors

README, MODEL, REQUEST, LOG = "README.txt", "model.onnx", "request.json", "compile.log"
CALIBRATION = "calibration"

Array = np.ndarray[Any, Any]


def readme(profile: Profile, parts: Sequence[str]) -> bytes:
    """Return README.txt: what to do with the kit, and what npuc's twin assumes of the device."""
    facts = (
        f"  {key} = {fact.value!r} [{fact.grade}: {GRADES[fact.grade]}]"
        for key, fact in sorted(profile.assumed.items())
    )
    head = f"Hand-over kit for {profile.title}"
    tail = "What npuc's host twin assumes of this device:\n\n" + "\n".join(facts)
    return ("\n\n".join([head, *parts, tail]) + "\n").encode()


def onnx_model(program: Program, metadata: Mapping[str, str] | None = None) -> dict[str, bytes]:
    """Return ``model.onnx``, one file, as vendors' tools take it.

    It has the oldest IR version that its opset allows, since their ONNX is older than npuc's, and
    no metadata but `metadata`. Raises `UnsupportedError` for more than 2 GiB of weights.
    """
    import onnx

    bare = program.clone()
    model = bare.model
    ir.external_data.load_to_model(model)
    model.metadata_props.clear()
    model.graph.metadata_props.clear()
    for function in model.functions.values():
        function.metadata_props.clear()
        for node in function:
            if node.op_type == "Constant" and "value" in node.attributes:
                # onnx_ir numbers these anew in every clone: not the same bytes twice.
                node.attributes["value"].as_tensor().name = node.outputs[0].name
    for node in model.graph.all_nodes():
        node.metadata_props.clear()
        node.doc_string = None
        for value in node.outputs:
            value.metadata_props.clear()
    model.metadata_props.update(metadata or {})
    opsets = [onnx.helper.make_opsetid(d, v) for d, v in model.opset_imports.items() if d == ""]
    # Functions came with IR 8.
    oldest = max(onnx.helper.find_min_ir_version_for(opsets), 8 if model.functions else 0)
    model.ir_version = min(oldest, model.ir_version)
    content = bare.serialized()
    if content is None:
        raise UnsupportedError(
            f"{program.weight_bytes / 2**30:.1f} GiB of weights do not fit one ONNX file (2 GiB)",
            hint="cut the model, or give the vendor's tool the original model",
        )
    return {MODEL: content}


def npy(array: Array) -> bytes:
    """Return an array as the bytes of an ``.npy`` file, with its shape as it is."""
    file = io.BytesIO()
    np.lib.format.write_array(file, np.asarray(array, order="C"), allow_pickle=False)
    return file.getvalue()


def folders(names: Sequence[str]) -> dict[str, str]:
    """Give every tensor a folder name that all systems and all tools' lists can hold."""
    found: dict[str, str] = {}
    taken: set[str] = set()
    for name in names:
        plain = re.sub(r"[^A-Za-z0-9_.-]", "_", name)[:80].strip(".") or "_"
        folder, count = plain, 1
        while folder.lower() in taken:
            count += 1
            folder = f"{plain}_{count}"
        taken.add(folder.lower())
        found[name] = folder
    return found


def calibration(
    calls: Sequence[Tensors], layout: Callable[[Array], Array] | None = None
) -> dict[str, bytes]:
    """Return ``calibration/<folder>/<number>.npy`` for every input of every call.

    `folders` names the folders; `layout` rearranges each array as the tool wants it.
    """
    named = folders(list(calls[0]) if calls else [])
    return {
        f"{CALIBRATION}/{named[name]}/{number:04}.npy": npy(layout(array) if layout else array)
        for number, call in enumerate(calls)
        for name, array in call.items()
    }


def request(program: Program, calls: int, settings: Mapping[str, Any]) -> bytes:
    """Return ``request.json``: the inputs, where their calibration is, and the tool's settings."""
    named = folders([port.name for port in program.inputs])
    inputs = [
        {
            "name": port.name,
            "shape": list(port.shape),
            "dtype": port.dtype,
            "folder": f"{CALIBRATION}/{named[port.name]}",
        }
        for port in program.inputs
    ]
    content = {"inputs": inputs, "calls": calls, "settings": dict(settings)}
    return json.dumps(content, indent=1, sort_keys=True).encode() + b"\n"


def asked(content: bytes) -> dict[str, Any]:
    """Read ``request.json``; raises `ArtifactError` where it is not what `request` writes."""
    try:
        data = json.loads(content)
        fine = isinstance(data["settings"], dict) and type(data["calls"]) is int and data["inputs"]
        for port in data["inputs"]:
            shape = port["shape"]
            fine = fine and all(type(size) is int and size >= 0 for size in shape)
            fine = fine and all(isinstance(port[k], str) for k in ("name", "dtype", "folder"))
        if not fine:
            raise ValueError("a value of another type than npuc writes")
    except (ValueError, KeyError, TypeError) as error:
        raise ArtifactError(f"{REQUEST} is damaged: {error!r}") from error
    return dict(data)


def lacks(kit: Mapping[str, bytes], calibrated: bool = True) -> str:
    """Say what of the model, the request and (where `calibrated`) the calibration is missing."""
    missing = [name for name in (MODEL, REQUEST) if name not in kit]
    if missing:
        return f"{' and '.join(missing)} missing"
    try:
        wanted = asked(kit[REQUEST])
    except ArtifactError as error:
        return error.message
    if not calibrated:
        return ""
    if not wanted["calls"]:
        return "no calibration data: it quantizes by itself; give --calibration or --samples"
    names = [
        f"{port['folder']}/{number:04}.npy"
        for port in wanted["inputs"]
        for number in range(wanted["calls"])
    ]
    gone = [name for name in names if name not in kit]
    return f"{len(gone)} calibration files missing, {gone[0]} among them" if gone else ""


def settled(folder: Path, settings: Mapping[str, Any]) -> bytes:
    """Write the request of an unpacked kit anew from its model, which is checked; return it.

    `settings` replace what is asked there. Raises `LoadError` for a model that is damaged or
    refers to other files, `ArtifactError` for a damaged request.
    """
    from npuc.onnx_file import read_onnx

    program = read_onnx(folder / MODEL)
    wanted = asked((folder / REQUEST).read_bytes())
    content = request(program, wanted["calls"], settings)
    (folder / REQUEST).write_bytes(content)
    return content


def scales(program: Program) -> bytes:
    """Return a safetensors file of ``<tensor>.scale`` and ``.zero_point`` per quantized tensor.

    A tensor goes by the name it has in the program before quantization; scales are float32,
    scalars or one per output channel, and real = scale·(code - zero point).
    """
    from safetensors.numpy import save

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
    return bytes(save(dict(sorted(found.items()))))


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
