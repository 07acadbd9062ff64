"""How each trained model is built, trained and measured: one recipe a model, all in plain sight."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from npuc.models import data, scoring
from npuc.models.lstm import digits_lstm
from npuc.models.mobilenet import digits_mobilenet
from npuc.models.resnet import digits_resnet

Outputs = tuple[Tensor, ...]


@dataclass(frozen=True, slots=True)
class Recipe:
    """All that decides a training run. `loss` and `score` take the outputs and the truth."""

    build: Callable[[], nn.Module]
    dataset: Callable[[], data.Dataset]
    source: str
    metric: str
    loss: Callable[[Outputs, Tensor], Tensor]
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


def shift(inputs: Outputs) -> Outputs:
    """Move a batch of images (N, C, H, W) by up to a tenth, and turn and scale it a little."""
    (images,) = inputs
    n = len(images)
    angle, zoom = torch.randn(n) * 0.12, 1 + torch.randn(n) * 0.06
    cos, sin = torch.cos(angle) * zoom, torch.sin(angle) * zoom
    offset = (torch.rand(2, n) - 0.5) * 0.4
    theta = torch.stack([cos, -sin, offset[0], sin, cos, offset[1]], 1).view(n, 2, 3)
    grid = F.affine_grid(theta, list(images.shape), align_corners=False)
    return (F.grid_sample(images, grid, align_corners=False),)


def shift_rows(inputs: Outputs) -> Outputs:
    """As `shift`, for images given as sequences of rows (N, H, W)."""
    (rows,) = inputs
    return (shift((rows[:, None],))[0][:, 0],)


_DIGITS = "handwritten digits of scikit-learn: 1,000 to train, 797 held out"

RECIPES: dict[str, Recipe] = {
    "digits-resnet": Recipe(
        digits_resnet,
        data.digit_images,
        _DIGITS,
        "accuracy",
        cross_entropy,
        scoring.accuracy,
        epochs=40,
        augment=shift,
    ),
    "digits-mobilenet": Recipe(
        digits_mobilenet,
        data.digit_images,
        _DIGITS,
        "accuracy",
        cross_entropy,
        scoring.accuracy,
        epochs=40,
        augment=shift,
    ),
    "digits-lstm": Recipe(
        digits_lstm,
        data.digit_rows,
        _DIGITS,
        "accuracy",
        cross_entropy,
        scoring.accuracy,
        epochs=120,
        rate=1e-2,
        augment=shift_rows,
    ),
}
