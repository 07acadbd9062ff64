"""How the constants of a program follow from a module's parameters, step by step.

Passes compute new constants from old ones in numpy, where no gradient passes. They need not know
that they are watched: each new constant is traced back to what it was made of, and the same is
computed in torch. Wrong guesses do not go far: `Lineage.check` compares every constant.
"""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np
import onnx_ir as ir
import torch
from torch import Tensor

from npuc.errors import UnsupportedError
from npuc.passes.fold_batchnorm import HOSTS
from npuc.passes.graphs import constant
from npuc.simulation.evaluator import Array, Evaluator, Values
from npuc.simulation.origins import Origin, Rule, half, unique

Again = Callable[[Mapping[str, Array]], ir.Model]
"""Takes the step once more, with other values for the constants that come from parameters."""

TOLERANCE = 1e-4
"""What a constant may differ by from its rule, relative to the largest of its tensor. Folding
adds up a few float32 roundings (1e-7 each, more where terms cancel); a wrong rule is off by all."""


class Lineage:
    """The constants of a program that depend on parameters, as functions of the parameters.

    It begins with a program whose constants are the `parameters` themselves, by name.
    """

    def __init__(self, model: ir.Model, parameters: Iterable[str]) -> None:
        known = set(parameters)
        self.live = {name for name in model.graph.initializers if name in known}
        self._steps: list[dict[str, Rule]] = []

    def __call__(self, given: Values) -> dict[str, Tensor]:
        """Return every constant that depends on parameters, by name."""
        values = dict(given)
        for rules in self._steps:
            values = {name: rule(values) for name, rule in rules.items()}
        return {name: values[name] for name in self.live}

    def step(self, name: str, before: ir.Model, after: ir.Model, again: Again) -> None:
        """Learn how `after` got its constants from those of `before`.

        Values of parameters must be unique in `before` (see `unique`). Raises `UnsupportedError`
        listing the constants that were computed in a way that is not understood.
        """
        old, new = arrays(before), arrays(after)
        rules: dict[str, Rule] = {}
        pending: dict[str, Array] = {}
        same = {_key(old[known]): known for known in sorted(self.live)}
        makers = {v.name or "": node for node in before.graph for v in node.outputs}
        for was, now in zip(before.graph.outputs, after.graph.outputs, strict=False):
            if (maker := was.producer()) is not None:  # ports are named anew in the export
                makers.setdefault(now.name or "", maker)
        for known, array in new.items():
            source = known if known in self.live and _key(old[known]) == _key(array) else None
            source = source or same.get(_key(array))
            if source is not None:
                rules[known] = _carry(source)
            elif known in old and _key(old[known]) == _key(array):
                continue
            elif known in makers:
                if (rule := self._computed(known, makers, before)) is not None:
                    rules[known] = rule
            elif (
                rule := self._normalized(after.graph.initializers[known], makers, before)
            ) is not None:
                rules[known] = rule
            else:
                pending[known] = array
        if pending:
            rules |= self._moved(name, pending, old, again)
        if any(known != source for known, source in _sources(rules).items()):
            self._steps.append(rules)
        self.live = set(rules)

    def replace(self, rules: Mapping[str, Rule]) -> None:
        """Take a step whose rules are known."""
        self._steps.append(dict(rules))
        self.live = set(rules)

    def check(self, given: Values, model: ir.Model, where: str) -> None:
        """Raise `UnsupportedError` where a constant is not what its rule says."""
        with torch.no_grad():
            found = self(given)
        wrong = [
            name
            for name, array in arrays(model).items()
            if name in found and not _close(found[name].cpu().numpy(), array)
        ]
        if wrong:
            raise UnsupportedError(
                f"gradients cannot follow {', '.join(wrong)}: {where} computes them in a way that "
                "npuc does not understand",
                hint="report this with the model; npuc compile is not affected",
            )

    def _computed(self, name: str, makers: Mapping[str, ir.Node], model: ir.Model) -> Rule | None:
        """A constant that nodes of `before` compute from constants; None where none is live."""
        nodes = _ancestors(makers[name])
        needed = {v.name or "" for node in nodes for v in _read(node)}
        wanted = sorted(needed & self.live)
        if not wanted:
            return None
        run = Evaluator(nodes, model.opset_imports.get("", 0), self.live)
        return lambda values: run({key: values[key] for key in wanted}, {})[name]

    def _normalized(
        self, value: ir.Value, makers: Mapping[str, ir.Node], model: ir.Model
    ) -> Rule | None:
        """The weight or bias of a convolution or Gemm that took in a batch normalization."""
        for user, index in value.uses():
            norm = makers.get(user.outputs[0].name or "")
            if index not in (1, 2) or norm is None or norm.op_type != "BatchNormalization":
                continue
            host = None if norm.inputs[0] is None else norm.inputs[0].producer()
            if host is None or host.op_type != user.op_type or host.op_type not in HOSTS:
                continue
            wanted = (v for v in (*norm.inputs[1:5], *host.inputs[1:3]) if v is not None)
            get = [self._reader(v, makers, model) for v in wanted]
            return _folded(host, norm, index, get)
        return None

    def _reader(self, value: ir.Value, makers: Mapping[str, ir.Node], model: ir.Model) -> Rule:
        """What gives a value of `before` in double."""
        name = value.name or ""
        if name in self.live:
            return lambda values: values[name].double()
        array = constant(value)
        if array is None and (rule := self._computed(name, makers, model)) is not None:
            return lambda values: rule(values).double()
        if array is None:
            run = Evaluator(_ancestors(makers[name]), model.opset_imports.get("", 0), ())
            array = run({}, {})[name].numpy()
        tensor = torch.tensor(array, dtype=torch.float64)
        return lambda values: tensor.to(next(iter(values.values())).device)

    def _moved(
        self, name: str, pending: Mapping[str, Array], old: Mapping[str, Array], again: Again
    ) -> dict[str, Rule]:
        """Constants that hold others' values, or numbers, in some order: seen by changing them.

        What is no such thing may be the sum of two: an LSTM's bias is, of the halves of its B.
        """
        live = sorted(self.live)
        shapes = [old[n].shape for n in live]
        fresh = dict(zip(live, unique(shapes, seed=1), strict=True))
        changed = arrays(again(fresh))
        origin = Origin(fresh)
        rules: dict[str, Rule] = {}
        lost: list[str] = []
        for known, array in pending.items():
            found = changed.get(known)
            if (rule := origin.of(found, array)) is not None:
                rules[known] = rule
            elif found is not None and (rule := origin.of(-found, -array)) is not None:
                rules[known] = _negated(rule)  # PRelu's slope, where it is written out
            elif not np.array_equal(changed.get(known, np.zeros(0)), array):
                lost.append(known)
        if lost:
            halves = [{n: half(array, first) for n, array in fresh.items()} for first in (0, 1)]
            sums = [arrays(again(half)) for half in halves]
            for known in tuple(lost):
                zeros = np.zeros_like(pending[known])
                parts = [origin.of(found.get(known), zeros) for found in sums]
                if parts[0] is not None and parts[1] is not None:
                    rules[known] = _added(parts[0], parts[1])
                    lost.remove(known)
        if lost:
            raise UnsupportedError(
                f"gradients cannot follow {', '.join(lost)}: {name} computes them in a way that "
                "npuc does not understand",
                hint="torch.nn.utils.parametrize.remove_parametrizations helps where a weight is "
                "computed from others",
            )
        return rules


