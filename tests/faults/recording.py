"""Defects of the reference: what was recorded is not what the model answers."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
from seams import Fault, Touched

from npuc.program import Tensors


@contextmanager
def _nothing(touched: Touched) -> Iterator[None]:
    """The compile is sound: the file is not."""
    yield


def _saved(folder: Path, model: str, wrong: Any) -> Path:
    """Save a reference model with a reference that `wrong` falsifies."""
    import npuc
    from npuc import answers, models

    zoo = models.get(model)
    path = folder / f"{model}.pt"
    plain = answers.run

    def run(*args: Any, **kwargs: Any) -> Any:
        found: Any = plain(*args, **kwargs)
        if isinstance(found, tuple):  # outputs, and values inside the model
            return (wrong(found[0]), *found[1:])
        return wrong(found)

    with mock.patch.object(answers, "run", run):
        npuc.save(
            zoo.module(), zoo.example(), path, samples=zoo.samples(8),
            calibration=zoo.calibration(64), dynamic_shapes=zoo.dynamic_shapes,
        )  # fmt: skip
    return path


def _moved(found: Tensors) -> Mapping[str, Any]:
    """Answer as the checkpoint before did: a hundredth of the answer away."""
    return {n: (a + 1e-2 * np.abs(a).max() * np.sin(np.arange(a.size)).reshape(a.shape))
            .astype(a.dtype) for n, a in found.items()}  # fmt: skip


def _hundredth(folder: Path) -> Path:
    return _saved(folder, "digits-embed", _moved)


FAULTS: tuple[Fault, ...] = (
    Fault(
        "reference-of-another",
        "digits-embed",
        "cpu",
        "float",
        "reference",
        "reference",
        "the file's answers are those of the checkpoint before",
        "microsoft/Olive#1936",
        _nothing,
        source=_hundredth,
        sited=False,
    ),
)
