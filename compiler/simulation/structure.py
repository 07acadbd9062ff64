"""From a torch module and a call's shapes to the float program that a target would get.

The module is copied and its parameters are given numbers that never repeat, so that the program
has the structure of any weights: with the user's, a bias of zeros might be dropped, or two equal
parameters become one. The user's own numbers go in once the structure is known.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import onnx_ir as ir
import torch
from torch import Tensor, nn

from npuc import per_target
from npuc.capture import Captured, frozen_copy
from npuc.errors import UnsupportedError
from npuc.export import OPSET, export
from npuc.load import Loaded
from npuc.passes import standard
from npuc.passes.base import Pass, run
from npuc.passes.graphs import Names, infer_types
from npuc.program import Program
from npuc.quiet import quiet
from npuc.simulation.evaluator import Array
from npuc.simulation.lineage import Again, Lineage, filled
from npuc.simulation.origins import unique
from npuc.targets.base import Target

STATISTICS = ("running_mean", "running_var")
"""Buffers of normalizations that are folded into weights, and change while a model is trained."""


@dataclass(frozen=True)
class Structure:
    """A float program, where its constants come from, and how a call maps to its ports.

    The numbers of `program` mean nothing; `filled` puts a module's in.
    """

    program: Program
    lineage: Lineage
    captured: Captured

    def filled(self, module: nn.Module) -> Program:
        """Return the program with the parameters of a module as they are now."""
        own = {name: tensor.detach().cpu() for name, tensor in parameters(module).items()}
        with torch.no_grad():
            values = {name: tensor.numpy() for name, tensor in self.lineage(own).items()}
        return replace(self.program, model=filled(self.program.model, values))


def parameters(module: nn.Module) -> dict[str, Tensor]:
    """Return the tensors that may change from call to call, under every name they have."""
    found: dict[str, Tensor] = dict(module.named_parameters(remove_duplicate=False))
    for name, buffer in module.named_buffers(remove_duplicate=False):
        if name.rpartition(".")[2] in STATISTICS and buffer.is_floating_point():
            found[name] = buffer
    return found


def check(module: nn.Module) -> None:
    """Raise `UnsupportedError` where a parameter is not float32."""
    found = parameters(module)
    other = [f"{n} is {str(t.dtype)[6:]}" for n, t in found.items() if t.dtype != torch.float32]
    if other:
        raise UnsupportedError(
            "only float32 parameters can be simulated:\n  " + "\n  ".join(other),
            hint="call model.float() first, and train with torch.autocast around the loss if need "
            "be",
        )


def exported(module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Structure:
    """Export a copy of `module` for calls of this very shape, before any pass.

    Raises what `export` raises, and `UnsupportedError` where constants cannot be traced back to
    parameters.
    """
    copy = frozen_copy(module).cpu()
    given = _renumber(copy)
    loaded = _load(copy, args, kwargs)
    program = export(loaded)
    raw = _unoptimized(loaded.captured)
    lineage = Lineage(raw, given)

    def again(fresh: Mapping[str, Array]) -> ir.Model:
        other = frozen_copy(copy)
        _fill(other, fresh)
        return export(_load(other, args, kwargs)).model

    lineage.step("the export", raw, program.model, again)
    lineage.check(given, program.model, "the export")
    return Structure(program, lineage, loaded.captured)


def structure(
    module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any], target: Target
) -> Structure:
    """Export a copy of `module` for calls of this very shape and prepare it for a target.

    Raises what `exported` and the target's passes raise, and
    `UnsupportedError` where constants cannot be traced back to parameters.
    """
    base = exported(module, args, kwargs)
    lineage = base.lineage

    def watch(item: Pass, before: Program, after: Program) -> None:
        lineage.step(item.name, before.model, after.model, _again(item, before, target))

    passes = (*standard({}), *per_target.prepare(target))
    program = _named(run(base.program, passes, target.profile, watch))
    lineage.check(parameters(base.captured.native), program.model, "the preparation")
    return replace(base, program=program)


def _again(item: Pass, before: Program, target: Target) -> Again:
    def again(fresh: Mapping[str, Array]) -> ir.Model:
        start = replace(before, model=filled(before.model, fresh))
        return run(start, [item], target.profile).model

    return again


def _load(module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Loaded:
    return Loaded(
        "module", type(module).__name__, module=module,
        args=_on_cpu(args), kwargs=_on_cpu(dict(kwargs)), eval_mode=True,
    )  # fmt: skip


def _on_cpu(value: Any) -> Any:
    from torch.utils import _pytree as pytree

    return pytree.tree_map_only(Tensor, lambda t: t.detach().cpu(), value)


def _renumber(module: nn.Module) -> dict[str, Tensor]:
    """Give every parameter numbers that never repeat; returns them by name."""
    found = parameters(module)
    distinct = list({id(t): t for t in found.values()}.values())
    for tensor, array in zip(distinct, unique([tuple(t.shape) for t in distinct]), strict=True):
        with torch.no_grad():
            tensor.copy_(torch.from_numpy(array))
    return found


def _fill(module: nn.Module, fresh: Mapping[str, Array]) -> None:
    found = parameters(module)
    with torch.no_grad():
        for name, array in fresh.items():
            found[name].copy_(torch.from_numpy(array))


def _unoptimized(captured: Captured) -> ir.Model:
    """Export once more without torch's own folding: every constant is a parameter still."""
    try:
        with torch.no_grad(), quiet():
            exported = torch.onnx.export(
                captured.program, dynamo=True, opset_version=OPSET, optimize=False, verbose=False
            )
    except Exception as error:  # torch.onnx wraps everything in its own error types
        raise UnsupportedError(
            "this model cannot be simulated: torch exports it for compiling, but not with its "
            f"parameters as they are ({type(error).__name__})",
            hint="the cause is attached",
        ) from error
    assert exported is not None  # `export` has just done the same
    infer_types(exported.model)  # some operators take another tensor's type
    return exported.model


def _named(program: Program) -> Program:
    """Give every node a name of its own, by which it is found again after later passes."""
    copy = program.clone()
    names, used = Names(copy.model), set[str]()
    for node in copy.model.graph:
        if not node.name or node.name in used:
            node.name = names.new(f"{node.op_type}_{node.outputs[0].name}")
        used.add(node.name)
    return copy
