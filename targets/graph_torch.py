"""Write a program as ``graph.json`` and ``weights.npz``, which a vendor's Python reads as torch.

Vendors' compilers that take torch live in environments without ONNX, and with another torch: the
graph crosses as plain data, and `onnx_in_torch.py` beside it makes a module of it.
"""

import io
import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

from npuc.errors import UnsupportedError
from npuc.passes.graphs import constant, label
from npuc.program import Program, Tensors
from npuc.targets import workers

GRAPH, WEIGHTS, CALIBRATION = "graph.json", "weights.npz", "calibration.npz"
MODULES = ("onnx_in_torch.py", "torch_operators.py", "torch_windows.py", "torch_call.py")
"""Files of npuc that run in the vendor's Python."""


_PLAIN = (
    ir.AttributeType.INT, ir.AttributeType.FLOAT, ir.AttributeType.STRING,
    ir.AttributeType.INTS, ir.AttributeType.FLOATS, ir.AttributeType.STRINGS,
)  # fmt: skip


def files(program: Program) -> dict[str, bytes]:
    """Return the graph, its weights and the code that reads them; shapes must be fixed.

    Raises `UnsupportedError` listing all that is no plain data or no operator of ONNX itself.
    """
    faults: list[str] = []
    nodes = [_node(node, faults) for node in program.model.graph if constant_of(node) is None]
    if faults:
        raise UnsupportedError("this graph cannot become a torch module:\n  " + "\n  ".join(faults))
    weights = _weights(program)
    graph = {
        "opset": program.opset,
        "inputs": [
            {"name": p.name, "dtype": p.dtype, "shape": list(p.shape)} for p in program.inputs
        ],
        "outputs": [p.name for p in program.outputs],
        "weights": list(weights),
        "nodes": nodes,
    }
    return {
        GRAPH: json.dumps(graph, indent=1).encode() + b"\n",
        WEIGHTS: npz({f"w{i}": array for i, array in enumerate(weights.values())}),
        **scripts(MODULES),
    }


def scripts(names: Iterable[str]) -> dict[str, bytes]:
    """Return files of this folder that run in a vendor's Python."""
    return {name: workers.source(name) for name in names}


def calibration(calls: Sequence[Tensors], limit: int) -> dict[str, bytes]:
    """Return ``calibration.npz`` with ``<call>/<number of the input>`` for the first calls."""
    arrays = {
        f"{number}/{index}": array
        for number, call in enumerate(calls[:limit])
        for index, array in enumerate(call.values())
    }
    return {CALIBRATION: npz(arrays)} if arrays else {}


def npz(arrays: Mapping[str, "np.ndarray[Any, Any]"]) -> bytes:
    """Return an ``.npz`` file; the same arrays make the same bytes."""
    file = io.BytesIO()
    np.savez(file, **arrays)  # type: ignore[arg-type]
    return file.getvalue()


def constant_of(node: ir.Node) -> "np.ndarray[Any, Any] | None":
    """Return the value of a Constant node, and None for any other."""
    return constant(node.outputs[0]) if node.op_type == "Constant" else None


def _weights(program: Program) -> dict[str, "np.ndarray[Any, Any]"]:
    graph, found = program.model.graph, {}
    for name, value in graph.initializers.items():
        if value.const_value is not None:
            found[name] = value.const_value.numpy()
    for node in graph:
        if (array := constant_of(node)) is not None:
            found[node.outputs[0].name or ""] = array
    return dict(sorted(found.items()))


def _node(node: ir.Node, faults: list[str]) -> dict[str, Any]:
    if node.domain:
        faults.append(f"{label(node)}: {node.domain}::{node.op_type} is no operator of ONNX itself")
    attributes = {}
    for name, attribute in node.attributes.items():
        if attribute.type not in _PLAIN or attribute.ref_attr_name:
            faults.append(f"{label(node)}: attribute {name} is a {attribute.type.name.lower()}")
            continue
        attributes[name] = _plain(attribute.value)
    return {
        "op": node.op_type,
        "name": node.name or "",
        "inputs": [value.name if value is not None else "" for value in node.inputs],
        "outputs": [value.name for value in node.outputs],
        "attributes": attributes,
    }


def _plain(value: Any) -> Any:
    if isinstance(value, bytes):
        return value.decode()
    return [_plain(item) for item in value] if isinstance(value, list | tuple) else value


def faults(kit: Mapping[str, bytes]) -> list[str]:
    """Say why the graph of a kit cannot be a torch module, all reasons at once."""
    from npuc.targets.workers.torch_operators import CONSTANT, OPERATORS

    try:
        graph = json.loads(kit[GRAPH])
        fixed, nodes = set(graph["weights"]), graph["nodes"]
        kinds = sorted({node["op"] for node in nodes} - set(OPERATORS))
        found = [f"operator {kind} is not known to npuc's torch module" for kind in kinds]
        for node in nodes:
            for index in CONSTANT.get(node["op"], ()):
                name = node["inputs"][index] if index < len(node["inputs"]) else ""
                if name and name not in fixed:
                    found.append(f"{node['op']} {node['name']}: input {index} must be a constant")
    except (ValueError, KeyError, TypeError) as error:
        return [f"{GRAPH} is damaged: {error!r}"]
    return found
