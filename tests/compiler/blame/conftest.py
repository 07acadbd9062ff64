"""A small model with one of each: convolution, normalization, attention-like softmax, a sum."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import onnx_ir as ir
import pytest
import torch
from torch import nn

from npuc import record
from npuc.passes.base import Pass
from npuc.profile import Profile

Edit = Callable[[ir.Model], None]
Broken = Callable[[type[Pass], Edit], AbstractContextManager[None]]


class Blocks(nn.Module):
    """Two residual blocks, a softmax over channels, a linear head."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 8, 3, padding=1)
        self.first = nn.Conv2d(8, 8, 3, padding=1)
        self.norm = nn.BatchNorm2d(8)
        self.second = nn.Conv2d(8, 8, 3, padding=1)
        self.head = nn.Linear(8, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out = self.stem(x).relu()
        out = out + self.norm(self.first(out)).relu()
        out = out * self.second(out).softmax(1)
        answer: torch.Tensor = self.head(out.mean((2, 3)))
        return answer


def build(seed: int = 0) -> Blocks:
    """Build the model in eval mode, with statistics that are not 0 and 1."""
    torch.manual_seed(seed)
    net = Blocks()
    for _ in range(3):
        net(torch.randn(8, 1, 6, 6))
    return net.eval()


@pytest.fixture(scope="session")
def blocks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The model as npuc.save writes it, with twelve calls of two samples and a dynamic batch."""
    path = tmp_path_factory.mktemp("blocks") / "blocks.pt"
    torch.manual_seed(1)
    calls = [2 * torch.rand(2, 1, 6, 6) - 1 for _ in range(20)]
    record.save(
        build(), calls[0], path, samples=calls[:12], calibration=calls[12:],
        dynamic_shapes={"x": {0: "batch"}},
    )  # fmt: skip
    return path


@pytest.fixture
def broken() -> Broken:
    """Let a pass leave a wrong graph behind."""

    @contextmanager
    def opened(kind: type[Pass], edit: Edit) -> Iterator[None]:
        plain = kind.apply

        def wrong(self: Pass, model: ir.Model, profile: Profile) -> Any:
            outcome = plain(self, model, profile)
            edit(outcome[0] if isinstance(outcome, tuple) else model)
            return outcome

        with mock.patch.object(kind, "apply", wrong):
            yield

    return opened
