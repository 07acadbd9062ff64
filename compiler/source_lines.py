"""Say where in the user's model a node comes from."""

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING

from npuc.hazards import source

if TYPE_CHECKING:
    import onnx_ir as ir


def line(node: "ir.Node") -> str:
    """Return ``folder/model.py:42``, or "" where the model does not say.

    npuc's export keeps it as ``npuc.source``; ONNX files that torch wrote have a stack trace.
    """
    kept = node.metadata_props.get("npuc.source", "")
    found = kept or source(node.metadata_props.get("pkg.torch.onnx.stack_trace", ""))
    return "/".join(found.replace("\\", "/").split("/")[-2:])


def module(node: "ir.Node") -> str:
    """Return the path of the module that called the operator: ``layers.0.conv``, or ""."""
    if kept := node.metadata_props.get("npuc.module", ""):
        return kept
    scopes = re.findall(r"'([^']*)'", node.metadata_props.get("pkg.torch.onnx.name_scopes", ""))
    return scopes[-2] if len(scopes) > 1 else ""


def known(model: "ir.Model") -> dict[str, tuple[str, str]]:
    """Return line and module of every node by its name, and by those of what it makes."""
    found: dict[str, tuple[str, str]] = {}
    for node in model.graph.all_nodes():
        place = (line(node), module(node))
        if any(place):
            names = [node.name, *(value.name for value in node.outputs)]
            found.update((name, place) for name in names if name)
    return found


def restore(model: "ir.Model", places: Mapping[str, tuple[str, str]]) -> None:
    """Write lines and modules into nodes that lost them; `places` is what `known` returned.

    A node that a pass made belongs to what reads it: a rewritten operator keeps the name of its
    result, and all that leads there came from the same line.
    """
    for node in reversed(list(model.graph.all_nodes())):
        if line(node):
            continue
        names = [node.name or "", *(value.name or "" for value in node.outputs)]
        readers = [user for value in node.outputs for user, _ in value.uses()]
        place = next((places[name] for name in names if name in places), None)
        if place is None and readers:
            place = (line(readers[0]), module(readers[0]))
        if place is not None and place[0]:
            node.metadata_props["npuc.source"] = place[0]
            if place[1]:
                node.metadata_props["npuc.module"] = place[1]
