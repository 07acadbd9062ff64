"""Compile a module for two targets from Python, and exit by parity: for a build script."""

import sys
from pathlib import Path

import torch
from torch import nn

import npuc

folder = Path(sys.argv[1] if len(sys.argv) > 1 else "out")
folder.mkdir(parents=True, exist_ok=True)

torch.manual_seed(0)
model = nn.Sequential(
    nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 8 * 8, 4)
).eval()
images = torch.rand(48, 3, 8, 8)

# One file carries the module, its calibration inputs, and what it answers here.
path = folder / "model.pt"
npuc.save(model, images[:1], path, calibration=images[:32], samples=images[32:])

worst = 0
for compiled in npuc.compile(path, target=["cpu", "atom"], precision="int8", output=folder):
    print(compiled.report.table())
    print(f"→ {compiled.artifact_path}\n")
    worst = max(worst, compiled.report.exit_code)
sys.exit(worst)
