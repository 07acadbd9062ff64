"""Run an ONNX graph as a torch module, for vendors' compilers that take torch.

Needs torch and numpy only: npuc copies this file into hand-over kits, where it runs in the
vendor's own Python beside `torch_operators.py`. The graph is ``graph.json`` (nodes, attributes,
ports; written by `npuc.targets.graph_torch`) with its weights in ``weights.npz``.
"""

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

if TYPE_CHECKING or __package__:
    from npuc.targets.workers.torch_call import Call, Unsupported
    from npuc.targets.workers.torch_operators import CONSTANT, OPERATORS
else:  # in a kit, where there is no npuc
    from torch_call import Call, Unsupported
    from torch_operators import CONSTANT, OPERATORS

__all__ = ["Graph", "Module", "Node", "Unsupported", "read", "segment"]


@dataclass(frozen=True)
class Node:
    """One operator; an absent optional input is ""."""

    op: str
    name: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attributes: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Graph:
    """Nodes in order of execution, with constants by name. Ports: name, numpy dtype, shape."""

    opset: int
    inputs: tuple[tuple[str, str, tuple[int, ...]], ...]
    outputs: tuple[str, ...]
    nodes: tuple[Node, ...]
    weights: dict[str, "np.ndarray[Any, Any]"]

    def faults(self) -> list[str]:
        """Say everything that keeps this graph from being a torch module."""
        kinds = sorted({n.op for n in self.nodes} - set(OPERATORS))
        found = [f"operator {kind} is not known to npuc's torch module" for kind in kinds]
        for node in self.nodes:
            for index in CONSTANT.get(node.op, ()):
                name = node.inputs[index] if index < len(node.inputs) else ""
                if name and name not in self.weights:
                    found.append(f"{node.op} {node.name}: input {index} must be a constant")
        return found


def read(folder: Path) -> Graph:
    """Read ``graph.json`` and ``weights.npz``; no pickle is loaded."""
    data = json.loads((folder / "graph.json").read_text())
    with np.load(folder / "weights.npz", allow_pickle=False) as arrays:
        weights = {name: arrays[f"w{i}"] for i, name in enumerate(data["weights"])}
    return Graph(
        opset=data["opset"],
        inputs=tuple((p["name"], p["dtype"], tuple(p["shape"])) for p in data["inputs"]),
        outputs=tuple(data["outputs"]),
        nodes=tuple(
            Node(n["op"], n["name"], tuple(n["inputs"]), tuple(n["outputs"]), n["attributes"])
            for n in data["nodes"]
        ),
        weights=weights,
    )


class Module(torch.nn.Module):
    """The graph as a module: positional tensors in, a tuple of tensors out.

    `real` is the float type that weights and casts to float32 take; inputs must have it too.
    """

    def __init__(self, graph: Graph, real: torch.dtype = torch.float32) -> None:
        super().__init__()
        if faults := graph.faults():
            raise Unsupported("\n".join(faults))
        self.graph = graph
        self.real = real
        self._names: dict[str, str] = {}
        used = {name for node in graph.nodes for name in node.inputs} | set(graph.outputs)
        for number, (name, array) in enumerate(sorted(graph.weights.items())):
            if name not in used:
                continue
            self._names[name] = f"w{number}"
            tensor = torch.from_numpy(np.array(array))
            if tensor.dtype == torch.float32:
                tensor = tensor.to(real)
            self.register_buffer(self._names[name], tensor)

    def forward(self, *tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Run every node in order."""
        values = self.values(tensors)
        return tuple(values[name] for name in self.graph.outputs)

    def values(self, tensors: Sequence[torch.Tensor]) -> dict[str, torch.Tensor]:
        """Return every tensor of the graph by name."""
        values = {port[0]: t for port, t in zip(self.graph.inputs, tensors, strict=True)}
        for name, attribute in self._names.items():
            values[name] = getattr(self, attribute)
        weights, opset = self.graph.weights, self.graph.opset
        for node in self.graph.nodes:
            given = [values[name] if name else None for name in node.inputs]
            fixed = [weights.get(name) if name else None for name in node.inputs]
            call = Call(node.op, node.name, node.attributes, opset, fixed, self.real)
            call.outputs = len(node.outputs)
            result = OPERATORS[node.op](call, *given)
            results = result if isinstance(result, tuple) else (result,)
            for name, value in zip(node.outputs, results, strict=False):
                if name:
                    values[name] = value
        return values

    def examples(self, arrays: Sequence["np.ndarray[Any, Any]"] = ()) -> tuple[torch.Tensor, ...]:
        """Return inputs from arrays, or zeros of the ports' shapes, in this module's types."""
        arrays = arrays or [np.zeros(shape, dtype) for _, dtype, shape in self.graph.inputs]
        tensors = [torch.from_numpy(np.array(a)) for a in arrays]
        return tuple(t.to(self.real) if t.dtype == torch.float32 else t for t in tensors)


def segment(
    graph: Graph, numbers: Iterable[int], known: dict[str, tuple[str, tuple[int, ...]]]
) -> Graph:
    """Cut out the nodes with these numbers; `known` gives each tensor's numpy dtype and shape.

    Its inputs are what the nodes read and do not make, its outputs what others or the graph read.
    """
    chosen = sorted(numbers)
    nodes = [graph.nodes[i] for i in chosen]
    made = {name for node in nodes for name in node.outputs if name}
    read_here = dict.fromkeys(name for node in nodes for name in node.inputs if name)
    weights = {name: graph.weights[name] for name in read_here if name in graph.weights}
    others = set(range(len(graph.nodes))) - set(chosen)
    elsewhere = {name for i in others for name in graph.nodes[i].inputs} | set(graph.outputs)
    inputs = tuple((n, *known[n]) for n in read_here if n not in made and n not in weights)
    outputs = tuple(n for node in nodes for n in node.outputs if n in elsewhere)
    return replace(graph, inputs=inputs, outputs=outputs, nodes=tuple(nodes), weights=weights)
