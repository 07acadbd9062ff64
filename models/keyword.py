"""Keyword spotter over raw samples: dilated depthwise 1-D convolutions, as in small speech nets."""

from torch import Tensor, nn


class Separable(nn.Module):
    """x + relu(pointwise(depthwise(x))), the depthwise part dilated to see further."""

    def __init__(self, channels: int, dilation: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv1d(channels, channels, 5, 1, 2 * dilation, dilation, channels, bias=False),
            nn.BatchNorm1d(channels),
            nn.Conv1d(channels, channels, 1, bias=False),
            nn.BatchNorm1d(channels),
            nn.ReLU(),
        )

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = x + self.body(x)
        return out


class Keyword(nn.Module):
    """Sound (N, 1, samples) in [-1, 1] → class logits (N, classes)."""

    def __init__(self, channels: int, classes: int) -> None:
        super().__init__()
        self.front = nn.Sequential(
            nn.Conv1d(1, channels, 32, 8, 12, bias=False),
            nn.BatchNorm1d(channels),
            nn.LeakyReLU(0.1),
            nn.Conv1d(channels, channels, 4, 4, bias=False),
            nn.BatchNorm1d(channels),
            nn.ReLU(),
        )
        self.body = nn.Sequential(*(Separable(channels, dilation) for dilation in (1, 2, 4)))
        self.pool = nn.AdaptiveAvgPool1d(4)
        self.head = nn.Linear(4 * channels, classes)

    def forward(self, sound: Tensor) -> Tensor:
        features = self.pool(self.body(self.front(sound))).flatten(1)
        logits: Tensor = self.head(features)
        return logits


def chirp_keyword() -> Keyword:
    """Return the network for 1,024 samples and six sounds."""
    return Keyword(48, 6)
