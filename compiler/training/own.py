"""What a model itself answers to a few calls, and what else was asked about them."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from npuc.errors import UsageError
from npuc.program import Tensors
from npuc.signature import Signature, to_tensor
from npuc.simulate import call_of, key_of
from npuc.training.undisturbed import widened

Call = tuple[tuple[Any, ...], dict[str, Any]]

Metric = Callable[[list[Any], list[Any]], float]
"""(what the model returned for each sample, the samples) → a number of which more is better."""


@dataclass(frozen=True)
class Own:
    """A model in eval mode, calls to judge it on, and the samples that the calls came from."""

    model: nn.Module
    calls: tuple[Call, ...]
    samples: tuple[Any, ...]
    metric: Metric | None = None

    @cached_property
    def returned(self) -> list[Any]:
        """What the model returns for each call."""
        with torch.no_grad():
            return [self.model(*args, **kwargs) for args, kwargs in self.calls]

    @cached_property
    def score(self) -> float | None:
        """The metric of the model's own answers."""
        return None if self.metric is None else self._scored(self.returned)

    def named(self, signature: Signature) -> list[Tensors]:
        """Return the answers by the names of the outputs."""
        return [signature.results(value) for value in self.returned]

    def drop(self, answers: Sequence[Tensors], signature: Signature) -> float | None:
        """Return what the metric loses with other answers, in the form that the model returns."""
        if self.score is None:
            return None
        return self.score - self._scored(
            [
                _like(value, answer, signature)
                for value, answer in zip(self.returned, answers, strict=True)
            ]
        )

    def _scored(self, returned: list[Any]) -> float:
        assert self.metric is not None
        return float(self.metric(returned, list(self.samples)))


@dataclass(frozen=True)
class Data:
    """The calls that a user gave: one, others to calibrate and to judge on, and what is no input.

    `labels` are keywords that forward would take and that are not given to it.
    """

    inputs: Any
    calibration: Iterable[Any] | None
    samples: Iterable[Any] | None
    labels: tuple[str, ...] = ()

    def read(
        self, model: nn.Module
    ) -> tuple[Call, tuple[Call, ...], tuple[Call, ...], tuple[Any, ...], list[str]]:
        """Return the first call, those to calibrate and to judge on, and the latter's samples.

        And notes on what was left out, because it has another shape than the first. Raises
        `UsageError` where nothing is left.
        """
        first = self._call(model, self.inputs)
        notes: list[str] = []
        calibration: tuple[Call, ...] = (first,)
        calls: tuple[Call, ...] = (first,)
        samples: tuple[Any, ...] = (_sample(self.inputs),)
        if self.calibration is not None:
            pairs = self._like(model, first, self.calibration, "calibration", notes)
            calibration = tuple(call for call, _ in pairs)
        if self.samples is not None:
            pairs = self._like(model, first, self.samples, "samples", notes)
            calls = tuple(call for call, _ in pairs)
            samples = tuple(_sample(item) for _, item in pairs)
        return first, calibration, calls, samples, notes

    def _call(self, model: nn.Module, item: Any) -> Call:
        """Read one call, without what forward does not take, on the CPU."""
        if isinstance(item, Mapping):
            item = {name: value for name, value in item.items() if name not in self.labels}
        args, kwargs = call_of(model, item)
        return widened(args), widened(kwargs)

    def _like(
        self, model: nn.Module, first: Call, source: Iterable[Any], what: str, notes: list[str]
    ) -> list[tuple[Call, Any]]:
        """Read the calls of the first one's shape, with what each came from."""
        items = [source] if isinstance(source, Tensor | np.ndarray) else list(source)
        read = [(self._call(model, item), item) for item in items]
        fits = [(call, item) for call, item in read if key_of(*call) == key_of(*first)]
        if not items:
            raise UsageError(
                f"{what}: it is empty", hint="an iterator that was used up before? give a list"
            )
        if not fits:
            raise UsageError(
                f"{what}: none of {len(items)} calls has the shapes and types of inputs",
                hint="give a batch of the same size as inputs",
            )
        if left := len(items) - len(fits):
            notes.append(
                f"{what}: {left} of {len(items)} calls have another shape than inputs: left out"
            )
        return fits


def _sample(item: Any) -> Any:
    """Return a sample as a metric gets it: on the CPU, a dict for any mapping."""
    whole = dict(item) if isinstance(item, Mapping) else item
    return pytree.tree_map_only(Tensor, lambda tensor: tensor.detach().cpu(), whole)


def _like(value: Any, answer: Tensors, signature: Signature) -> Any:
    leaves, spec = pytree.tree_flatten(value)
    made = [
        to_tensor(answer[name]) if name else leaf
        for name, leaf in zip(signature.outputs, leaves, strict=True)
    ]
    return pytree.tree_unflatten(made, spec)
