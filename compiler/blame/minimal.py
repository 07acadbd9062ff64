"""The smallest graphs that show a fault: an operator's neighbourhood before and after a step."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import onnx_ir as ir
from onnx_ir.passes import common

from npuc.blame.gaps import BORN, Cut, Gap, Golden
from npuc.errors import NpucError, ParityError
from npuc.program import Program, Tensors
from npuc.runners import OnnxRunner

Array = np.ndarray[Any, Any]

SHOWS = 0.25
"""A reduced case must keep at least this share (-6 dB) of the error that the whole one shows."""

Answer = Callable[[Program, Tensors], Tensors]
"""Compiles a graph, runs it on one call, and returns what it answers."""

LEVELS = 16
"""Values that random weights take: few, so that a bundle of them stays small."""


@dataclass(frozen=True)
class Case:
    """A graph, what it is fed, and what it should answer and does. `good` is the same graph as it
    was before the step, None where that was no graph. `ratio` is noise to signal."""

    bad: Program
    good: Program | None
    inputs: Tensors
    expected: Tensors
    got: Tensors
    ratio: float
    randomized: bool = False


def case(
    golden: Golden, good: Program | None, cut: Cut, tensor: str, calls: Sequence[Tensors]
) -> Case | None:
    """Return the neighbourhood of a tensor on the call that shows most; None where none does."""
    bad = renamed(cut.part([tensor]), {tensor + BORN: tensor})
    needed = [p.name for p in bad.inputs]
    twin = None if good is None else between(good, needed, tensor)
    if twin is not None:
        extra = [p.name for p in twin.inputs if p.name not in needed]
        needed = [*needed, *extra]
    found = None
    for call in calls:
        fed = golden(call, [*needed, tensor])
        if tensor not in fed:
            return None
        expected = {tensor: fed[tensor]}
        inputs = {n: fed[n] for n in needed if n in fed}
        made = _ran(bad, inputs, expected, twin)
        if made is not None and (found is None or made.ratio > found.ratio):
            found = made
    return None if found is None or found.ratio == 0 else fewer_rows(found)


def between(good: Program, inputs: Sequence[str], tensor: str) -> Program | None:
    """Return what makes a tensor of these in the good program, and of its own inputs where these
    do not suffice; None where it does not run."""
    model = good.clone().model
    made = {v.name: v for n in model.graph for v in n.outputs}
    given = {v.name for v in model.graph.inputs}
    if tensor not in made:
        return None
    for name in inputs:
        if name in made and name != tensor:
            old = made[name]
            twin = ir.Value(name=name, type=old.type)
            old.name = f"{name}{BORN}"
            for user, index in list(old.uses()):
                user.replace_input_with(index, twin)
            model.graph.inputs.append(twin)
        elif name not in given:
            return None
    model.graph.outputs[:] = [made[tensor]]
    made[tensor].shape = None
    common.RemoveUnusedNodesPass()(model)
    idle = [
        v for v in model.graph.inputs if not v.uses() and v.name not in model.graph.initializers
    ]
    for value in idle:
        model.graph.inputs.remove(value)
    return Program.from_model(model)


def renamed(program: Program, names: Mapping[str, str]) -> Program:
    """Rename outputs; a tensor that is read under the new name cannot be, and keeps the old one."""
    model = program.clone().model
    taken = {v.name for v in model.graph.inputs}
    for value in model.graph.outputs:
        new = names.get(value.name or "")
        if new is not None and new not in taken:
            value.name = new
    return Program.from_model(model)


def fewer_rows(found: Case) -> Case:
    """Keep one row of a batch where it shows the fault by itself."""
    sizes = {a.shape[0] for a in found.inputs.values() if a.ndim}
    if len(sizes) != 1 or sizes == {1}:
        return found
    for row in range(min(sizes.pop(), 8)):
        inputs = {n: a[row : row + 1] if a.ndim else a for n, a in found.inputs.items()}
        ((name, right),) = found.expected.items()
        if not right.ndim:
            return found
        expected = {name: right[row : row + 1]}
        made = _ran(found.bad, inputs, expected, found.good)
        if made is None or (made.good is not None and not _agrees(made)):
            return found  # the batch is no batch
        if made.ratio >= SHOWS * min(found.ratio, 1e300):
            return made
    return found


def randomized(found: Case, lowered: Answer | None = None, seed: int = 0) -> Case | None:
    """Draw weights anew where both graphs have the same, and inputs; None where it hides the fault.

    What differs between the graphs is the fault, and stays. Where a compiler is at fault there is
    one graph, and `lowered` answers for what the compiler makes of it.
    """
    if found.good is None and lowered is None:
        return None
    generator = np.random.default_rng(seed)
    bad = found.bad.clone()
    good = bad if found.good is None else found.good.clone()
    theirs = good.model.graph.initializers
    for name, value in bad.model.graph.initializers.items():
        other = theirs.get(name)
        if other is None or value.const_value is None or other.const_value is None:
            continue
        array = value.const_value.numpy()
        if array.size < 64 or not np.array_equal(array, other.const_value.numpy()):
            continue
        drawn = ir.tensor(_drawn(array, generator), name=name)
        value.const_value = other.const_value = drawn
    inputs = {n: _drawn(a, generator) for n, a in found.inputs.items()}
    try:
        expected = OnnxRunner(good)(inputs)
        got = OnnxRunner(bad)(inputs) if lowered is None else lowered(bad, inputs)
    except NpucError:
        return None
    ratio = max(_gap(expected[n], got[n]) for n in expected)
    if not ratio > 0 or ratio < 1e-3 * min(found.ratio, 1.0):
        return None
    return Case(bad, found.good and good, inputs, expected, got, ratio, True)


def _drawn(array: Array, generator: np.random.Generator) -> Array:
    """Draw values from as wide a range; small arrays, which hold scales and shapes, stay."""
    if array.size < 64 or array.dtype.kind not in "fi":
        return array
    if array.dtype.kind == "i":
        if array.dtype.itemsize > 1:
            return array  # indices and biases mean something
        low, high = int(array.min()), int(array.max())
        codes: Array = np.asarray(generator.integers(low, high + 1, array.shape))
        return codes.astype(array.dtype)
    steps = generator.integers(-LEVELS // 2, LEVELS // 2, array.shape) + 0.5
    spread = float(array.std()) or 1.0
    drawn: Array = np.asarray(steps * (spread * math.sqrt(12) / LEVELS) + float(array.mean()))
    return drawn.astype(array.dtype)


def _ran(bad: Program, inputs: Tensors, expected: Tensors, good: Program | None) -> Case | None:
    (name,) = expected
    try:
        got = OnnxRunner(bad)(inputs)
    except ParityError:
        return None
    made = {name: next(iter(got.values()))}
    found = Case(bad, good, inputs, expected, made, _gap(expected[name], made[name]))
    return found if good is None or _agrees(found) else replace(found, good=None)


def _agrees(found: Case) -> bool:
    """Whether the good graph answers what is expected."""
    assert found.good is not None
    try:
        answer = OnnxRunner(found.good)(found.inputs)
    except ParityError:
        return False
    return all(_gap(right, answer[n]) <= 1e-3 * found.ratio for n, right in found.expected.items())


def _gap(right: Array, got: Array) -> float:
    return Gap("").plus(right, got).ratio
