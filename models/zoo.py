"""The list of reference models, and the one way to get at them. Imports no torch by itself."""

import difflib
from dataclasses import dataclass
from typing import TYPE_CHECKING

from npuc.errors import UsageError

if TYPE_CHECKING:
    from torch import Tensor, nn


@dataclass(frozen=True, slots=True)
class ZooModel:
    """One reference model. Weights and samples are read when a method is called.

    `task` is classification, segmentation, detection, language or embedding. `input_names` are
    the parameters of the module's forward, in order. Trained models carry committed weights and
    real samples; the others have seeded random weights and synthetic samples.
    """

    name: str
    title: str
    task: str
    input_names: tuple[str, ...]
    trained: bool

    @property
    def dynamic_shapes(self) -> dict[str, dict[int, str]]:
        """The dynamic dimensions by input, as torch.export takes them: only the batch."""
        return {name: {0: "batch"} for name in self.input_names}

    def module(self) -> "nn.Module":
        """Return a new module in eval mode; consumes nothing of torch's random state."""
        from npuc.models import shelf

        return shelf.module(self)

    def example(self) -> "tuple[Tensor, ...]":
        """Return the inputs of one call at batch 1: the first held-out sample."""
        return self.samples(1)[0]

    def samples(self, n: int) -> "list[tuple[Tensor, ...]]":
        """Return n held-out samples, each the inputs of a call at batch 1.

        Raises UsageError where n is below 1 or above what there is.
        """
        from npuc.models import shelf

        return shelf.calls(self, n, held_out=True)

    def calibration(self, n: int) -> "list[tuple[Tensor, ...]]":
        """Return n samples of the training set, disjoint from `samples`, batch 1 each."""
        from npuc.models import shelf

        return shelf.calls(self, n, held_out=False)

    def labels(self, n: int) -> "Tensor":
        """Return the truth for `samples(n)`, int64, first dimension n.

        classification and embedding: (n,) classes. segmentation: (n, height, width) classes.
        language: (n, tokens) next tokens. detection: (n, boxes, 5) as x1, y1, x2, y2 in pixels and
        class, padded with rows of -1. Raises UsageError for a model that was not trained.
        """
        from npuc.models import shelf

        return shelf.labels(self, n)


_IMAGE = ("image",)
_TEXT = ("input_ids", "attention_mask")

_ZOO = {
    model.name: model
    for model in (
        ZooModel("digits-resnet", "Residual CNN", "classification", _IMAGE, True),
        ZooModel(
            "digits-mobilenet",
            "Inverted residuals, squeeze-and-excitation, hard-swish",
            "classification",
            _IMAGE,
            True,
        ),
        ZooModel("digits-lstm", "Bidirectional LSTM over rows", "classification", ("rows",), True),
    )
}


def names() -> tuple[str, ...]:
    """Return the names of all reference models, trained ones first."""
    return tuple(_ZOO)


def get(name: str) -> ZooModel:
    """Return the model of that name; raises UsageError with the nearest name where there is none.

    A leading "zoo:", as on the command line, is accepted.
    """
    name = name.removeprefix("zoo:")
    if name in _ZOO:
        return _ZOO[name]
    near = difflib.get_close_matches(name, _ZOO, n=1)
    hint = f"did you mean zoo:{near[0]}?" if near else f"there are: {', '.join(_ZOO)}"
    raise UsageError(f"no reference model is named {name!r}", hint=hint)
