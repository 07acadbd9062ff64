"""One-stage detector without anchors, after YOLOX (Ge et al. 2021): three decoded outputs."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

STRIDE = 8


class ConvSiLU(nn.Module):
    """silu(bn(conv(x)))."""

    def __init__(self, ins: int, outs: int, kernel: int = 3, stride: int = 1) -> None:
        super().__init__()
        self.conv = nn.Conv2d(ins, outs, kernel, stride, kernel // 2, bias=False)
        self.bn = nn.BatchNorm2d(outs)

    def forward(self, x: Tensor) -> Tensor:
        return F.silu(self.bn(self.conv(x)))


class CrossStage(nn.Module):
    """Half of the channels go through a residual 3x3, half go by; 1x1 mixes the two."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        half = channels // 2
        self.inner = nn.Sequential(ConvSiLU(half, half, 1), ConvSiLU(half, half))
        self.mix = ConvSiLU(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        a, b = x.chunk(2, dim=1)
        out: Tensor = self.mix(torch.cat([a + self.inner(a), b], dim=1))
        return out


class PyramidPool(nn.Module):
    """Two chained 5x5 max pools beside x, mixed by 1x1: sees 9x9 at small cost."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.pool = nn.MaxPool2d(5, 1, 2)
        self.mix = ConvSiLU(3 * channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        once = self.pool(x)
        out: Tensor = self.mix(torch.cat([x, once, self.pool(once)], dim=1))
        return out


def cell_centres(size: int) -> Tensor:
    """Return the centres of the cells, x and y in pixels: (cells, 2), row by row."""
    steps = (torch.arange(size // STRIDE, dtype=torch.float32) + 0.5) * STRIDE
    y, x = torch.meshgrid(steps, steps, indexing="ij")
    return torch.stack([x, y], dim=-1).view(-1, 2)


class Detector(nn.Module):
    """Image (N, 1, size, size) → scores (N, cells, classes), boxes (N, cells, 4), objectness.

    Scores and objectness (N, cells) are probabilities; boxes are x1, y1, x2, y2 in pixels, one a
    cell. Suppression of doubles is left to the caller (`detection.suppress`).
    """

    centres: Tensor

    def __init__(self, size: int, width: int, classes: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            *(ConvSiLU(1, width, 3, 2), ConvSiLU(width, 2 * width, 3, 2), CrossStage(2 * width)),
            *(ConvSiLU(2 * width, 4 * width, 3, 2), CrossStage(4 * width)),
            PyramidPool(4 * width),
        )
        self.class_branch = ConvSiLU(4 * width, 2 * width)
        self.box_branch = ConvSiLU(4 * width, 2 * width)
        self.classify = nn.Conv2d(2 * width, classes, 1)
        self.regress = nn.Conv2d(2 * width, 5, 1)
        self.register_buffer("centres", cell_centres(size), persistent=False)

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        features = self.body(image)
        scores = self.classify(self.class_branch(features)).flatten(2).transpose(1, 2)
        code = self.regress(self.box_branch(features)).flatten(2).transpose(1, 2)
        middle = self.centres + code[..., :2] * STRIDE
        half = torch.exp(code[..., 2:4].clamp(-4.0, 2.0)) * STRIDE
        boxes = torch.cat([middle - half, middle + half], dim=-1)
        return torch.sigmoid(scores), boxes, torch.sigmoid(code[..., 4])


def digits_detector() -> Detector:
    """Return the small detector for 48x48 scenes: 36 cells, ten classes."""
    return Detector(48, 12, 10)
