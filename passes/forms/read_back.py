"""Hold every node of a model against the operators of one opset, as a reader of it would."""

from collections.abc import Iterator
from typing import Any

import onnx
import onnx_ir as ir

from npuc.passes.graphs import label, light

_OPTIONAL = onnx.defs.OpSchema.FormalParameterOption.Optional
_VARIADIC = onnx.defs.OpSchema.FormalParameterOption.Variadic


def faults(model: ir.Model) -> list[str]:
    """Say what is wrong with each node in the opset the model imports; [] where nothing is.

    Kinds, attributes and their types, numbers of inputs and outputs, and the dtypes that are
    known are looked up in the operator's definition; then onnx.checker has the last word.
    """
    version = model.opset_imports.get("", 0)
    nodes = [node for node in model.graph.all_nodes() if node.domain == ""]
    found = [f"{n.op_type}: {why} (as in {label(n)!r})" for n in nodes for why in _node(n, version)]
    if found:
        return list(dict.fromkeys(found))
    try:
        onnx.checker.check_model(ir.to_proto(light(model)))
    except onnx.checker.ValidationError as error:
        return [" ".join(str(error).split())[:400]]
    return []


def _node(node: ir.Node, version: int) -> Iterator[str]:
    try:
        schema = onnx.defs.get_schema(node.op_type, version, "")
    except onnx.defs.SchemaError:
        yield f"opset {version} has no such operator"
        return
    if schema.deprecated:
        yield f"it is deprecated in opset {version}"
    for name, attribute in node.attributes.items():
        if name not in schema.attributes:
            yield f"opset {version} has no attribute {name}"
            continue
        wanted: Any = schema.attributes[name].type  # its stub says nothing of its members
        if wanted.name != attribute.type.name:
            kind = attribute.type.name
            yield f"attribute {name} is {kind}, opset {version} has {wanted.name}"
    for name, known in schema.attributes.items():
        if known.required and name not in node.attributes:
            yield f"opset {version} needs attribute {name}"
    if not schema.min_input <= len(node.inputs) <= schema.max_input:
        bounds = f"{schema.min_input} to {schema.max_input}"
        yield f"it has {len(node.inputs)} inputs, opset {version} takes {bounds}"
        return
    if len(node.outputs) > schema.max_output:
        yield f"it has {len(node.outputs)} outputs, opset {version} makes {schema.max_output}"
    yield from _types(node, schema, version)


def _types(node: ir.Node, schema: onnx.defs.OpSchema, version: int) -> Iterator[str]:
    allowed = {c.type_param_str: c.allowed_type_strs for c in schema.type_constraints}
    for index, value in enumerate(node.inputs):
        formal = schema.inputs[min(index, len(schema.inputs) - 1)]
        if value is None:
            if formal.option != _OPTIONAL:
                yield f"opset {version} needs its input {formal.name!r}"
            continue
        if value.dtype is None or not isinstance(value.type, ir.TensorType):
            continue
        kind = (
            f"tensor({onnx.helper.tensor_dtype_to_string(int(value.dtype)).split('.')[-1].lower()})"
        )
        types = allowed.get(formal.type_str, [formal.type_str])
        if kind not in types:
            yield f"opset {version} takes no {kind} as input {formal.name!r}"
