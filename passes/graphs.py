"""Small helpers that several passes share; no pass lives here."""

from collections.abc import Iterable, Iterator

import numpy as np
import numpy.typing as npt
import onnx
import onnx.shape_inference
import onnx_ir as ir

from npuc.errors import PassError

_SMALL = 1024
"""Bytes up to which a constant may be a shape or axes that inference must see the value of."""


def label(node: ir.Node) -> str:
    """Name a node for a message: its own name, or its first output's where it has none."""
    return node.name or f"{node.op_type} → {node.outputs[0].name if node.outputs else '?'}"


def constant(value: ir.Value | None) -> npt.NDArray[np.generic] | None:
    """Return the array of a value that no caller can change, else None.

    An initializer that is also a graph input is a default a caller may override: not constant.
    """
    if value is None or value.is_graph_input():
        return None
    tensor = ir.convenience.get_const_tensor(value)
    return None if tensor is None else tensor.numpy()


def bodies(model: ir.Model) -> Iterator[tuple[str, ir.Node]]:
    """Yield (where, node) for every node outside the main graph: control flow and functions."""
    for node in model.graph.all_nodes():
        if node.graph is not model.graph:
            yield "the body of a control-flow operator", node
    for function in model.functions.values():
        for node in function.all_nodes():
            yield f"function {function.name!r}", node


class Names:
    """Hands out value names that are unused anywhere in a model."""

    def __init__(self, model: ir.Model) -> None:
        self._used = set(model.graph.initializers)
        self._used |= {v.name or "" for v in model.graph.inputs}
        for node in model.graph.all_nodes():
            self._used |= {v.name or "" for v in node.outputs}
            for attribute in node.attributes.values():
                for graph in _graphs(attribute):
                    self._used |= set(graph.initializers) | {v.name or "" for v in graph.inputs}

    def new(self, wanted: str) -> str:
        """Return `wanted`, or `wanted_2`, `wanted_3`, … where it is taken."""
        name, count = wanted, 1
        while name in self._used:
            count += 1
            name = f"{wanted}_{count}"
        self._used.add(name)
        return name


def _graphs(attribute: ir.Attr) -> Iterable[ir.Graph]:
    if attribute.type == ir.AttributeType.GRAPH and not attribute.is_ref():
        return (attribute.as_graph(),)
    if attribute.type == ir.AttributeType.GRAPHS and not attribute.is_ref():
        return attribute.as_graphs()
    return ()


def initializer(graph: ir.Graph, name: str, array: npt.NDArray[np.generic]) -> ir.Value:
    """Register an array as an initializer under a name that must be free."""
    tensor = ir.tensor(array, name=name)
    value = ir.Value(
        name=name, shape=ir.Shape(array.shape), type=ir.TensorType(tensor.dtype), const_value=tensor
    )
    graph.register_initializer(value)
    return value


def infer_types(model: ir.Model) -> None:
    """Fill in the types and shapes that are missing from the main graph's values.

    Raises `PassError` where ONNX's shape inference finds the model inconsistent.
    """
    if all(v.dtype is not None for node in model.graph for v in node.outputs):
        return
    infer_shapes(model)


def drop_if_unused(value: ir.Value) -> None:
    """Remove an initializer, or a Constant node, that nothing reads any more."""
    if value.uses() or value.is_graph_output() or value.is_graph_input():
        return
    producer = value.producer()
    if value.is_initializer() and value.graph is not None and value.name is not None:
        value.graph.initializers.pop(value.name)
    elif producer is not None and producer.op_type == "Constant" and producer.graph is not None:
        producer.graph.remove(producer, safe=True)


def infer_shapes(model: ir.Model) -> None:
    """Run ONNX shape inference with data propagation over the main graph, in place.

    Large weights take part by shape only, so models over protobuf's limit work too. A value for
    which nothing is inferred keeps the shape it has. Raises `PassError` with ONNX's reason where
    the model contradicts itself.
    """
    try:
        proto = onnx.shape_inference.infer_shapes(
            ir.to_proto(light(model)), check_type=True, strict_mode=True, data_prop=True
        )
    except onnx.shape_inference.InferenceError as error:
        raise PassError(f"the model's shapes contradict each other: {_reason(error)}") from error
    inferred = ir.convenience.create_value_mapping(ir.from_proto(proto).graph)
    for name, value in ir.convenience.create_value_mapping(model.graph).items():
        found = inferred.get(name)
        if found is None or value.is_initializer():
            continue
        if found.shape is not None:
            value.shape = found.shape
        if found.dtype is not None:
            value.dtype = found.dtype


def light(model: ir.Model) -> ir.Model:
    """Return a copy whose large weights are inputs: it fits a protobuf message."""
    copy = model.clone()
    for name, value in list(copy.graph.initializers.items()):
        if value.const_value is not None and value.const_value.nbytes > _SMALL:
            copy.graph.initializers.pop(name)
            if not value.is_graph_input():
                copy.graph.inputs.append(value)
    return copy


def _reason(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return " ".join(lines)[:400]
