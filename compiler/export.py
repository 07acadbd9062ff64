"""Turn what was loaded into a `Program`: ONNX with stable names, provenance and one opset."""

import re
from collections.abc import Iterator, Mapping
from dataclasses import replace

import onnx_ir as ir

from npuc.capture import Captured
from npuc.errors import ExportError, LoadError
from npuc.hazards import place, source
from npuc.load import Loaded
from npuc.program import Program
from npuc.quiet import quiet

OPSET = 20
"""torch's own default: Gelu is one operator from 20 on, Attention becomes one at 23."""

_RANDOM = frozenset(
    {"RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike", "Bernoulli"}
    | {"Multinomial"}
)


def export(loaded: Loaded, *, opset: int = OPSET, eval_mode: bool = False) -> Program:
    """Export a loaded model; ONNX files pass through as they were read.

    Ports are named as `npuc.signature` says. Nodes keep where they come from in the metadata
    ``npuc.source`` (file:line) and ``npuc.module`` (module path). Raises `ExportError` with the
    user's line where torch cannot capture the model, answers at random, or changes state.
    """
    if loaded.program is not None:
        return loaded.program
    if loaded.kind == "npuc":
        raise LoadError(f"{loaded.name} is an artifact: it is compiled already")
    if eval_mode and not loaded.eval_mode:
        loaded = replace(loaded, eval_mode=True)
    captured = loaded.captured
    model = _to_onnx(captured, opset)
    _name_ports(model, captured)
    _name_dims(model, captured.axes)
    _provenance(model)
    _deduplicate(model)
    _verify(model, opset)
    return Program.from_model(model)


def _to_onnx(captured: Captured, opset: int) -> ir.Model:
    import torch

    from npuc.rnn_shapes import rnn_shapes

    with torch.no_grad(), quiet(), rnn_shapes():
        try:
            exported = torch.onnx.export(
                captured.program, dynamo=True, opset_version=opset, optimize=True, verbose=False
            )
        except Exception as error:  # torch.onnx wraps everything in its own error types
            raise _explain(error, captured) from error
    if exported is None:
        raise ExportError("torch.onnx.export returned nothing")
    return exported.model


def _explain(error: BaseException, captured: Captured) -> ExportError:
    text, cause = "", error
    while cause is not None:
        text += f"{cause}\n"
        cause = cause.__cause__ or cause.__context__  # type: ignore[assignment]
    missing = re.search(r"No ONNX function found for <OpOverload\(op='([\w.]+)'", text)
    if missing:
        name = missing[1]
        with quiet():  # the operator may appear only once others are taken apart
            graph = captured.program.run_decompositions().graph
        where = next((f" {place(n)}" for n in graph.nodes if name in str(n.target)), "")
        return ExportError(
            f"ONNX has no operator for {name}{where}",
            hint="compute it with other operators, or outside of the model",
        )
    lines = [line for line in text.splitlines() if line.strip()]
    return ExportError(
        f"torch cannot write the captured model as ONNX: {type(error).__name__}: "
        f"{lines[-1][:300] if lines else ''}",
        hint="the cause is attached; --debug shows it",
    )


def _name_ports(model: ir.Model, captured: Captured) -> None:
    """Give inputs and outputs the names of the signature, by position.

    An output that is an input, a weight, or another output as well gets an Identity of its own,
    because an ONNX value has one name.
    """
    names, graph = captured.signature, model.graph
    if len(graph.inputs) != len(names.input_names):
        raise ExportError(
            f"the exported model has inputs {[v.name for v in graph.inputs]}, "
            f"the original {list(names.input_names)}"
        )
    if len(graph.outputs) < len(names.output_names):
        raise ExportError(
            f"the exported model has outputs {[v.name for v in graph.outputs]}, "
            f"the original {list(names.output_names)}"
        )
    _free(model, {*names.input_names, *names.output_names})
    for value, name in zip(graph.inputs, names.input_names, strict=True):
        value.name = name
    seen: set[int] = set()
    for index, name in enumerate(names.output_names):
        value = graph.outputs[index]
        shared = value.is_graph_input() or value.is_initializer() or id(value) in seen
        if shared or value.producer() is None:
            node = ir.node("Identity", [value], name=f"node_{name}")
            node.outputs[0].shape, node.outputs[0].type = value.shape, value.type
            graph.append(node)
            graph.outputs[index] = value = node.outputs[0]
        value.name = name
        seen.add(id(value))
    del graph.outputs[len(names.output_names) :]


