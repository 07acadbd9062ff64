"""Fine-tune a model against a chip with 4-bit weights, and compile what came out."""

import copy
import sys
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import npuc
from npuc import models
from npuc.execute import run
from npuc.models.data import digit_images

TARGET, PRECISION, BATCH, EPOCHS = "atom", "w4a8", 50, 4
folder = Path(sys.argv[1] if len(sys.argv) > 1 else "out")
folder.mkdir(parents=True, exist_ok=True)

torch.manual_seed(0)
original = models.get("digits-mobilenet").module()
(images,), held_out = digit_images(held_out=False).inputs, digit_images(held_out=True)
tests, labels = held_out.inputs[0][:750], held_out.truth[:750]


def answers(module: nn.Module, data: Tensor) -> Tensor:
    with torch.no_grad():
        return torch.cat([module(data[at : at + BATCH]) for at in range(0, len(data), BATCH)])


def show(name: str, found: Tensor) -> tuple[float, float]:
    """Print and return accuracy and SQNR, the latter against the original in float."""
    right = float((found.argmax(1) == labels).float().mean())
    sqnr = float(10 * torch.log10((wanted**2).sum() / ((found - wanted) ** 2).sum()))
    print(f"{name:<28}{right:8.1%}{sqnr:10.1f} dB")
    return right, sqnr


# The original teaches: its answers need no labels, and say more than labels do.
wanted, lessons = answers(original, tests), answers(original, images)
batches = DataLoader(TensorDataset(images, lessons), BATCH, shuffle=True)

model = copy.deepcopy(original)
seen = DataLoader(TensorDataset(images[:300]), BATCH)
chip = npuc.simulate(model, target=TARGET, precision=PRECISION, calibration=seen)
print(f"{'':<28}accuracy      SQNR")
full, _ = show("float", wanted)
_, before = show(f"{PRECISION}, as it was trained", answers(chip, tests))

optimizer = torch.optim.Adam(chip.parameters(), lr=5e-4)  # these are the parameters of `model`
pace = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, EPOCHS * len(batches))
for _ in range(EPOCHS):
    for x, y in batches:
        optimizer.zero_grad()
        nn.functional.mse_loss(chip(x), y).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        pace.step()
    chip.calibrate(seen)  # weights moved: so did the ranges
_, after = show(f"{PRECISION}, fine-tuned", answers(chip, tests))

# Compiled as it is: equalization would move the weights off the codes they were trained for, and
# bias correction would bring back the answers that they have in float.
path = folder / "digits.pt"
npuc.save(model, images[:BATCH], path, calibration=images[:300], samples=tests[:BATCH])
(made,) = npuc.compile(
    path, target=TARGET, precision=PRECISION, equalize=False, correct_bias=False,
    output=folder / "digits.npuc",
)  # fmt: skip
np.savez(folder / "tests.npz", image=tests.numpy())
found = [torch.from_numpy(a["output"]) for a in run(made.artifact_path, folder / "tests.npz")]
right, compiled = show(f"{made.artifact_path.name}, compiled", torch.cat(found))

assert after > before + 6, "fine-tuning must halve the error at least"
assert compiled > before + 6, "the artifact must keep what fine-tuning won"
assert right > full - 0.01
