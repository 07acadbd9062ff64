"""The files that hand-over kits have in common."""

import io
from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

from npuc.errors import UnsupportedError
from npuc.passes.graphs import constant
from npuc.profile import GRADES, Profile
from npuc.program import Program, Tensors

README = "README.txt"


def readme(profile: Profile, parts: Sequence[str]) -> bytes:
    """Return README.txt: what to do with the kit, and what npuc's twin assumes of the device."""
    facts = (
        f"  {key} = {fact.value!r} [{fact.grade}: {GRADES[fact.grade]}]"
        for key, fact in sorted(profile.assumed.items())
    )
    head = f"Hand-over kit for {profile.title}"
    tail = "What npuc's host twin assumes of this device:\n\n" + "\n".join(facts)
    return ("\n\n".join([head, *parts, tail]) + "\n").encode()


def onnx_model(program: Program) -> dict[str, bytes]:
    """Return ``model.onnx``, one file, as vendors' tools take it; for more than 2 GiB of weights
    raises `UnsupportedError`.
    """
    content = program.serialized()
    if content is None:
        raise UnsupportedError(
            f"{program.weight_bytes / 2**30:.1f} GiB of weights do not fit one ONNX file (2 GiB)",
            hint="cut the model, or give the vendor's tool the original model",
        )
    return {"model.onnx": content}


def npy(array: "np.ndarray[Any, Any]") -> bytes:
    """Return an array as the bytes of an ``.npy`` file, with its shape as it is."""
    file = io.BytesIO()
    np.lib.format.write_array(file, np.asarray(array, order="C"), allow_pickle=False)
    return file.getvalue()


def calibration(calls: Sequence[Tensors], folder: str = "calibration") -> dict[str, bytes]:
    """Return ``<folder>/<input>/<number>.npy`` for every input of every call."""
    return {
        f"{folder}/{name}/{number:04}.npy": npy(array)
        for number, call in enumerate(calls)
        for name, array in call.items()
    }


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
