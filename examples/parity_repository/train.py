"""Train the network in a few seconds: writes checkpoint.safetensors."""

import sys

import torch
from safetensors.torch import save_file
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, TensorDataset

from data import prepare, readings
from model import Meter


def train(seed: int) -> Meter:
    """Return a trained network: one thread and a fixed seed give the same weights again."""
    torch.set_num_threads(1)
    torch.manual_seed(seed)
    images, digits = readings(held_out=False)
    batches = DataLoader(TensorDataset(prepare(images), digits), 128, shuffle=True)
    model = Meter()
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for _ in range(10):
        for image, digit in batches:
            found = model(image)
            loss = cross_entropy(found["tens"], digit[:, 0])
            loss = loss + cross_entropy(found["units"], digit[:, 1])
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
    return model.eval()


if __name__ == "__main__":
    trained = train(int(sys.argv[1]) if len(sys.argv) > 1 else 0)
    save_file(trained.state_dict(), "checkpoint.safetensors")
