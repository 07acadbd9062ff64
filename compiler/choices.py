"""Judge indices that a model chose by the scores it chose them from, not by their numbers.

Where two scores lie within rounding of each other, either index is a right answer. Covered are
graph outputs that come from ArgMax, ArgMin or the indices of TopK (torch's argmax, topk, sort and
argsort) through operators that move or convert values, and the rows of NonMaxSuppression itself,
as a set: their order and number may differ where scores tie. Not covered: data gathered BY an index
(boxes in the order of their scores, a label from a table), comparisons with a threshold, indices
computed with, and boxes whose overlap is near the limit of suppression.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeGuard

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


@dataclass(frozen=True, slots=True)
class Suppression:
    """Rows of (batch, class, box) from NonMaxSuppression, chosen by `scores` above `least`."""

    scores: str
    least: float | None

    @property
    def values(self) -> tuple[str, ...]:
        """Names of the values that judging needs."""
        return (self.scores,)


def find(program: Program) -> dict[str, Choice | Suppression]:
    """Return for each output that holds chosen indices where they come from."""
    found = {v.name or "": _trace(v) for v in program.model.graph.outputs}
    return {name: choice for name, choice in found.items() if choice is not None}


def _trace(value: ir.Value) -> Choice | Suppression | None:
    moves: list[tuple[str, tuple[int, ...] | None]] = []
    moved = False
    while (node := value.producer()) is not None:
        if node.domain not in ("", "ai.onnx"):
            return None
        if node.op_type in CHOOSERS:
            scores = node.inputs[0]
            if not _computed(scores) or value.index() != CHOOSERS[node.op_type]:
                return None
            return Choice(
                scores.name or "",
                value.name or "",
                int(nodes.attribute(node, "axis")),
                node.op_type == "TopK" or bool(nodes.attribute(node, "keepdims")),
                tuple(reversed(moves)),
            )
        if node.op_type == "NonMaxSuppression":
            return None if moved else _suppression(node)
        source = nodes.operand(node, 0)
        if source is None or (node.op_type not in KEEPS_ORDER and node.op_type != "Transpose"):
            return None
        if node.op_type == "Cast" and nodes.attribute(node, "to") == ir.DataType.BOOL:
            return None
        if node.op_type == "Transpose":
            order = nodes.attribute(node, "perm")
            moves.append((source.name or "", tuple(order) if order else None))
        moved |= node.op_type not in ("Cast", "Identity")
        value = source
    return None


def _computed(scores: ir.Value | None) -> TypeGuard[ir.Value]:
    """Say whether scores depend on the inputs at all."""
    return scores is not None and (scores.producer() is not None or scores.is_graph_input())


def _suppression(node: ir.Node) -> Suppression | None:
    scores, least = nodes.operand(node, 1), nodes.operand(node, 4)
    if not _computed(scores):
        return None
    known = None if least is None else ir.convenience.get_const_tensor(least)
    return Suppression(scores.name or "", float(known.numpy().ravel()[0]) if known else None)


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
        if choice is None:
            return candidate
        if isinstance(choice, Suppression):
            return self._kept(choice, name, call, reference, candidate)
        if reference.shape != candidate.shape:
            return candidate
        if reference.dtype.kind != candidate.dtype.kind or np.array_equal(reference, candidate):
            return candidate
        values = self._values(call)
        settled = _settled(choice, values, reference, candidate, self.ties(name))
        return np.where(settled, reference, candidate).astype(candidate.dtype)

    def _kept(
        self, choice: Suppression, name: str, call: Tensors, reference: Array, candidate: Array
    ) -> Array:
        fitting = all(a.ndim == 2 and a.shape[1] == 3 for a in (reference, candidate))
        if not fitting or not len(reference) or np.array_equal(reference, candidate):
            return candidate
        scores = np.asarray(self._values(call)[choice.scores], np.float64)
        ties = self.ties(name) if len(candidate) else 0.0
        wrong = _unmatched(
            choice, scores, reference, candidate, ties if _tells(scores, ties) else 0
        )
        # The reference with so many rows spoilt: what differs is compared by number from here on.
        found = reference.astype(candidate.dtype)
        found[:wrong] = -1
        return found

    def ties(self, name: str) -> float:
        """Return how far apart two scores of an output's choice may lie and still be one."""
        if not self._ties:
            self._ties = self._measured()
        return self._ties[self.found[name].scores]

    def _measured(self) -> dict[str, float]:
        names = {choice.scores for choice in self.found.values()}
        # Scores that are inputs have no noise; outputs whose sizes may differ cannot be compared.
        names -= (given := {port.name for port in self._program.inputs})
        if not names:
            return dict.fromkeys(given, 0.0)
        watched = _watched(self._program, names)
        samples = self._samples[:FLOOR_CALLS]
        answers = [OnnxRunner(watched, "scores")(call) for call in samples]
        eps = float(np.finfo(np.float32).eps)
        noise = floors.of_program(watched, samples, answers)
        found = {n: self._factor * max(f.max_abs, eps * f.peak) for n, f in noise.items()}
        return found | dict.fromkeys(given, 0.0)

    def _values(self, call: Tensors) -> Tensors:
        if self._last is not None and self._last[0] is call:
            return self._last[1]
        names = {name for choice in self.found.values() for name in choice.values}
        names -= {port.name for port in self._program.inputs}
        if self._runner is None and names:
            self._runner = OnnxRunner(_watched(self._program, names), "scores")
        values = {**call, **(self._runner(call) if self._runner else {})}
        self._last = (call, values)
        return values


def _watched(program: Program, names: set[str]) -> Program:
    """Return the program with inner values for outputs."""
    copied = program.clone()
    inner = {v.name: v for node in copied.model.graph for v in node.outputs}
    copied.model.graph.outputs[:] = [inner[name] for name in sorted(names)]
    return Program.from_model(copied.model)


def _settled(
    choice: Choice, values: Tensors, reference: Array, candidate: Array, ties: float
) -> Array:
    """Say for each value of an output whether both indices there are equally good choices."""
    scores = np.asarray(values[choice.scores], np.float64)
    none = np.zeros(reference.shape, bool)
    if not _tells(scores, ties):
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


def _tells(scores: Array, ties: float) -> bool:
    """Say whether scores tell anything apart that lies further apart than `ties`."""
    finite = scores[np.isfinite(scores)]
    return bool(finite.size) and ties < PART * float(finite.std())


def _unmatched(
    choice: Suppression, scores: Array, reference: Array, candidate: Array, ties: float
) -> int:
    """Count the rows that one side selects and the other does not, for no near tie of scores.

    A box may be missing or added where its score is near the least one, and stand for another of
    its batch and class where their scores are near each other: one suppressed the other, or the
    number of boxes was reached.
    """
    ours, others = ({tuple(map(int, row)) for row in rows} for rows in (reference, candidate))

    def inside(row: tuple[int, ...]) -> bool:
        return all(0 <= at < size for at, size in zip(row, scores.shape, strict=True))

    spare = sorted(filter(inside, others - ours), key=lambda row: float(scores[row]))
    missing = 0
    for row in sorted(ours - others):
        near = [r for r in spare if r[:2] == row[:2] and abs(scores[r] - scores[row]) <= ties]
        if near:
            spare.remove(near[0])
        elif choice.least is None or abs(scores[row] - choice.least) > ties:
            missing += 1
    added = [r for r in spare if choice.least is None or abs(scores[r] - choice.least) > ties]
    outside = sum(not inside(row) for row in others)
    return max(missing, len(added) + outside + len(candidate) - len(others))


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
