"""Judge indices that a model chose by the scores it chose them from, not by their numbers.

Where two scores lie within rounding of each other, either index is a right answer. Covered are
graph outputs that come from ArgMax, ArgMin or the indices of TopK (torch's argmax, topk, sort and
argsort) through operators that move or convert values. Not covered: data gathered BY an index
(boxes in the order of their scores, a label from a table), comparisons with a threshold, indices
computed with, and the rows of NonMaxSuppression, whose number may differ.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir

from npuc import floors, nodes
from npuc.metrics import Settle
from npuc.program import Program, Tensors
from npuc.runners import OnnxRunner

Array = np.ndarray[Any, Any]

CHOOSERS = {"ArgMax": 0, "ArgMin": 0, "TopK": 1}
"""Operators that choose, and which of their results holds the indices."""

KEEPS_ORDER = frozenset({"Cast", "Flatten", "Identity", "Reshape", "Squeeze", "Unsqueeze"})

FLOOR_CALLS = 4
"""Calls on which the noise of the scores is measured: the worst of 4 x 4 disturbed runs."""

PART = 0.1
"""Of the scores' spread: noise as large as this tells nothing apart, and excuses no index. It keeps
a model whose scores are all alike, or NaN, from tying everything with everything."""


@dataclass(frozen=True, slots=True)
class Choice:
    """Where an output's indices come from: the chooser's `indices`, along `axis` of `scores`.

    `moves` are the transposes on the way to the output: the value they read, and their order of
    axes (None reverses them).
    """

    scores: str
    indices: str
    axis: int
    keeps_axis: bool
    moves: tuple[tuple[str, tuple[int, ...] | None], ...] = ()

    @property
    def values(self) -> tuple[str, ...]:
        """Names of the values that judging needs."""
        return (self.scores, self.indices, *(name for name, _ in self.moves))


def find(program: Program) -> dict[str, Choice]:
    """Return for each output that holds chosen indices where they come from."""
    found = {v.name or "": _trace(v) for v in program.model.graph.outputs}
    return {name: choice for name, choice in found.items() if choice is not None}


def _trace(value: ir.Value) -> Choice | None:
    moves: list[tuple[str, tuple[int, ...] | None]] = []
    while (node := value.producer()) is not None:
        if node.domain not in ("", "ai.onnx"):
            return None
        if node.op_type in CHOOSERS:
            scores = node.inputs[0]
            if scores is None or value.index() != CHOOSERS[node.op_type]:
                return None
            return Choice(
                scores.name or "",
                value.name or "",
                int(nodes.attribute(node, "axis")),
                node.op_type == "TopK" or bool(nodes.attribute(node, "keepdims")),
                tuple(reversed(moves)),
            )
        source = nodes.operand(node, 0)
        if source is None or (node.op_type not in KEEPS_ORDER and node.op_type != "Transpose"):
            return None
        if node.op_type == "Cast" and nodes.attribute(node, "to") == ir.DataType.BOOL:
            return None
        if node.op_type == "Transpose":
            order = nodes.attribute(node, "perm")
            moves.append((source.name or "", tuple(order) if order else None))
        value = source
    return None


class Chosen:
    """The chosen outputs of a program and the scores behind them, computed where they are needed.

    `factor` is how many noise floors of its scores a choice may be off: as many as the scores
    themselves may be, on both sides. The floor is that of one-ulp moves of weights and inputs;
    a reference from a device with more noise (TF32) is not excused by it.
    """

    def __init__(self, program: Program, samples: Sequence[Tensors], factor: float):
        self.found = find(program)
        self._program, self._samples, self._factor = program, samples, factor
        self._runner: OnnxRunner | None = None
        self._ties: dict[str, float] = {}
        self._last: tuple[Tensors, Tensors] | None = None

    def over(self, calls: Sequence[Tensors]) -> Settle | None:
        """Return what settles ties in the answers to `calls`; None where nothing is chosen."""
        if not self.found:
            return None
        return lambda name, call, ref, got: self.settle(name, calls[call], ref, got)

    def settle(self, name: str, call: Tensors, reference: Array, candidate: Array) -> Array:
        """Return the candidate with the reference's index wherever its own is as good."""
        choice = self.found.get(name)
        if choice is None or reference.shape != candidate.shape:
            return candidate
        if reference.dtype.kind != candidate.dtype.kind or np.array_equal(reference, candidate):
            return candidate
        values = self._values(call)
        settled = _settled(choice, values, reference, candidate, self.ties(name))
        return np.where(settled, reference, candidate).astype(candidate.dtype)

    def ties(self, name: str) -> float:
        """Return how far apart two scores of an output's choice may lie and still be one."""
        if not self._ties:
            self._ties = self._measured()
        return self._ties[self.found[name].scores]

    def _measured(self) -> dict[str, float]:
        names = {choice.scores for choice in self.found.values()}
        watched = _watched(self._program, names)
        samples = self._samples[:FLOOR_CALLS]
        answers = [OnnxRunner(watched, "scores")(call) for call in samples]
        eps = float(np.finfo(np.float32).eps)
        noise = floors.of_program(watched, samples, answers)
        given = {p.name for p in self._program.inputs}
        return {
            name: 0.0 if name in given else self._factor * max(f.max_abs, eps * f.peak)
            for name, f in noise.items()
            if name in names
        } | dict.fromkeys(names & given, 0.0)

    def _values(self, call: Tensors) -> Tensors:
        if self._last is not None and self._last[0] is call:
            return self._last[1]
        if self._runner is None:
            names = {name for choice in self.found.values() for name in choice.values}
            self._runner = OnnxRunner(_watched(self._program, names), "scores")
        values = {**call, **self._runner(call)}
        self._last = (call, values)
        return values


