"""Even out the ranges of channels that share a scale, without changing the function."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import numpy as np
import onnx_ir as ir

from npuc.errors import PassError
from npuc.passes.base import Pass, Result
from npuc.passes.equalization.channels import Absorbed, Channels, trace
from npuc.passes.equalization.choose import choose
from npuc.passes.equalization.noise import Statistics, axes_of, spread, terms
from npuc.passes.equalization.rules import RULES
from npuc.passes.graphs import Names, constant, drop_if_unused, infer_types, initializer
from npuc.profile import IntScheme, Profile

Array = np.ndarray[Any, Any]

NEAR = 1e-3
"""Factors that differ from 1 by less change nothing that eight bits could show."""


@dataclass(frozen=True)
class Equalize(Pass):
    """Conv(w, b) → Relu → Conv(v)  ⇒  Conv(w/s, b/s) → Relu → Conv(v·s), a factor s per channel.

    Factors go from what can give them (the outputs of Conv, Gemm and MatMul with constant
    weights, scale and offset of a normalization, a constant vector that multiplies) through what
    is homogeneous (Relu, pooling, residual sums, reshapes, attention) to weights that can take
    them. Channels that a sum or a Concat ties together have one factor; those of queries and keys
    are each other's inverse. `statistics` are those of the tensors that `observed` names.

    Refuses: what enters a clamp at a value other than zero; a large weight that several operators
    share. Leaves alone all that no rule is known for.
    """

    name: ClassVar[str] = "equalize"
    optional: ClassVar[bool] = True

    statistics: Mapping[str, Statistics] = field(repr=False)
    logs: Array | None = field(default=None, repr=False, compare=False)
    """What `chosen` returned for an equal model, where that is known: choosing takes seconds."""

    def apply(self, model: ir.Model, profile: Profile) -> Result:
        """Rewrite constants in place; `changes` counts them."""
        scheme = profile.int_scheme
        if scheme is None:
            raise PassError(f"target {profile.name!r} has no integer scheme")
        channels = traced(model)
        logs = self.logs
        if logs is None:
            logs = _factors(model, channels, scheme, self.statistics)
        changes = rescale(model, channels.absorbed, logs)
        return Result(changes, tuple(dict.fromkeys(channels.refusals)))


def traced(model: ir.Model) -> Channels:
    """Follow the channels of a model, which gets types: what the functions below all need."""
    infer_types(model)
    return trace(model, RULES)


def observed(
    model: ir.Model, scheme: IntScheme, channels: Channels | None = None
) -> dict[str, tuple[int, ...]]:
    """Return the tensors that `Equalize` needs to know, with the axes of their channels."""
    return axes_of(model, channels or traced(model), scheme)


def observable(
    model: ir.Model, scheme: IntScheme, channels: Channels | None = None
) -> dict[str, tuple[int, ...]]:
    """Return all tensors that `observed` names for any scheme: the same whatever `scheme` is.

    As if every operator computed on codes, and its result were stored as codes and as a float.
    Where a scheme's own axes are others, those of most operators are taken.
    """
    channels, ops = channels or traced(model), frozenset(node.op_type for node in model.graph)
    found: dict[str, tuple[int, ...]] = {}
    for whole in (False, True):
        every = replace(
            scheme, ops=ops, whole=whole, fused=frozenset(), coded_sums=False, fixed_scales={}
        )
        found |= axes_of(model, channels, every)
    values = [*model.graph.inputs, *(v for node in model.graph for v in node.outputs)]
    floats = {value.name for value in values if value.dtype == ir.DataType.FLOAT}
    return {name: axes for name, axes in found.items() if name in floats}


def factors(
    model: ir.Model, scheme: IntScheme, statistics: Mapping[str, Statistics]
) -> dict[str, Array]:
    """Return by what `Equalize` divides the channels of the tensors in `statistics`."""
    return chosen(model, scheme, statistics)[1]


def chosen(
    model: ir.Model,
    scheme: IntScheme,
    statistics: Mapping[str, Statistics],
    channels: Channels | None = None,
) -> tuple[Array, dict[str, Array]]:
    """Return the logarithms that `Equalize` takes for a model, and what `factors` does."""
    channels = channels or traced(model)
    logs = _factors(model, channels, scheme, statistics)
    values = {v.name: v for v in channels.ids}
    found = {}
    for name, axes in axes_of(model, channels, scheme).items():
        if name in values and name in statistics:
            ids = spread(channels.of(values[name]), values[name], axes)
            if ids.size == statistics[name].square.size:
                found[name] = np.exp(logs[ids])
    return logs, found


def _factors(
    model: ir.Model, channels: Channels, scheme: IntScheme, statistics: Mapping[str, Statistics]
) -> Array:
    roots, signs = channels.variables.resolved()
    found = terms(model, channels, scheme, statistics)
    logs = choose(found, roots.size, scheme)[roots] * signs
    # Here, not constant by constant: a factor is left out wherever it occurs, or nowhere.
    return np.where(np.abs(logs) > NEAR, logs, 0.0)


def rescale(model: ir.Model, absorbed: list[Absorbed], logs: Array) -> int:
    """Scale constants in place by the factors whose logarithms are given; return how many.

    `logs` has an entry per number of `Channels.variables`, 0 where that is held.
    """
    names = Names(model)
    changed: dict[tuple[ir.Node, int], Array] = {}
    for item in absorbed:
        factor = item.sign * logs[item.ids]
        if factor.any():
            key = (item.node, item.index)
            before = changed.get(key, np.zeros((1,) * factor.ndim))
            changed[key] = before + factor
    for (node, index), factor in changed.items():
        value = node.inputs[index]
        array = constant(value)
        assert value is not None and array is not None
        scaled = (array.astype(np.float64) * np.exp(factor)).astype(np.float32)
        while scaled.ndim > array.ndim and scaled.shape[0] == 1:
            scaled = scaled[0]
        graph = model.graph
        new = initializer(graph, names.new(f"{value.name}_equalized"), scaled)
        node.replace_input_with(index, new)
        drop_if_unused(value)
    return len(changed)
