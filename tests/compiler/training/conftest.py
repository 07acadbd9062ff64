"""A small classifier with batch norm and dropout, and data that it can learn."""

from dataclasses import dataclass

import pytest
import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Task:
    """Images whose class is the sign of their mean."""

    images: Tensor
    labels: Tensor

    def model(self, seed: int = 0) -> nn.Module:
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            return nn.Sequential(
                nn.Conv2d(1, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Dropout(0.3),
                nn.Flatten(), nn.Linear(8 * 4 * 4, 2),
            )  # fmt: skip


@pytest.fixture(scope="session")
def task() -> Task:
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(64, 1, 6, 6, generator=generator)
    return Task(images, (images.mean((1, 2, 3)) > 0).long())
