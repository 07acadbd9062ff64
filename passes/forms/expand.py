"""Try the ways to write a node on a copy of it alone, and keep the first that a judge takes."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial

import onnx_ir as ir

from npuc.passes.builder import Builder
from npuc.passes.graphs import Names, constant, infer_shapes, initializer, label
from npuc.passes.writer import Unfit, Writer

Form = Callable[[ir.Node, Writer], ir.Value | Sequence[ir.Value]]
"""Emits nodes that compute what a node does; raises `Unfit` where they would not."""
Forms = Mapping[str, tuple[Form, ...]]
"""Operator → ways to write it, the preferred one first."""
Judge = Callable[[ir.Node], str]
"""Says why a node cannot stay, or "" where it can. Sees static shapes and constants."""

DEPTH = 5
"""Forms of forms of … that are tried; the longest chain in use is InstanceNormalization's."""


class Expander:
    """Replaces nodes by forms whose nodes the judge takes, or that have such forms themselves."""

    def __init__(self, forms: Forms, judge: Judge, opset: int) -> None:
        self.forms, self.judge, self.opset = forms, judge, opset

    def expand(self, node: ir.Node, names: Names) -> str:
        """Put the first form that fits in the node's place; returns why none does."""
        return self._expand(node, names, self.judge(node), ())

    def _expand(self, node: ir.Node, names: Names, why: str, above: tuple[str, ...]) -> str:
        if not self.forms.get(node.op_type):
            return why
        if node.op_type in above or len(above) == DEPTH:
            return why
        reasons = []
        for deep in (False, True):  # rather one form of this node than forms of its forms
            for form in self.forms[node.op_type]:
                fragment = isolate(node, self.opset)
                reason = self._try(fragment, form, (*above, node.op_type), deep)
                if not reason:
                    _graft(fragment, node, names)
                    return ""
                reasons.append(f"as {_named(form)}: {reason}")
        return "; ".join(dict.fromkeys([why, *reasons]))

    def _try(self, fragment: ir.Model, form: Form, above: tuple[str, ...], deep: bool) -> str:
        """Write the only node of a fragment by a form, and its nodes by theirs; says what fails."""
        node, names = fragment.graph[0], Names(fragment)
        write = Writer(fragment.graph, names, node.name or "", self.opset)
        try:
            made = form(node, write)
        except Unfit as error:
            return str(error)
        outputs = [made] if isinstance(made, ir.Value) else list(made)
        kept = [v if v.producer() in write.nodes else write.op("Identity", v) for v in outputs]
        write.replace(node, kept)
        infer_shapes(fragment)
        for new in list(fragment.graph):
            why = self.judge(new)
            # The same kind again is progress where a limit, not the kind, stood in the way.
            if why and not (deep and self._expand(new, names, why, above) == ""):
                return why
        return ""


def _named(form: Form) -> str:
    plain = form.func if isinstance(form, partial) else form
    return getattr(plain, "__name__", type(plain).__name__).strip("_").replace("_", " ")


def isolate(node: ir.Node, opset: int) -> ir.Model:
    """Copy a node into a model of its own: constants are initializers, the rest inputs."""
    copies: dict[ir.Value, ir.Value] = {}
    graph = ir.Graph([], [], nodes=[], opset_imports={"": opset}, name="fragment")
    for value in dict.fromkeys(v for v in node.inputs if v is not None):
        tensor = ir.convenience.get_const_tensor(value) if constant(value) is not None else None
        name = f"input_{len(copies)}"
        copies[value] = ir.Value(name=name, shape=value.shape, type=value.type, const_value=tensor)
        if tensor is None:
            graph.inputs.append(copies[value])
        else:
            copies[value].shape = ir.Shape(list(tensor.shape.numpy()))
            copies[value].type = ir.TensorType(tensor.dtype)
            graph.register_initializer(copies[value])
    outputs = [
        ir.Value(name=f"output_{i}" if v.name else "", shape=_static(v), type=v.type)
        for i, v in enumerate(node.outputs)
    ]
    graph.append(
        ir.Node(
            "", node.op_type, [None if v is None else copies[v] for v in node.inputs],
            list(node.attributes.values()), outputs=outputs,
            name=node.name or label(node).partition(" ")[0].lower(),
        )
    )  # fmt: skip
    wanted = zip(node.outputs, outputs, strict=True)
    graph.outputs.extend(new for old, new in wanted if old.uses() or old.is_graph_output())
    graph.meta["inputs"] = {copy.name: value for value, copy in copies.items()}
    return ir.Model(graph, ir_version=10)


def _static(value: ir.Value) -> ir.Shape | None:
    """Return a shape in numbers; another one is left to inference, which may find more."""
    return value.shape if value.shape is not None and value.shape.is_static() else None


def _graft(fragment: ir.Model, node: ir.Node, names: Names) -> None:
    """Move a fragment's nodes into the node's graph and put its results in the node's place."""
    assert isinstance(node.graph, ir.Graph)
    build = Builder(node.graph, names, node.name or "")
    values: dict[str, ir.Value] = dict(fragment.graph.meta["inputs"])
    for name, value in fragment.graph.initializers.items():
        if name not in values and value.uses() and value.const_value is not None:
            array = value.const_value.numpy()
            values[name] = initializer(node.graph, names.new(name), array)
    for old in fragment.graph:
        outputs = []
        for value in old.outputs:
            fresh = names.new(value.name or old.op_type.lower())
            outputs.append(ir.Value(name=fresh, shape=value.shape, type=value.type))
        inputs = [None if v is None else values[v.name or ""] for v in old.inputs]
        build.nodes.append(
            ir.Node(
                "", old.op_type, inputs, list(old.attributes.values()), outputs=outputs,
                name=names.new(old.name or old.op_type.lower()),
            )
        )  # fmt: skip
        values.update({v.name or "": new for v, new in zip(old.outputs, outputs, strict=True)})
    made = {v.name: values[v.name or ""] for v in fragment.graph.outputs}
    results = [made.get(f"output_{i}", node.outputs[i]) for i in range(len(node.outputs))]
    build.replace(node, results)
