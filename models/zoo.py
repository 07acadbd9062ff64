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
    real samples; the others have seeded random weights and synthetic samples. `time` is the axis
    along which the model takes any number of steps, None where it takes one number only.
    """

    name: str
    title: str
    task: str
    input_names: tuple[str, ...]
    trained: bool
    time: int | None = None

    @property
    def dynamic_shapes(self) -> dict[str, dict[int, str]]:
        """The dynamic dimensions by input, as torch.export takes them: the batch, and `time`."""
        axes = {0: "batch"} | ({} if self.time is None else {self.time: "time"})
        return {name: axes for name in self.input_names}

    def module(self) -> "nn.Module":
        """Return a new module in eval mode; consumes nothing of torch's random state."""
        from npuc.models import shelf

        return shelf.module(self.name)

    def example(self) -> "tuple[Tensor, ...]":
        """Return the inputs of one call at batch 1: the first held-out sample."""
        return self.samples(1)[0]

    def samples(self, n: int) -> "list[tuple[Tensor, ...]]":
        """Return n held-out samples, each the inputs of a call at batch 1.

        Raises UsageError where n is below 1 or above what there is.
        """
        from npuc.models import shelf

        return shelf.calls(self.name, n, held_out=True)

    def calibration(self, n: int) -> "list[tuple[Tensor, ...]]":
        """Return n samples of the training set, disjoint from `samples`, batch 1 each."""
        from npuc.models import shelf

        return shelf.calls(self.name, n, held_out=False)

    def labels(self, n: int) -> "Tensor":
        """Return the truth for `samples(n)`, int64, first dimension n.

        classification and embedding: (n,) classes. segmentation: (n, height, width) classes.
        language: (n, tokens) next tokens. detection: (n, boxes, 5) as x1, y1, x2, y2 in pixels and
        class, padded with rows of -1. Raises UsageError for a model that was not trained.
        """
        from npuc.models import shelf

        return shelf.labels(self.name, n)


_IMAGE = ("image",)
_TEXT = ("input_ids", "attention_mask")
_CACHED = ("input_ids", *(f"{kind}{layer}" for layer in range(4) for kind in ("key", "value")))

# name, title, task, inputs
_TRAINED = (
    ("digits-resnet", "Residual CNN", "classification", _IMAGE),
    ("digits-mobilenet", "Depthwise CNN with gates and hard-swish", "classification", _IMAGE),
    ("digits-vit", "Vision transformer", "classification", _IMAGE),
    ("digits-lstm", "Bidirectional LSTM over image rows", "classification", ("rows",)),
    ("digits-embed", "Embedding of unit length, as for faces", "embedding", _IMAGE),
    ("digits-unet", "U-Net over scenes of digits and bars", "segmentation", _IMAGE),
    ("digits-detector", "One-stage detector of digits", "detection", _IMAGE),
    ("text-bert", "BERT-like encoder that names a help topic", "classification", _TEXT),
    ("text-gpt", "GPT-like model of help texts, by character", "language", ("input_ids",)),
    ("chirp-keyword", "1-D convolutions that name a sound", "classification", ("sound",)),
)
_FULL_SIZE = (
    ("resnet18", "ResNet-18, random weights", "classification", _IMAGE),
    ("resnet50", "ResNet-50, random weights", "classification", _IMAGE),
    ("mobilenet-v2", "MobileNetV2, random weights", "classification", _IMAGE),
    ("efficientnet-b0", "EfficientNet-B0, random weights", "classification", _IMAGE),
    ("unet", "U-Net of four levels, random weights", "segmentation", _IMAGE),
    ("bert-base", "BERT-base, random weights", "language", _TEXT),
    ("vit-base", "ViT-B/16, random weights", "classification", _IMAGE),
    ("llama", "Llama-like decoder, 128 tokens, random weights", "language", ("input_ids",)),
    ("llama-decode", "The same, one token after 128, random weights", "language", _CACHED),
    ("lstm", "LSTM over frames of speech, random weights", "classification", ("frames",)),
)

_TIME = {"digits-lstm": 1}

_ZOO = {
    name: ZooModel(name, title, task, inputs, trained, _TIME.get(name))
    for rows, trained in ((_TRAINED, True), (_FULL_SIZE, False))
    for name, title, task, inputs in rows
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