def _watched(program: Program, names: set[str]) -> Program:
    """Return the program with inner values as further outputs."""
    copied = program.clone()
    already = {v.name for v in copied.model.graph.outputs}
    inner = (v for node in copied.model.graph for v in node.outputs)
    copied.model.graph.outputs.extend(v for v in inner if v.name in names - already)
    return Program.from_model(copied.model)


def _settled(
    choice: Choice, values: Tensors, reference: Array, candidate: Array, ties: float
) -> Array:
    """Say for each value of an output whether both indices there are equally good choices."""
    scores = np.asarray(values[choice.scores], np.float64)
    none = np.zeros(reference.shape, bool)
    if not np.isfinite(scores).any() or ties >= PART * float(scores[np.isfinite(scores)].std()):
        return none
    indices = values[choice.indices]
    places = np.arange(indices.size)  # of the output's values in the chooser's result
    for name, order in choice.moves:
        places = places.reshape(values[name].shape).transpose(order).ravel()
    if places.size != reference.size:
        return none
    ours, others = (_at(a, places, indices, choice) for a in (reference, candidate))
    axis, size = choice.axis, scores.shape[choice.axis]
    inside = (others >= 0) & (others < size) & (ours >= 0) & (ours < size) & (others % 1 == 0)
    ours, others = (np.where(inside, a, 0).astype(np.int64) for a in (ours, others))
    gap = np.take_along_axis(scores, ours, axis) - np.take_along_axis(scores, others, axis)
    fine = inside & (np.abs(gap) <= ties) & ~_repeated(others, axis)
    found: Array = np.empty(reference.size, bool)
    found[:] = fine.ravel()[places]
    return found.reshape(reference.shape)


def _at(output: Array, places: Array, indices: Array, choice: Choice) -> Array:
    """Bring an output back to the shape its indices were chosen in, the chosen axis kept."""
    flat = np.empty(indices.size)
    flat[places] = output.ravel()
    shaped = flat.reshape(indices.shape)
    return shaped if choice.keeps_axis else np.expand_dims(shaped, choice.axis)


def _repeated(indices: Array, axis: int) -> Array:
    """Say which indices come up more than once along an axis: no ranking does that."""
    order = np.argsort(indices, axis=axis, kind="stable")
    ranked = np.take_along_axis(indices, order, axis)
    equal = np.diff(ranked, axis=axis) == 0
    edge = [(0, 0)] * indices.ndim
    before, after = list(edge), list(edge)
    before[axis], after[axis] = (1, 0), (0, 1)
    twice = np.pad(equal, before) | np.pad(equal, after)
    found: Array = np.empty_like(twice)
    np.put_along_axis(found, order, twice, axis)
    return found
