"""The operators that npuc trusts its TVM path with, each with what was proven of it.

An operator is on the list because tests/targets/tvm compares it with ONNX Runtime; what it may
not have, its rule says. Everything else is refused, by name and with the reason.
"""

from collections import defaultdict
from collections.abc import Mapping

import onnx_ir as ir

from npuc.errors import UnsupportedError
from npuc.partition import kind
from npuc.passes.graphs import label
from npuc.targets.tvm import markers
from npuc.targets.tvm.conditions import ALLOWED, Rule

T = ir.DataType
TYPES = frozenset({T.FLOAT, T.DOUBLE, T.INT32, T.INT64, T.BOOL, T.INT8, T.UINT8})
"""Element types a lowered program may hold."""


def refusal(node: ir.Node) -> str:
    """Return why a node of a prepared model cannot be lowered, or "" where it can."""
    if node.domain == "ai.npuc":
        known = markers.is_rounding(node.op_type)
        return _values(node) if known else "not a function npuc has a kernel for"
    rule = ALLOWED.get(node.op_type) if node.domain == "" else None
    if rule is None:
        return "not among the operators proven to be right"
    return _values(node) or _type(node, rule) or rule.check(node)


def refusals(model: ir.Model) -> dict[ir.Node, str]:
    """Return every node that cannot be lowered, with the reason."""
    found = {node: refusal(node) for node in model.graph}
    return {node: reason for node, reason in found.items() if reason}


def refuse(found: Mapping[ir.Node, str]) -> UnsupportedError:
    """Return the error that lists all of them, grouped by operator and reason."""
    groups: dict[tuple[str, str], list[str]] = defaultdict(list)
    for node, reason in found.items():
        groups[kind(node), reason].append(label(node))
    lines = [f"{len(found)} operators cannot be lowered through TVM:"]
    for (name, reason), nodes in groups.items():
        more = f" and {len(nodes) - 3} more" if len(nodes) > 3 else ""
        lines.append(f"  {name} x{len(nodes)}: {reason} ({', '.join(nodes[:3])}{more})")
    return UnsupportedError("\n".join(lines), hint="run them in ONNX Runtime: --fallback ort")


def _values(node: ir.Node) -> str:
    for value in (*node.inputs, *node.outputs):
        if value is None or not value.name:
            continue
        if value.dtype not in TYPES:
            return f"{value.name} is of type {value.dtype}"
        if value.shape is None or not value.shape.is_static():
            return f"the shape of {value.name} depends on the data"
        if 0 in value.shape.numpy():
            return f"{value.name} is empty"
    return ""


def _type(node: ir.Node, rule: Rule) -> str:
    first = node.inputs[0] if node.inputs else None
    if first is None or first.dtype in rule.types:
        return ""
    return f"its input {first.name} is of type {first.dtype}"
