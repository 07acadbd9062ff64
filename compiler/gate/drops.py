"""A score that may not drop, of the user's own or of a task, on all samples or on each."""

import math
import traceback
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from npuc import statistics
from npuc.errors import UsageError
from npuc.gate import functions, rows
from npuc.gate.rows import Array, Labels
from npuc.gate.wording import judged
from npuc.held import Held
from npuc.program import Tensors
from npuc.statistics import Verdict
from npuc.tasks.catalogue import TASKS

if TYPE_CHECKING:
    from npuc.floors import Floor

Score = Callable[..., Any]


@dataclass(frozen=True, slots=True)
class MaxDrop:
    """How far a user's score may fall from the original's answers to the artifact's.

    `function` is ``module:function`` in `folder` (see `npuc.gate.functions`). It scores both on the
    same samples, and what is judged is the mean difference; with `corpus` that of two scores over
    all samples.
    """

    name: str
    bar: float
    function: str
    folder: Path
    labels: Path | None = None
    corpus: bool = False
    span: tuple[float, float] = (0.0, 1.0)
    confidence: float = 0.95

    def judge(
        self,
        samples: Sequence[Tensors],
        expected: Sequence[Tensors],
        got: Sequence[Tensors],
        floor: "Mapping[str, Floor]",
    ) -> Iterator[Held]:
        """Yield one finding; raises `UsageError` where the function or its labels do not fit."""
        sizes = rows.counts(samples, expected)
        truths = _labels(self.labels, sizes)
        with functions.loaded(self.function, self.folder) as score:
            if self.corpus:
                found, values = self._corpus(score, sizes, truths, expected, got)
            else:
                found, values = self._samples(score, sizes, truths, expected, got)
        before, after = values
        what = f"{self.name}: {before:.4g} → {after:.4g}, a drop of {found.estimate:.4g}"
        key = f"metric.{self.name}"
        yield judged(key, "", found, what, self.bar, self.confidence, at_least=False)

    def _samples(
        self,
        score: Score,
        sizes: Sequence[int],
        truths: Sequence[Labels],
        *both: Sequence[Tensors],
    ) -> tuple[Verdict, tuple[float, float]]:
        before, after = (
            [
                self._call(score, size, answer, truth)
                for size, answer, truth in zip(sizes, answers, truths, strict=True)
            ]
            for answers in both
        )
        if odd := [
            n for n, (a, b) in enumerate(zip(before, after, strict=True)) if len(a) != len(b)
        ]:
            raise UsageError(f"{self.function} gives call {odd[0]} scores of different numbers")
        scores = np.concatenate(before), np.concatenate(after)
        found = statistics.drop_at_most(*scores, self.bar, self.confidence, self.span)
        return found, (float(scores[0].mean()), float(scores[1].mean()))

    def _call(self, score: Score, size: int, answer: Tensors, truth: Labels) -> Array:
        value = np.asarray(self._run(score, answer, truth))
        if value.dtype.kind not in "biuf" or value.shape not in ((), (size,)):
            raise UsageError(
                f"{self.function} returned {value.dtype} of shape {value.shape}; asked are "
                f"{size} scores, one for each sample of the call, or one number for the call",
                hint="def score(outputs, labels): return outputs['logits'].argmax(-1) == labels",
            )
        return self._bounded(value.astype(np.float64).reshape(-1))

    def _corpus(
        self,
        score: Score,
        sizes: Sequence[int],
        truths: Sequence[Labels],
        *both: Sequence[Tensors],
    ) -> tuple[Verdict, tuple[float, float]]:
        answers = [rows.singles(calls, sizes) for calls in both]
        known = _singles(truths, sizes)

        def scored(chosen: Array) -> tuple[float, float]:
            given = [known[i] for i in chosen]
            first, second = (
                self._number(self._run(score, [calls[i] for i in chosen], given))
                for calls in answers
            )
            return first, second

        found = statistics.corpus_drop_at_most(
            scored, len(known), self.bar, self.confidence, self.span
        )
        return found, scored(np.arange(len(known)))

    def _number(self, value: Any) -> float:
        array = np.asarray(value)
        if array.dtype.kind not in "biuf" or array.shape != ():
            raise UsageError(
                f"{self.function} returned {array.dtype} of shape {array.shape}; with corpus = "
                "true it returns one number for all samples"
            )
        return float(self._bounded(array.astype(np.float64).reshape(1))[0])

    def _bounded(self, values: Array) -> Array:
        low, high = self.span
        wrong = values[~((values >= low) & (values <= high))]
        if wrong.size:
            raise UsageError(
                f"{self.function} returned {wrong[0]:g}, which is not from {low:g} to {high:g}",
                hint="state what scores there can be: span = [least, largest]"
                if math.isfinite(wrong[0])
                else "a score must be a number for every sample",
            )
        return values

    def _run(self, score: Score, *arguments: Any) -> Any:
        try:
            return score(*arguments)
        except Exception as error:  # the user's code runs here
            frames = traceback.extract_tb(error.__traceback__)
            place = next((f"{f.filename}:{f.lineno}: " for f in reversed(frames[1:])), "")
            raise UsageError(
                f"{self.function} failed: {place}{type(error).__name__}: {error}",
                hint="it is called as function(outputs, labels) with outputs by name: "
                + ("lists of them, one entry a sample" if self.corpus else "those of one call"),
            ) from error


