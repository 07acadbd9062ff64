"""Meter readings, two handwritten digits side by side, and their preprocessing."""

import numpy as np
import torch
from sklearn.datasets import load_digits
from torch import Tensor

HELD_OUT = 1000
"""Digits from this one on are held out; most are by writers whom training never sees."""


def readings(held_out: bool) -> tuple[Tensor, Tensor]:
    """Return images (N, 1, 8, 16) with values 0 to 16 as a sensor gives them, and digits (N, 2).

    A held-out digit is in one reading only: a rate needs samples that do not depend on each other.
    """
    pixels, labels = load_digits(return_X_y=True)
    images = pixels.reshape(-1, 8, 8).astype(np.float32)
    rows = np.arange(HELD_OUT, len(images)) if held_out else np.arange(HELD_OUT)
    shuffle = np.random.default_rng(0).permutation
    rounds = [shuffle(rows)[: len(rows) // 2 * 2] for _ in range(1 if held_out else 10)]
    pairs = np.concatenate(rounds).reshape(-1, 2)
    both = np.concatenate([images[pairs[:, 0]], images[pairs[:, 1]]], axis=2)
    return torch.from_numpy(both)[:, None], torch.from_numpy(labels[pairs].astype(np.int64))


def prepare(images: Tensor) -> Tensor:
    """Bring a sensor's values to what the network is trained on, 0 to 1."""
    return images / 16
