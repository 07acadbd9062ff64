"""What a task finds on the same samples for the original and for the candidate."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from npuc import statistics
from npuc.errors import UsageError
from npuc.program import Tensors
from npuc.statistics import CorpusScore, Verdict

Array = np.ndarray[Any, Any]

Labels = Array | Mapping[str, Array] | None
"""The truth for one sample: an array, several by name, or None: the original's answer is it."""


@dataclass(frozen=True, slots=True)
class Scores:
    """A score for every sample, from 0 to 1, larger is better. `note` says more in words."""

    reference: Array
    candidate: Array
    note: str = ""

    @property
    def means(self) -> tuple[float, float]:
        """The original's score over all samples, and the candidate's."""
        return float(self.reference.mean()), float(self.candidate.mean())

    def drop_at_most(self, bar: float, confidence: float = 0.95) -> Verdict:
        """Decide whether the score drops by at most `bar`, from 0 to 1."""
        return statistics.drop_at_most(self.reference, self.candidate, bar, confidence)


@dataclass(frozen=True, slots=True)
class Corpus:
    """A score of all samples together, from 0 to 1, larger is better."""

    score: CorpusScore
    samples: int
    note: str = ""

    @property
    def means(self) -> tuple[float, float]:
        """The original's score over all samples, and the candidate's."""
        return self.score(np.arange(self.samples))

    def drop_at_most(self, bar: float, confidence: float = 0.95) -> Verdict:
        """Decide whether the score drops by at most `bar`, from 0 to 1."""
        return statistics.corpus_drop_at_most(self.score, self.samples, bar, confidence)


Measured = Scores | Corpus


def only(answer: Tensors, kinds: str, what: str) -> str:
    """Return the name of the only output of these dtype kinds; raises `UsageError` otherwise."""
    fitting = [name for name, array in answer.items() if array.dtype.kind in kinds]
    if len(fitting) != 1:
        listed = ", ".join(f"{n} ({a.dtype}, {'x'.join(map(str, a.shape))})"
                           for n, a in answer.items())  # fmt: skip
        raise UsageError(
            f"which output holds the {what}? There are {listed}", hint=f'{what} = "NAME OF OUTPUT"'
        )
    return fitting[0]


def pick(calls: Sequence[Tensors], name: str) -> list[Array]:
    """Return one output of every call; bfloat16, which numpy takes for bytes, is widened."""
    missing = [i for i, call in enumerate(calls) if name not in call]
    if missing:
        raise UsageError(f"there is no output {name}: there are {', '.join(calls[missing[0]])}")
    arrays = [np.asarray(call[name]) for call in calls]
    return [a.astype(np.float32) if a.dtype.name == "bfloat16" else a for a in arrays]


def truth(labels: Labels, what: str) -> Array:
    """Return a sample's labels where they are one array."""
    if not isinstance(labels, np.ndarray):
        listed = "none" if labels is None else ", ".join(labels)
        raise UsageError(f"{what} needs one array of labels for every sample; there is {listed}")
    return labels


def alike(reference: Sequence[Array], candidate: Sequence[Array], what: str) -> None:
    """Raise `UsageError` where answers cannot be compared sample by sample."""
    for at, (a, b) in enumerate(zip(reference, candidate, strict=True)):
        if a.shape != b.shape:
            raise UsageError(f"{what} of sample {at} have the shapes {a.shape} and {b.shape}")
