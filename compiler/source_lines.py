"""Say where in the user's model a node comes from."""

import re
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
