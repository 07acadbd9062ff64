"""The program that a device computes, as a differentiable function of calls and weights."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import onnx_ir as ir
import torch
from torch import Tensor

from npuc.errors import UnsupportedError
from npuc.passes.base import run
from npuc.passes.decompose_rnn import DecomposeRnn
from npuc.passes.graphs import constant, infer_types
from npuc.passes.qdq.sites import PRODUCTS, sites
from npuc.passes.quantize import Quantize
from npuc.passes.round_floats import RECURRENT, RoundFloats
from npuc.profile import IntScheme, Profile
from npuc.program import Program
from npuc.quantization.thresholds import Range
from npuc.simulation.evaluator import Evaluator, Values
from npuc.simulation.lineage import Lineage, arrays, filled
from npuc.simulation.origins import Rule, unique
from npuc.simulation.rounding import Coding, coded_bias, round_float
from npuc.simulation.structure import Structure

SAME = 1e-6
"""What a coded constant may be off by, relative to the largest of its tensor: float32 roundings
of its scale. A code that differs is off by 1/127 of it at least."""


@dataclass(frozen=True)
class _Bias:
    """A bias that is coded with the scales of its weight."""

    name: str
    coding: Coding
    step: float
    ratio: float
    groups: int


@dataclass(frozen=True)
class Codes:
    """What a quantized program codes: DequantizeLinear's output → the constant it stands for."""

    weights: Mapping[str, Coding] = field(default_factory=dict)
    biases: Mapping[str, _Bias] = field(default_factory=dict)

    def made(self, values: Values) -> dict[str, Tensor]:
        """Code the weights as they are now."""
        given = dict(values)
        known = {*self.weights.values(), *(b.coding for b in self.biases.values())}
        scales = {c: c.scales(given[c.weight], given) for c in known}
        found = {name: c.coded(given[c.weight], scales[c]) for name, c in self.weights.items()}
        for name, bias in self.biases.items():
            coding = bias.coding
            found[name] = coded_bias(
                given[bias.name], scales[coding], bias.step, bias.ratio, bias.groups, coding.scheme
            )
        return found


class Simulated:
    """A program of one shape with a device's numerics; `program` is what is computed."""

    def __init__(
        self,
        base: Structure,
        program: Program,
        profile: Profile,
        ranges: Mapping[str, Range] | None,
        rounds: Sequence[RoundFloats],
    ) -> None:
        self.captured, self._lineage = base.captured, base.lineage
        self._codes = Codes()
        before = program
        if ranges is not None and (scheme := profile.int_scheme) is not None:
            program = run(program, [Quantize(ranges)], profile)
            self._codes = codes(before, program, scheme)
        self.program = run(program, rounds, profile)
        generic = _generic(program, base.lineage.live)
        final = run(generic, rounds, profile)
        flush = profile.get("float.subnormals", "kept") == "flushed"
        self._late = _later(generic, final, base.lineage.live, rounds, flush)
        final = _unrolled(final, self._late, profile)
        # A constant that no parameter leads to may be the bias of a weight that one does.
        self._fixed = {
            name: torch.tensor(array)
            for name, array in arrays(before.model).items()
            if name not in base.lineage.live
        }
        self._run = Evaluator(
            final.model.graph, final.opset, {*self._late.live, *(p.name for p in final.inputs)},
            [item.format for item in rounds],
        )  # fmt: skip
        self._outputs = [port.name for port in self.program.outputs]
        given = {n: torch.tensor(a) for n, a in arrays(before.model).items()}
        with torch.no_grad():
            _compare(program, self._codes.made(given))

    def __call__(self, call: Values, parameters: Values) -> dict[str, Tensor]:
        """Return the outputs by name."""
        weights = self._lineage(parameters)
        device = next((t.device for t in (*parameters.values(), *call.values())), None)
        fixed = {name: tensor.to(device) for name, tensor in self._fixed.items()}
        made = self._codes.made({**fixed, **weights})
        values = self._run({**call, **self._late(weights)}, made)
        return {name: values[name] for name in self._outputs}


def _compare(program: Program, made: Values) -> None:
    """Raise `UnsupportedError` where coded constants are not what is computed here for them.

    A weight that the program codes in another way would be a constant here, without a gradient.
    """
    nodes = [
        node
        for node in program.model.graph
        if node.op_type == "DequantizeLinear" and constant(node.inputs[0]) is not None
    ]
    real = Evaluator(nodes, program.opset, ())({}, {})
    wrong = []
    for node in nodes:
        name = node.outputs[0].name or ""
        bar = SAME * float(real[name].abs().max())
        if name not in made or float((made[name] - real[name]).abs().max()) > bar:
            wrong.append(f"{name} of shape {list(real[name].shape)}")
    if wrong:
        listed = ", ".join(wrong)
        raise UnsupportedError(f"npuc cannot simulate how these constants are coded: {listed}")


