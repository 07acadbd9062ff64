"""What the callbacks share: when to look, at what, and what to do where that fails."""

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from torch import nn

from npuc.errors import NpucError
from npuc.training.portability import portability
from npuc.training.result import Portability
from npuc.training.undisturbed import undisturbed

LOG = logging.getLogger("npuc")

PATIENCE = 3
"""Failures in a row after which it does not look again: each may take the seconds of an export."""


class Watch:
    """Looks at a model's portability every so many steps, and never ends a training run.

    `inputs`, `targets` and `options` (calibration, samples, metric, labels, …) are those of
    `npuc.portability`; iterables are read once, here, so that all readings are of the same data.
    `module` picks the part of the trained module that computes the answer, by default all of it.
    `show` is called with the step and every reading. Names of logged numbers begin with `prefix`.

    What goes wrong is logged once per target and reason to the logger ``npuc``, as a warning;
    ``npuc/TARGET/failed`` or, for all targets, ``npuc/failed`` is 1 in every reading it concerns.
    After `PATIENCE` failures in a row for all targets it does not look again.
    """

    def __init__(
        self,
        inputs: Any,
        targets: str | Sequence[str],
        *,
        every: int = 200,
        module: Callable[[nn.Module], nn.Module] | None = None,
        show: Callable[[int, Portability], None] | None = None,
        prefix: str = "npuc",
        **options: Any,
    ) -> None:
        super().__init__()
        self.inputs, self.targets, self.every = inputs, targets, every
        self.module, self.show, self.prefix = module, show, prefix
        self.options = {name: _read(value) for name, value in options.items()}
        self.history: list[tuple[int, Portability]] = []
        self._looked = self._failures = 0
        self._told: set[str] = set()

    def crossed(self, target: str) -> int | None:
        """Return the first step at which a target's answers missed the bar; None where none did."""
        found = (
            step
            for step, seen in self.history
            if any(row.target == target and row.below for row in seen.rows)
        )
        return next(found, None)

    def due(self, step: int) -> bool:
        """Whether `every` steps went by since it last looked; steps may be counted several times,
        and some be passed over.
        """
        if step // self.every <= self._looked // self.every:
            return False
        self._looked = step
        return True

    def look(self, step: int, model: nn.Module, **more: Any) -> dict[str, float]:
        """Return numbers for a logger; what fails is one of them, and no exception."""
        if self._failures >= PATIENCE:
            return {f"{self.prefix}/failed": 1.0}
        failed: dict[str, float] = {}

        def note(target: str, error: NpucError) -> None:
            failed[f"{self.prefix}/{target}/failed"] = 1.0
            self._tell(f"{target}: {error}")

        try:
            part = model if self.module is None else self.module(model)
            options = {"failed": note, **more, **self.options}
            seen = portability(part, self.inputs, self.targets, **options)
            self.history.append((step, seen))
            if self.show is not None:
                self.show(step, seen)
        except Exception as error:  # whatever it is, hours of training are worth more
            self._tell(f"{type(error).__name__}: {error}")
            self._failures += 1
            return {**failed, f"{self.prefix}/failed": 1.0}
        self._failures = 0
        return {**seen.scalars(self.prefix), **failed, f"{self.prefix}/seconds": seen.seconds}

    def _tell(self, text: str) -> None:
        if text not in self._told:
            self._told.add(text)
            LOG.warning("portability is not measured: %s", text)


def _read(value: Any) -> Any:
    """Read an iterable of calls now; what is one call or no iterable stays as it is."""
    whole = not isinstance(value, Iterable) or isinstance(value, str | Mapping | list | tuple)
    if whole or hasattr(value, "shape"):
        return value
    with undisturbed():  # a loader draws random numbers
        return list(value)
