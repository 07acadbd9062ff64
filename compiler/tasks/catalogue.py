"""The tasks that npuc scores by itself, by the names that parity.toml uses."""

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from npuc.errors import UsageError
from npuc.program import Tensors
from npuc.tasks import classification, detection, generation, segmentation
from npuc.tasks.measured import Labels, Measured


@dataclass(frozen=True, slots=True)
class Task:
    """How well answers do in the terms of a task.

    `score` names what is measured. `outputs` are keys whose values name outputs of the model,
    `options` the other keys, with their defaults; `per_sample` says that every sample has a score
    of its own, so that few samples can decide.
    """

    score: str
    per_sample: bool
    outputs: tuple[str, ...]
    function: Callable[..., Measured]

    @property
    def options(self) -> Mapping[str, Any]:
        """Keys beside outputs and their defaults. `ties` is for the caller to set."""
        known = inspect.signature(self.function).parameters.values()
        named = (p for p in known if p.kind is p.KEYWORD_ONLY)
        return {p.name: p.default for p in named if p.name not in self.outputs}

    def measure(
        self,
        reference: Sequence[Tensors],
        candidate: Sequence[Tensors],
        labels: Sequence[Labels] | None = None,
        **settings: Any,
    ) -> Measured:
        """Score both on the same independent samples: one entry a sample, first axis kept.

        `labels` has one entry a sample, or is None: then the original's own answers are the truth.
        `settings` are keys of `outputs` and `options`. Raises `UsageError` for what does not fit.
        """
        if not reference or len(reference) != len(candidate):
            raise UsageError(f"{len(reference)} and {len(candidate)} answers cannot be compared")
        truths = [None] * len(reference) if labels is None else labels
        if len(truths) != len(reference):
            raise UsageError(f"there are {len(reference)} samples and {len(truths)} labels")
        unknown = set(settings) - {*self.outputs, *self.options}
        if unknown:
            known = ", ".join((*self.outputs, *self.options))
            raise UsageError(f"unknown: {', '.join(sorted(unknown))}", hint=f"known are {known}")
        return self.function(reference, candidate, truths, **settings)


TASKS: Mapping[str, Task] = {
    "classification": Task("accuracy", True, ("scores",), classification.measure),
    "detection": Task(
        "mAP",
        False,
        ("boxes", "scores", "classes", "objectness", "count"),
        detection.measure,
    ),
    "segmentation": Task("mIoU", False, ("scores",), segmentation.measure),
    "next-token": Task("next-token agreement", True, ("logits",), generation.measure),
}
