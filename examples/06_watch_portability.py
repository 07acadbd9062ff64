"""Watch a training run drift away from a chip, while its loss falls and its accuracy rises.

Two members share all layers but a gain per feature (as in BatchEnsemble, arXiv:2002.06715); their
mean answers. A small reward for members that differ moves the gains. Where their outputs are told
apart, nothing bounds that: the members grow, in opposite directions. Their mean cancels it, and
float32 does not mind. Eight bits do: codes have to reach as far as the members do. Probabilities
are bounded, and so is a reward for those.
"""

from typing import Any

import torch
from torch import Tensor, nn

from npuc.models.data import digit_images
from npuc.training.callbacks import Watch
from npuc.training.result import Portability

TARGETS = ["atom", "warboy"]  # the one adds in floats, the other in 8-bit codes
STEPS, EVERY, BATCH = 600, 100, 64

learned, held_out = digit_images(held_out=False), digit_images(held_out=True)
(images,), labels = learned.inputs, learned.truth
tests, truth = held_out.inputs[0][:500], held_out.truth[:500]


class Ensemble(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.trunk = nn.Sequential(
            nn.Conv2d(1, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(), nn.MaxPool2d(2),
            nn.Conv2d(16, 32, 3, padding=1), nn.BatchNorm2d(32), nn.ReLU(),
            nn.AdaptiveAvgPool2d(2), nn.Flatten(),
        )  # fmt: skip
        self.gains = nn.Parameter(1 + 0.1 * torch.randn(2, 128))
        self.head = nn.Linear(128, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.answer(self.trunk(x))

    def answer(self, features: Tensor) -> Tensor:
        return torch.stack([self.head(features * gain) for gain in self.gains]).mean(0)

    def apart(self, features: Tensor, bounded: bool) -> Tensor:
        """How far the members are from their mean; only gains learn from that."""
        features, weight = features.detach(), self.head.weight.detach()
        members = torch.stack([(features * gain) @ weight.T for gain in self.gains])
        members = members.softmax(-1) if bounded else members
        return ((members - members.mean(0)) ** 2).mean()


def train(title: str, bounded: bool) -> None:
    torch.manual_seed(0)
    model, loss = Ensemble(), torch.zeros(())
    gains: dict[str, Any] = {"params": [model.gains], "weight_decay": 0.0, "lr": 0.08}
    others: dict[str, Any] = {"params": [p for p in model.parameters() if p is not model.gains]}
    optimizer = torch.optim.AdamW([others, gains], lr=2e-3, weight_decay=0.01)

    def show(step: int, seen: Portability) -> None:
        with torch.no_grad():
            right = (model.eval()(tests).argmax(1) == truth).float().mean()
        model.train()
        sqnr = "".join(f"{row.sqnr_db:10.1f} dB" for row in seen.rows)
        layer = seen.worst.layers[0]
        print(f"{step:5}{float(loss.detach()):9.4f}{float(right):10.1%}{sqnr}   {layer.title}")

    watch = Watch(
        tests[:BATCH], TARGETS, every=EVERY, calibration=images[: 4 * BATCH].chunk(4), layers=1,
        show=show,
    )  # fmt: skip
    print(f"{title}\n step     loss  accuracy{''.join(f'{t:>13}' for t in TARGETS)}   worst layer")
    for step in range(1, STEPS + 1):
        some = torch.randint(len(images), (BATCH,))
        features = model.trunk(images[some])
        loss = nn.functional.cross_entropy(model.answer(features), labels[some])
        optimizer.zero_grad()
        torch.autograd.backward(loss - 0.01 * model.apart(features, bounded))
        optimizer.step()
        if watch.due(step):
            watch.look(step, model)
    for target in TARGETS:
        since = watch.crossed(target)
        print(f"{target}: above the bar" if since is None else f"{target}: BELOW at step {since}")
    print(f"\n{watch.history[-1][1].table()}\n")


train("members that differ in outputs", bounded=False)
train("members that differ in probabilities", bounded=True)