@dataclass(frozen=True, slots=True)
class TaskDrop:
    """How far a score of one of npuc's tasks may fall; `settings` are what the task takes.

    Without labels the original's own answers are the truth.
    """

    name: str
    bar: float
    task: str
    labels: Path | None = None
    settings: tuple[tuple[str, Any], ...] = ()
    confidence: float = 0.95

    def judge(
        self,
        samples: Sequence[Tensors],
        expected: Sequence[Tensors],
        got: Sequence[Tensors],
        floor: "Mapping[str, Floor]",
    ) -> Iterator[Held]:
        """Yield one finding; raises `UsageError` where outputs, labels or settings do not fit."""
        sizes = rows.counts(samples, expected)
        truths = _labels(self.labels, sizes)
        task, settings = TASKS[self.task], dict(self.settings)
        if "ties" in task.options:
            named = [n for key, n in self.settings if key in task.outputs and n in floor]
            settings["ties"] = max(2 * floor[n].max_abs for n in named or floor)
        first, second = (rows.singles(calls, sizes) for calls in (expected, got))
        known = None if self.labels is None else _singles(truths, sizes)
        try:
            measured = task.measure(first, second, known, **settings)
            found = measured.drop_at_most(self.bar, self.confidence)
            before, after = measured.means
        except UsageError as error:
            hint = error.hint or f"keys that name outputs: {', '.join(task.outputs)}"
            raise UsageError(f"metrics.{self.name}: {error.message}", hint=hint) from error
        note = f" ({measured.note})" if measured.note else ""
        drop = f"{before:.4g} → {after:.4g}, a drop of {found.estimate:.4g}{note}"
        what = f"{self.name}: {task.score} {drop}"
        key = f"metric.{self.name}"
        yield judged(key, "", found, what, self.bar, self.confidence, at_least=False)


def _labels(path: Path | None, sizes: Sequence[int]) -> list[Labels]:
    return [None] * len(sizes) if path is None else rows.labels(_read(path), sizes, str(path))


def _singles(truths: Sequence[Labels], sizes: Sequence[int]) -> list[Labels]:
    """Cut labels as `rows.singles` cuts calls."""
    found: list[Labels] = []
    for truth, size in zip(truths, sizes, strict=True):
        for at in range(size):
            if truth is None:
                found.append(None)
            elif isinstance(truth, dict):
                found.append({name: array[at : at + 1] for name, array in truth.items()})
            else:
                found.append(truth[at : at + 1])
    return found


def _read(path: Path) -> dict[str, Array]:
    try:
        with np.load(path, allow_pickle=False) as data:
            return {name: data[name] for name in data.files}
    except (OSError, ValueError, EOFError, AttributeError, zipfile.BadZipFile) as error:
        raise UsageError(
            f"{path} does not hold labels: {error}", hint="write it with numpy.savez(path, labels)"
        ) from error