def codes(before: Program, after: Program, scheme: IntScheme) -> Codes:
    """Find out how `Quantize` coded the constants of a program; nodes have names of their own."""
    copy = before.clone()
    infer_types(copy.model)
    made = {node.name: node for node in after.model.graph}
    weights: dict[str, tuple[str, int | None]] = {}
    schemes: dict[tuple[str, int | None], IntScheme] = {}
    limits: dict[tuple[str, int | None], list[tuple[str, float, int]]] = {}
    biases: dict[str, tuple[str, tuple[str, int | None], float, float, int]] = {}
    for site in sites(copy.model, scheme)[0]:
        node = made[site.node.name]
        for index in site.weights:
            if (real := _dequantized(node, index)) is not None:
                weights[real] = key = _name(site.node, index), site.axis
                schemes.setdefault(key, _scheme(site.node, scheme))
        real = None if site.bias is None else _dequantized(node, site.bias)
        if site.bias is None or real is None:
            continue
        key = _name(site.node, site.weights[0]), site.axis
        step, ratio = _data_scale(node), _ratio(node)
        name = _name(site.node, site.bias)
        limits.setdefault(key, []).append((name, step * ratio, site.groups))
        biases[real] = name, key, step, ratio, site.groups
    found = {key: Coding(*key, schemes[key], tuple(limits.get(key, ()))) for key in schemes}
    return Codes(
        {real: found[key] for real, key in weights.items()},
        {
            real: _Bias(name, found[key], step, ratio, groups)
            for real, (name, key, step, ratio, groups) in biases.items()
        },
    )


def _scheme(node: ir.Node, scheme: IntScheme) -> IntScheme:
    """Return the scheme with the codes that a node's constants may have."""
    if scheme.constant_range is None or node.op_type in PRODUCTS:
        return scheme
    return replace(scheme, weight_range=scheme.constant_range)


def _name(node: ir.Node, index: int) -> str:
    value = node.inputs[index]
    return "" if value is None else value.name or ""


def _dequantized(node: ir.Node, index: int) -> str | None:
    value = node.inputs[index]
    producer = None if value is None else value.producer()
    if producer is None or producer.op_type != "DequantizeLinear":
        return None
    return producer.outputs[0].name


def _data_scale(node: ir.Node) -> float:
    value = node.inputs[0]
    producer = None if value is None else value.producer()
    scale = None if producer is None else constant(producer.inputs[1])
    assert scale is not None  # a bias is coded only where the data is
    return float(scale.reshape(()))


def _ratio(node: ir.Node) -> float:
    alpha, beta = (node.attributes.get_float(key, 1.0) for key in ("alpha", "beta"))
    return float(np.float32(alpha / beta))


def _generic(program: Program, live: set[str]) -> Program:
    """Return a program in which no constant is a number of a shorter float already."""
    held = {n: a for n, a in arrays(program.model).items() if n in live}
    fresh = dict(zip(held, unique([a.shape for a in held.values()]), strict=True))
    return replace(program, model=filled(program.model, fresh))


def _later(
    before: Program, after: Program, live: set[str], rounds: Sequence[RoundFloats], flush: bool
) -> Lineage:
    """Follow the constants that stay floats through `RoundFloats`."""
    late = Lineage(before.model, live)
    made = {node.name: node for node in after.model.graph}
    old, new = arrays(before.model), arrays(after.model)
    rules: dict[str, Rule] = {}
    for node in before.model.graph:
        for index, value in enumerate(node.inputs):
            name = "" if value is None else value.name or ""
            if name in late.live:
                now = _name(made[node.name], index)
                rules[now] = _rounded(name, np.array_equal(old[name], new[now]), rounds, flush)
    late.replace(rules)
    return late


def _rounded(name: str, same: bool, rounds: Sequence[RoundFloats], flush: bool) -> Rule:
    if same:
        return lambda values: values[name]

    def rule(values: Values) -> Tensor:
        tensor = values[name]
        for item in rounds:
            tensor = round_float(tensor, item.format, flush)
        return tensor

    return rule


def _unrolled(program: Program, late: Lineage, profile: Profile) -> Program:
    """Write recurrent operators out in steps, which torch differentiates."""
    if not any(node.op_type in RECURRENT for node in program.model.graph):
        return program

    def unroll(model: ir.Model) -> Program:
        return run(replace(program, model=model), [DecomposeRnn()], profile)

    found = unroll(program.model)
    late.step(
        "decompose-rnn",
        program.model,
        found.model,
        lambda new: unroll(filled(program.model, new)).model,
    )
    return found
