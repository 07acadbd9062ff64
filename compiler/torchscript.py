"""Turn a TorchScript program into an exported program."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from npuc.capture import Captured, capture, explain
from npuc.errors import ExportError
from npuc.quiet import quiet

if TYPE_CHECKING:
    import torch


def convert(
    script: "torch.jit.ScriptModule",
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    dynamic_shapes: Any,
    eval_mode: bool,
) -> Captured:
    """Convert with torch's TS2EPConverter, then capture again with the user's dynamic axes."""
    import torch
    from torch._export.converter import TS2EPConverter

    if kwargs:
        raise ExportError(
            "TorchScript programs take positional inputs here",
            hint="give an --input for every input up to the last one",
        )
    if script.training and not eval_mode:
        raise ExportError(
            "the TorchScript program is in train mode", hint="call .eval() before saving, or --eval"
        )
    script.eval()
    with torch.no_grad(), quiet():
        try:
            program = TS2EPConverter(script, args, {}).convert()
        except Exception as error:  # the converter raises many types
            raise explain(error) from error
        module = program.module(check_guards=False)
    # The converter names inputs and makes all axes dynamic in its own way; a second capture
    # of what it made gives them as for any other model.
    shapes = _positional(dynamic_shapes, script)
    return capture(module, args, {}, shapes, eval_mode=True)


def parameters(script: Any) -> list[str]:
    """Names of forward's parameters."""
    return [a.name for a in script.forward.schema.arguments[1:]]


def _positional(shapes: Any, script: "torch.jit.ScriptModule") -> Any:
    if not isinstance(shapes, Mapping):
        return shapes
    names = parameters(script)
    return tuple(shapes[name] for name in names if name in shapes)
