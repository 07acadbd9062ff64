"""Answer thousands of small calls in few large ones, where the model's batch is open.

A torch call of one small image costs a millisecond of dispatch and a few microseconds of
arithmetic. Whether a batch answers as its parts do is not taken on trust: the first calls are
answered both ways.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from npuc.program import Tensors

if TYPE_CHECKING:
    from npuc.capture import Captured

LEAST = 256
"""Calls from which batches are worth it; below, each is answered as it was recorded."""

TOGETHER = 128
"""Calls in a batch, and fewer where they are large (`BYTES`)."""

BYTES = 16 << 20
"""Bytes of inputs in a batch."""

MEASURED = 1024
"""Calls that noise is measured on. It is a largest value, which ten times the calls move by a tenth
(of a bell curve's tail); bars are eight times as wide."""

CHECKED = 8
"""Calls that are answered both ways."""


def joined(captured: "Captured", samples: Sequence[Tensors]) -> list[Tensors] | None:
    """Return the calls in batches along the first axis; None where they cannot be joined.

    They can where one dynamic dimension is the first axis of every input and of every output and
    no other axis is dynamic, and where all calls have one shape and a batch of 1.
    """
    if len(samples) < LEAST or not _batched(captured):
        return None
    first = samples[0]
    shapes = {name: (array.shape, array.dtype) for name, array in first.items()}
    alike = all({n: (a.shape, a.dtype) for n, a in call.items()} == shapes for call in samples)
    if not alike or any(array.shape[:1] != (1,) for array in first.values()):
        return None
    size = sum(array.nbytes for array in first.values())
    step = max(1, min(TOGETHER, BYTES // max(size, 1)))
    return [_join(samples[at : at + step]) for at in range(0, len(samples), step)]


def measured(batches: Sequence[Tensors]) -> int:
    """Return how many batches, from the first on, hold the calls that noise is measured on."""
    total = 0
    for index, batch in enumerate(batches, 1):
        total += len(next(iter(batch.values())))
        if total >= MEASURED:
            return index
    return len(batches)


def parted(answers: Sequence[Tensors]) -> list[Tensors]:
    """Cut the answers to batches into those of calls; copies, so that none keeps a batch alive."""
    return [
        {name: array[at : at + 1].copy() for name, array in answer.items()}
        for answer in answers
        for at in range(len(next(iter(answer.values()))))
    ]


def agree(
    run: Callable[[Tensors], Tensors],
    samples: Sequence[Tensors],
    answers: Sequence[Tensors],
    limits: Mapping[str, float],
) -> bool:
    """Whether the first calls have, alone, the answers they had in a batch: up to `limits`."""
    pairs = list(zip(samples, answers, strict=True))
    count = len(pairs)
    for at in sorted({*range(min(CHECKED, count)), count - 1}):
        call, batched = pairs[at]
        alone = run(call)
        for name, array in alone.items():
            other = batched[name]
            if array.shape != other.shape or array.dtype != other.dtype:
                return False
            if array.dtype.kind not in "fV":
                if not np.array_equal(array, other):
                    return False
                continue
            a, b = array.astype(np.float64), other.astype(np.float64)
            if not np.allclose(a, b, rtol=0, atol=limits[name], equal_nan=True):
                return False
    return True


def _join(calls: Sequence[Tensors]) -> Tensors:
    return {name: np.concatenate([call[name] for call in calls]) for name in calls[0]}


def _batched(captured: "Captured") -> bool:
    from torch.export.graph_signature import InputKind, OutputKind

    signature = captured.program.graph_signature
    inputs = {s.arg.name for s in signature.input_specs if s.kind is InputKind.USER_INPUT} & set(
        captured.signature.input_names
    )
    outputs = {s.arg.name for s in signature.output_specs if s.kind is OutputKind.USER_OUTPUT}
    shapes = {}
    for node in captured.program.graph.nodes:
        if node.name in inputs | outputs and "val" in node.meta:
            shapes[node.name] = tuple(getattr(node.meta["val"], "shape", ()))
    if not inputs or shapes.keys() != inputs | outputs:
        return False
    symbols = {str(shape[0]) for shape in shapes.values() if shape and not _fixed(shape[0])}
    return len(symbols) == 1 and all(
        shape and not _fixed(shape[0]) and all(map(_fixed, shape[1:])) for shape in shapes.values()
    )


def _fixed(size: object) -> bool:
    return isinstance(size, int)
