"""Find in an exported program what would make the compiled model answer unlike the original."""

import re
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from npuc.errors import ExportError
from npuc.quiet import quiet

if TYPE_CHECKING:
    import torch
    from torch.export import ExportedProgram


def refuse(program: "ExportedProgram") -> None:
    """Raise `ExportError` for live random operators and for state that forward() changes."""
    random = list(dict.fromkeys(_random(program.graph_module)))
    if random:
        raise ExportError(
            "the model answers at random:\n  " + "\n  ".join(random),
            hint="model.eval() switches off nn.Dropout; write F.dropout(x, p, self.training); "
            "pass noise in as an input",
        )
    changed = list(_mutations(program))
    if changed:
        raise ExportError(
            "forward() changes state that the compiled model would not keep:\n  "
            + "\n  ".join(changed),
            hint="take the state as an input and return its new value, or update it elsewhere",
        )


def place(node: "torch.fx.Node") -> str:
    """Say where a node comes from: the module's path and the user's line."""
    stack = node.meta.get("nn_module_stack") or {}
    module = [path for path, _ in stack.values() if path][-1:]
    found = source(str(node.meta.get("stack_trace") or ""))
    return " ".join(filter(None, [*(f"in {m}" for m in module), f"at {found}" if found else ""]))


def source(stack_trace: str) -> str:
    """Return ``file:line`` of the innermost frame of a stack trace that is not torch's own."""
    frames = re.findall(r'File "([^"]+)", line (\d+)', stack_trace)
    own = [f for f in frames if not re.search(r"(^|[/\\])torch[/\\]", f[0])]
    return ":".join(own[-1]) if own else ""


def _random(module: "torch.fx.GraphModule") -> Iterator[str]:
    import torch

    for node in module.graph.nodes:
        if node.op == "get_attr" and isinstance(
            getattr(module, str(node.target), None), type(module)
        ):
            yield from _random(getattr(module, str(node.target)))
        if not isinstance(node.target, torch._ops.OpOverload):
            continue
        seeded = torch.Tag.nondeterministic_seeded in node.target.tags
        if (seeded or "dropout" in str(node.target)) and _live(node, node.target):
            yield f"{node.target} {place(node)}".strip()


def _live(node: "torch.fx.Node", operator: "torch._ops.OpOverload[..., Any]") -> bool:
    """Whether a random operator draws: many take a switch that evaluation turns off."""
    values: dict[str, Any] = {
        a.name: node.args[i] if i < len(node.args) else node.kwargs.get(a.name, a.default_value)
        for i, a in enumerate(operator._schema.arguments)
    }
    for switch in ("train", "training", "dropout_p", "p", "dropout"):
        if switch in values and not values[switch]:
            return False
    return True


def _mutations(program: "ExportedProgram") -> Iterator[str]:
    from torch.export.graph_signature import OutputKind

    if any(_writes(node) for node in program.graph.nodes):
        # A captured graph still writes in place; made functional, its signature says to what.
        with quiet():
            program = program.run_decompositions({})
    kinds = (OutputKind.BUFFER_MUTATION, OutputKind.PARAMETER_MUTATION)
    nodes = {node.name: node for node in program.graph.nodes}
    for spec in program.graph_signature.output_specs:
        if spec.kind in kinds:
            yield f"{spec.target} {place(nodes[spec.arg.name])}".strip()


def _writes(node: "torch.fx.Node") -> bool:
    import torch

    target = node.target
    return isinstance(target, torch._ops.OpOverload) and target._schema.is_mutable
