"""Embedding network of the kind used for faces: PReLU, a wide last layer, unit length out."""

import torch.nn.functional as F
from torch import Tensor, nn


def _conv(ins: int, outs: int, stride: int) -> list[nn.Module]:
    conv = nn.Conv2d(ins, outs, 3, stride, 1, bias=False)
    return [conv, nn.BatchNorm2d(outs), nn.PReLU(outs)]


class Embedder(nn.Module):
    """Image (N, 1, 16, 16) → embedding (N, width) of length 1; alike images have a high cosine."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            *(_conv(1, 16, 1) + _conv(16, 24, 2) + _conv(24, 24, 1)),
            *(_conv(24, 40, 2) + _conv(40, 40, 1)),
        )
        self.head = nn.Linear(40 * 4 * 4, width)
        self.norm = nn.BatchNorm1d(width)

    def forward(self, image: Tensor) -> Tensor:
        return F.normalize(self.norm(self.head(self.body(image).flatten(1))), dim=1)


def digits_embed() -> Embedder:
    """Return the network with 32 numbers a digit."""
    return Embedder(32)
