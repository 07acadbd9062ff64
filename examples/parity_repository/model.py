"""The network."""

from torch import Tensor, nn


class Meter(nn.Module):
    """Reads two digits: from images (N, 1, 8, 16) in [0, 1] to scores of both, (N, 10) each."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(1, 12, 3, padding=1),
            nn.BatchNorm2d(12),
            nn.ReLU(),
            nn.Conv2d(12, 24, 3, stride=2, padding=1),
            nn.BatchNorm2d(24),
            nn.ReLU(),
            nn.AvgPool2d(2),
            nn.Flatten(),
            nn.Dropout(0.2),
        )
        self.tens = nn.Linear(24 * 2 * 4, 10)
        self.units = nn.Linear(24 * 2 * 4, 10)

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        found = self.features(image)
        return {"tens": self.tens(found), "units": self.units(found)}