def _negated(rule: Rule) -> Rule:
    return lambda values: -rule(values)


def _added(left: Rule, right: Rule) -> Rule:
    return lambda values: left(values) + right(values)


def arrays(model: ir.Model) -> dict[str, Array]:
    """Return the float32 constants of a model's main graph by name."""
    found = {}
    for name, value in model.graph.initializers.items():
        if value.const_value is not None and value.const_value.dtype == ir.DataType.FLOAT:
            found[name] = value.const_value.numpy()
    return found


def filled(model: ir.Model, values: Mapping[str, Array]) -> ir.Model:
    """Return a copy with other values for some constants."""
    copy = model.clone()
    for name, array in values.items():
        copy.graph.initializers[name].const_value = ir.tensor(np.ascontiguousarray(array))
    return copy


def _ancestors(node: ir.Node) -> list[ir.Node]:
    """Return a node that depends on constants alone and all that it depends on, in order."""
    found: dict[ir.Node, None] = {}

    def visit(node: ir.Node) -> None:
        for value in _read(node):
            producer = value.producer()
            if producer is not None and producer not in found:
                visit(producer)
        found[node] = None

    visit(node)
    return list(found)


def _read(node: ir.Node) -> list[ir.Value]:
    """Return the inputs whose values a node reads: of some it reads the type or shape alone."""
    like = node.inputs[1] if node.op_type == "CastLike" else None
    typed = 1 if like is not None and like.dtype is not None else 2
    count = {"CastLike": typed, "Shape": 0}.get(node.op_type, len(node.inputs))
    return [value for value in node.inputs[:count] if value is not None]


def _folded(host: ir.Node, norm: ir.Node, index: int, get: list[Rule]) -> Rule:
    """See `FoldBatchNorm`: w' = w·k, b' = (b - m)·k + o, in double and rounded once."""
    epsilon = norm.attributes.get_float("epsilon", 1e-5)
    share = host.attributes.get_float("beta", 1.0) if host.op_type == "Gemm" else 1.0
    turned = host.op_type != "Gemm" or bool(host.attributes.get_int("transB", 0))
    groups = host.attributes.get_int("group", 1) if host.op_type == "ConvTranspose" else 0

    def rule(values: Values) -> Tensor:
        gamma, beta, mean, variance = (get[i](values) for i in range(4))
        scale = gamma / torch.sqrt(variance + epsilon)
        if index == 2:
            bias = share * get[5](values).reshape(-1) if len(get) > 5 else torch.zeros_like(mean)
            return ((bias - mean) * scale + beta).float()
        weight = get[4](values)
        if groups:
            rows = scale.reshape(groups, -1).repeat_interleave(weight.shape[0] // groups, 0)
            shaped = rows.reshape(*rows.shape, *[1] * (weight.dim() - 2))
        else:
            shaped = scale.reshape([-1] + [1] * (weight.dim() - 1)) if turned else scale
        return (weight * shaped).float()

    return rule


class _Carried:
    """A constant that is another one as it was."""

    def __init__(self, source: str) -> None:
        self.source = source

    def __call__(self, values: Values) -> Tensor:
        return values[self.source]


def _carry(source: str) -> Rule:
    return _Carried(source)


def _sources(rules: Mapping[str, Rule]) -> dict[str, str]:
    return {name: rule.source if isinstance(rule, _Carried) else "" for name, rule in rules.items()}


def _key(array: Array) -> Any:
    return array.shape, array.tobytes()


def _close(found: Array, expected: Array) -> bool:
    if found.shape != expected.shape:
        return False
    bar = TOLERANCE * float(np.abs(expected).max(initial=0.0))
    return bool(np.abs(found.astype(np.float64) - expected).max(initial=0.0) <= bar)
