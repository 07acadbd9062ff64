"""How each trained model is built, trained and measured: one recipe a model, all in plain sight."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from npuc.models import chirps, data, detection, scenes, scoring, text
from npuc.models.bert import text_bert
from npuc.models.detector import digits_detector
from npuc.models.embed import digits_embed
from npuc.models.gpt import text_gpt
from npuc.models.keyword import chirp_keyword
from npuc.models.lstm import digits_lstm
from npuc.models.mobilenet import digits_mobilenet
from npuc.models.resnet import digits_resnet
from npuc.models.unet import digits_unet
from npuc.models.vit import digits_vit

Outputs = tuple[Tensor, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """All that decides a training run. `loss` and `score` take the outputs and the truth.

    `split` takes whether the held-out part is wanted. `rate` is the peak learning rate.
    """

    build: Callable[[], nn.Module]
    split: Callable[[bool], data.Split]
    source: str
    loss: Callable[[Outputs, Tensor], Tensor]
    metric: str
    score: Callable[[Outputs, Tensor], float]
    epochs: int
    batch: int = 50
    rate: float = 3e-3
    decay: float = 0.05
    seed: int = 0
    augment: Callable[[Outputs], Outputs] | None = None


def cross_entropy(outputs: Outputs, truth: Tensor) -> Tensor:
    """Cross entropy of the logits in the first output, labels smoothed by 0.1 against certainty."""
    return F.cross_entropy(outputs[0], truth, label_smoothing=0.1)


def pixel_loss(outputs: Outputs, truth: Tensor) -> Tensor:
    """Cross entropy of logits (N, classes, H, W), a mistake on digits and bars costing double."""
    return F.cross_entropy(outputs[0], truth, weight=torch.tensor([1.0, 2.0, 2.0]))


def next_token_loss(outputs: Outputs, truth: Tensor) -> Tensor:
    """Cross entropy of logits (N, tokens, vocabulary)."""
    return F.cross_entropy(outputs[0].flatten(0, 1), truth.flatten())


def contrast(outputs: Outputs, truth: Tensor) -> Tensor:
    """Supervised contrastive loss at temperature 0.1 (Khosla et al. 2020, equation 2)."""
    alike = outputs[0] @ outputs[0].T / 0.1
    itself = torch.eye(len(truth), dtype=torch.bool)
    chance = torch.log_softmax(alike.masked_fill(itself, -1e9), dim=1)
    same = (truth[:, None] == truth) & ~itself
    return -((chance * same).sum(1) / same.sum(1).clamp(min=1)).mean()


def warp(inputs: Outputs) -> Outputs:
    """Turn, scale and move images (N, C, H, W) a little, each in its own way."""
    (images,) = inputs
    n = len(images)
    angle, zoom = torch.randn(n) * 0.12, 1 + torch.randn(n) * 0.06
    cos, sin = torch.cos(angle) * zoom, torch.sin(angle) * zoom
    offset = (torch.rand(2, n) - 0.5) * 0.4
    theta = torch.stack([cos, -sin, offset[0], sin, cos, offset[1]], 1).view(n, 2, 3)
    grid = F.affine_grid(theta, list(images.shape), align_corners=False)
    return (F.grid_sample(images, grid, align_corners=False),)


def warp_rows(inputs: Outputs) -> Outputs:
    """As `warp`, for images given as sequences of rows (N, H, W)."""
    return (warp((inputs[0][:, None],))[0][:, 0],)


def blot(inputs: Outputs) -> Outputs:
    """Make a third of the words of (ids, mask) unknown, so that none is relied on alone."""
    ids, mask = inputs
    gone = (torch.rand(ids.shape) < 0.35) & (ids > text.UNKNOWN)
    return ids.masked_fill(gone, text.UNKNOWN), mask


_DIGITS = "handwritten digits of scikit-learn: 1,000 to train, 797 held out"
_SCENES = "synthetic scenes of scikit-learn's digits"
_TOPICS = "help topics of Python, every fifth block held out"


def _digits(
    build: Callable[[], nn.Module], *, epochs: int, rate: float = 3e-3, decay: float = 0.05
) -> Recipe:
    return Recipe(
        build=build,
        split=data.digit_images,
        source=_DIGITS,
        loss=cross_entropy,
        metric="accuracy",
        score=scoring.accuracy,
        epochs=epochs,
        rate=rate,
        decay=decay,
        augment=warp,
    )


RECIPES: dict[str, Recipe] = {
    "digits-resnet": _digits(digits_resnet, epochs=40),
    # Firm decay at a high rate lets unused channels fade, as long training does in large networks.
    "digits-mobilenet": _digits(digits_mobilenet, epochs=60, rate=2e-2, decay=0.2),
    "digits-vit": _digits(digits_vit, epochs=80, rate=2e-3),
    "digits-lstm": Recipe(
        build=digits_lstm,
        split=data.digit_rows,
        source=_DIGITS,
        loss=cross_entropy,
        metric="accuracy",
        score=scoring.accuracy,
        epochs=160,
        rate=1e-2,
        augment=warp_rows,
    ),
    "digits-embed": Recipe(
        build=digits_embed,
        split=data.digit_images,
        source=_DIGITS,
        loss=contrast,
        metric="recall at 1",
        score=scoring.recall_at_1,
        epochs=40,
        batch=100,
        augment=warp,
    ),
    "digits-unet": Recipe(
        build=digits_unet,
        split=scenes.segmentation,
        source=f"{_SCENES}: 1,200 to train, 200 held out",
        loss=pixel_loss,
        metric="mean IoU",
        score=scoring.mean_iou,
        epochs=10,
        batch=20,
    ),
    "digits-detector": Recipe(
        build=digits_detector,
        split=scenes.detection,
        source=f"{_SCENES}: 2,000 to train, 200 held out",
        loss=detection.loss,
        metric="mAP at IoU 0.5",
        score=detection.average_precision,
        epochs=30,
        rate=5e-3,
    ),
    "text-bert": Recipe(
        build=text_bert,
        split=text.snippets,
        source=_TOPICS,
        loss=cross_entropy,
        metric="accuracy",
        score=scoring.accuracy,
        epochs=5,
        rate=2e-3,
        augment=blot,
    ),
    "text-gpt": Recipe(
        build=text_gpt,
        split=text.passages,
        source=_TOPICS,
        loss=next_token_loss,
        metric="bits per character",
        score=scoring.bits,
        epochs=4,
        batch=32,
    ),
    "chirp-keyword": Recipe(
        build=chirp_keyword,
        split=chirps.sounds,
        source="synthetic chirps: 1,800 to train, 300 held out",
        loss=cross_entropy,
        metric="accuracy",
        score=scoring.accuracy,
        epochs=15,
    ),
}