def _free(model: ir.Model, names: set[str]) -> None:
    """Rename every value that has one of `names`, so that the ports can take them."""
    taken = {v.name for v in _values(model)} | names
    for value in _values(model):
        if value.name in names:
            fresh = next(n for i in range(10**9) if (n := f"{value.name}_v{i}") not in taken)
            taken.add(fresh)
            value.name = fresh


def _values(model: ir.Model) -> Iterator[ir.Value]:
    for graph in model.graphs():
        yield from graph.inputs
        yield from list(graph.initializers.values())
        for node in graph:
            yield from node.outputs


def _name_dims(model: ir.Model, axes: Mapping[str, Mapping[int, str]]) -> None:
    """Replace torch's symbols (s77) by the user's names in every shape, expressions included."""
    names: dict[str, str] = {}
    for value in model.graph.inputs:
        for axis, name in axes.get(value.name or "", {}).items():
            dim = value.shape[axis] if value.shape is not None else None
            if isinstance(dim, ir.SymbolicDim) and dim.value:
                names[dim.value] = name
    if not names:
        return
    symbol = re.compile(r"\b(" + "|".join(map(re.escape, names)) + r")\b")
    for value in _values(model):
        if value.shape is not None:
            value.shape = ir.Shape(
                d if isinstance(d, int) or not d.value
                else symbol.sub(lambda m: names[m[0]], d.value)
                for d in value.shape
            )  # fmt: skip


def _provenance(model: ir.Model) -> None:
    """Keep ``npuc.source`` and ``npuc.module`` of every node; drop torch's own metadata."""
    for graph in model.graphs():
        for node in graph:
            props = node.metadata_props
            found = source(props.get("pkg.torch.onnx.stack_trace", ""))
            scopes = re.findall(r"'([^']*)'", props.get("pkg.torch.onnx.name_scopes", ""))
            props.clear()
            if found:  # two path components: the same bytes wherever the project lies
                props["npuc.source"] = "/".join(found.split("/")[-2:])
            if len(scopes) > 1 and scopes[-2] and not scopes[-2].startswith("_empty_nn_module"):
                props["npuc.module"] = scopes[-2]
            node.doc_string = None
            node.meta.clear()
    for value in _values(model):
        value.metadata_props.clear()
        value.meta.clear()
    model.metadata_props.clear()
    model.graph.metadata_props.clear()
    model.doc_string = model.graph.doc_string = None


def _deduplicate(model: ir.Model) -> None:
    """Store equal weights once: torch duplicates them where modules share a parameter."""
    from onnx_ir.passes.common import DeduplicateInitializersPass

    DeduplicateInitializersPass()(model)


def _verify(model: ir.Model, opset: int) -> None:
    found = model.opset_imports.get("", 0)
    if found != opset:
        raise ExportError(
            f"opset {opset} was asked for, torch wrote opset {found}",
            hint=f"--opset {max(found, 18)}; lower ones are reached by npuc's own pass",
        )
    random = [
        f"{node.op_type} {node.name} {node.metadata_props.get('npuc.source', '')}".strip()
        for node in model.graph.all_nodes()
        if node.op_type in _RANDOM or (node.op_type == "Dropout" and len(node.inputs) > 2)
    ]
    if random:
        raise ExportError("the model answers at random:\n  " + "\n  ".join(random))
