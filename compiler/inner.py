"""Values inside the model that are recorded with its answers: what chosen modules return."""

import contextlib
import difflib
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from npuc import floors, source_lines
from npuc.errors import UsageError
from npuc.program import Program

if TYPE_CHECKING:
    import onnx_ir as ir
    import torch

    from npuc.answers import Reference


def check(module: "torch.nn.Module", names: Sequence[str]) -> None:
    """Raise `UsageError` naming every entry that is no module of the model."""
    if not names:
        return
    known = modules(module)
    faults = []
    for name in names:
        if name not in known:
            near = difflib.get_close_matches(name, known, 1)
            faults.append(f"{name!r}" + (f" (did you mean {near[0]!r}?)" if near else ""))
    if faults:
        raise UsageError(
            f"intermediates that are no modules of the model: {', '.join(faults)}",
            hint="its modules are " + ", ".join(known[:20]) + (" …" if len(known) > 20 else ""),
        )


def modules(module: "torch.nn.Module") -> list[str]:
    """Return the modules whose results can be recorded.

    In a captured graph those that one tensor leaves per call, as far as torch kept their names.
    """
    import torch

    if isinstance(module, torch.fx.GraphModule):
        return [name for name in _leaving(module) if "@" not in name]
    return [name for name, _ in module.named_modules(remove_duplicate=False) if name]


@contextlib.contextmanager
def tapped(
    module: "torch.nn.Module", names: Sequence[str]
) -> Iterator[dict[str, "np.ndarray[Any, Any]"]]:
    """Collect what the named modules return while calls run inside.

    A module's one tensor has the module's name; several are ``name:0``, ``name:1`` …; those of
    later calls of the same module begin with ``name@1``.
    """
    import torch

    seen: dict[str, np.ndarray[Any, Any]] = {}
    if not names:
        yield seen
        return
    how = _in_graph if isinstance(module, torch.fx.GraphModule) else _by_hooks
    undo = how(module, names, seen)
    try:
        yield seen
    finally:
        undo()


def _by_hooks(
    module: "torch.nn.Module", names: Sequence[str], seen: dict[str, "np.ndarray[Any, Any]"]
) -> Callable[[], None]:
    from torch.utils import _pytree as pytree

    from npuc.signature import to_array

    times = dict.fromkeys(names, 0)
    wanted = dict(module.named_modules(remove_duplicate=False))

    def hook(name: str) -> Any:
        def keep(_module: Any, _args: Any, result: Any) -> None:
            at = f"@{times[name]}" if times[name] else ""
            times[name] += 1
            tensors = [t for t in pytree.tree_leaves(result) if hasattr(t, "detach")]
            for index, tensor in enumerate(tensors):
                part = f":{index}" if len(tensors) > 1 else ""
                seen[f"{name}{at}{part}"] = to_array(tensor)

        return keep

    handles = [wanted[name].register_forward_hook(hook(name)) for name in names]

    def undo() -> None:
        for handle in handles:
            handle.remove()

    return undo


def _in_graph(
    module: Any, names: Sequence[str], seen: dict[str, "np.ndarray[Any, Any]"]
) -> Callable[[], None]:
    """Let a captured graph hand out the values that leave the named modules."""
    from npuc.signature import to_array

    def keep(name: str, tensor: Any) -> None:
        seen[name] = to_array(tensor)

    added = []
    for name, node in _leaving(module).items():
        if name.split("@")[0] in names:
            with module.graph.inserting_after(node):
                added.append(module.graph.call_function(keep, (name, node)))
    module.recompile()

    def undo() -> None:
        for node in added:
            module.graph.erase_node(node)
        module.recompile()

    return undo


def _leaving(module: Any) -> dict[str, Any]:
    """Return the calls of modules (``name``, ``name@1``) that one graph node leaves, with it."""
    inside: dict[str, set[Any]] = {}
    for node in module.graph.nodes:
        for key, (path, _) in node.meta.get("nn_module_stack", {}).items():
            if path:
                _, at, times = key.partition("@")
                inside.setdefault(path + at + times, set()).add(node)
    found = {}
    for path, nodes in inside.items():
        leaving = [n for n in module.graph.nodes if n in nodes and set(n.users) - nodes]
        if len(leaving) == 1:
            found[path] = leaving[0]
    return found


def values(model: "ir.Model", names: Sequence[str]) -> dict[str, str]:
    """Return module path → the tensor that leaves the module, where exactly one does.

    Nodes know the innermost module that called them (`npuc.source_lines`); a module's result is
    what its nodes make and others read, or what the model returns.
    """
    outputs = set(model.graph.outputs)
    found: dict[str, str] = {}
    places = {node: source_lines.module(node) for node in model.graph}
    for name in names:
        inside = {n for n, at in places.items() if at == name or at.startswith(f"{name}.")}
        leaving = [
            value.name
            for node in model.graph
            if node in inside
            for value in node.outputs
            if value in outputs or any(user not in inside for user, _ in value.uses())
        ]
        if len(leaving) == 1 and leaving[0]:
            found[name] = leaving[0]
    return found


def compare(reference: "Reference", exported: Program) -> tuple[str, ...]:
    """Say how far the exported program is from the original inside, in units of the noise there.

    Only where the program has a tensor for the module; the others are counted.
    """
    if not reference.intermediates or reference.inner is None:
        return ()
    from npuc.runners import OnnxRunner

    names = list(reference.intermediates[0])
    once = [name for name in names if f"{name}@1" not in names]  # else which call is it?
    places = values(exported.model, once)
    inside = {tensor for tensor in places.values()} - {port.name for port in exported.outputs}
    runner = OnnxRunner(exported, "intermediates", sorted(inside))
    got = [runner(call) for call in reference.samples[: len(reference.intermediates)]]
    lines = []
    for name, tensor in places.items():
        expected = [{name: call[name]} for call in reference.intermediates]
        answered = [{name: call[tensor]} for call in got]
        if expected[0][name].shape != answered[0][name].shape:
            continue  # a part of what the module does: the export fused it with others
        gap = floors.distance(expected, answered)[name]
        noise = reference.inner.floor[name]
        lines.append(f"{name} {gap.max_abs:.2e} ({_times(gap.max_abs, noise)})")
    rest = len(names) - len(lines)
    if rest:
        lines.append(f"{rest} of {len(names)} have no tensor of their own in the exported program")
    return ("inside the exported program, from the original: " + "; ".join(lines),)


def _times(gap: float, noise: floors.Floor) -> str:
    eps = float(np.finfo(np.float32).eps)
    unit = max(noise.max_abs, eps * noise.peak)
    return f"{gap / unit:.2g} times its noise" if unit else "it has no noise"
