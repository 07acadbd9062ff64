"""Write new nodes into a graph, with names of their own."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

from npuc.passes.graphs import Names, drop_if_unused, initializer

Array = np.ndarray[Any, Any]
Attribute = int | float | str | Sequence[int]


class Builder:
    """Collects new nodes under one name prefix; constants become initializers at once."""

    def __init__(self, graph: ir.Graph, names: Names, prefix: str) -> None:
        self.nodes: list[ir.Node] = []
        self._graph, self._names, self._prefix = graph, names, prefix

    def op(self, op_type: str, *inputs: ir.Value, **attributes: Attribute) -> ir.Value:
        """Append a node with one output."""
        return self._node(op_type, inputs, 1, attributes)[0]

    def split(self, value: ir.Value, parts: int, size: int, axis: int) -> Sequence[ir.Value]:
        """Cut a value into equal parts along an axis; one part is the value itself."""
        if parts == 1:
            return [value]
        sizes = self.constant("split", np.full(parts, size, np.int64))
        return self._node("Split", (value, sizes), parts, {"axis": axis})

    def constant(self, name: str, array: Array) -> ir.Value:
        """Add an initializer."""
        free = self._names.new(f"{self._prefix}_{name}")
        return initializer(self._graph, free, np.asarray(array, order="C"))

    def several(
        self, op_type: str, inputs: Sequence[ir.Value | None], outputs: int, **attributes: Attribute
    ) -> Sequence[ir.Value]:
        """Append a node with several outputs."""
        return self._node(op_type, inputs, outputs, attributes)

    def _node(
        self,
        op_type: str,
        inputs: Sequence[ir.Value | None],
        outputs: int,
        attributes: Mapping[str, Attribute],
    ) -> Sequence[ir.Value]:
        names = [self._names.new(f"{self._prefix}_{op_type.lower()}") for _ in range(outputs)]
        values = [ir.Value(name=name) for name in names]
        attrs = ir.convenience.convert_attributes(attributes)
        self.nodes.append(ir.Node("", op_type, inputs, attrs, outputs=values, name=names[0]))
        return values

    def replace(self, node: ir.Node, outputs: Sequence[ir.Value]) -> None:
        """Put the new nodes in an old one's place; its outputs keep their names and types.

        The new nodes take over the old one's metadata: where in the user's code it came from.
        """
        assert node.graph is not None
        for made in self.nodes:
            made.metadata_props.update(node.metadata_props)
        node.graph.insert_before(node, self.nodes)
        inputs = [value for value in node.inputs if value is not None]
        for old, new in zip(node.outputs, outputs, strict=False):
            if old.uses() or old.is_graph_output():
                new.name, new.type = old.name, old.type
                if new.shape is None or not new.shape.is_static():
                    new.shape = old.shape
                old.replace_all_uses_with(new, replace_graph_outputs=True)
        node.graph.remove(node, safe=True)
        for value in dict.fromkeys(inputs):
            drop_if_unused(value)
