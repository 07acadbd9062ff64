"""Train a classifier and save it with its own answers: npuc compile digits.pt --target atom"""

import sys

import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import npuc

torch.manual_seed(0)
data, target = load_digits(return_X_y=True)
images = torch.tensor(data, dtype=torch.float32).reshape(-1, 1, 8, 8) / 16
labels = torch.tensor(target)
train, test = slice(0, 1400), slice(1400, None)
batches = DataLoader(TensorDataset(images[train], labels[train]), 128, shuffle=True)

model = nn.Sequential(
    nn.Conv2d(1, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(),
    nn.Conv2d(16, 32, 3, stride=2, padding=1), nn.BatchNorm2d(32), nn.ReLU(),
    nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 10),
)  # fmt: skip
optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
for _ in range(40):
    for x, y in batches:
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()  # type: ignore[no-untyped-call]
        optimizer.step()

model.eval()
with torch.no_grad():
    print(f"accuracy {(model(images[test]).argmax(1) == labels[test]).float().mean():.3f}")

path = sys.argv[1] if len(sys.argv) > 1 else "digits.pt"
npuc.save(
    model, images[:1], path,
    calibration=images[train][:64], samples=images[test][:32],
)  # fmt: skip
print(f"saved {path}; next: npuc compile {path} --target atom")
