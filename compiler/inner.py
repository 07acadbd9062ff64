"""Values inside the model that are recorded with its answers: what chosen modules return."""

import contextlib
import difflib
from collections.abc import Iterator, Sequence
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
    import torch

    known = [name for name, _ in module.named_modules(remove_duplicate=False) if name]
    if names and isinstance(module, torch.fx.GraphModule):
        raise UsageError(
            "an exported program runs no modules: there are no intermediates to record",
            hint="record them where the model is: npuc.save(model, …, intermediates=[…])",
        )
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


@contextlib.contextmanager
def tapped(
    module: "torch.nn.Module", names: Sequence[str]
) -> Iterator[dict[str, "np.ndarray[Any, Any]"]]:
    """Collect what the named modules return while calls run inside.

    A module's one tensor has the module's name; several are ``name:0``, ``name:1`` …; those of
    later calls of the same module begin with ``name@1``.
    """
    from torch.utils import _pytree as pytree

    from npuc.signature import to_array

    seen: dict[str, np.ndarray[Any, Any]] = {}
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
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()


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
    places = values(exported.model, names)
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
