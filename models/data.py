"""The data the trained models learn from and are checked on, committed beside the weights.

`python -m npuc.models.data` rewrites the files from their sources: the handwritten digits that
ship with scikit-learn and the help texts that ship with Python. Reading needs neither, so the
answers do not depend on which versions of them are installed.
"""

from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file
from torch import Tensor

FOLDER = Path(__file__).parent / "weights"
DIGITS = FOLDER / "data-digits.safetensors"

TRAIN_DIGITS = 1000
"""Digits 0 to 999 train; the 797 after them, largely by other writers, are held out."""


@dataclass(frozen=True, slots=True)
class Split:
    """Inputs of one split, each with the sample as first dimension, and their truth."""

    inputs: tuple[Tensor, ...]
    truth: Tensor

    def __len__(self) -> int:
        return len(self.truth)


@dataclass(frozen=True, slots=True)
class Dataset:
    """What a model is trained on and what it never saw."""

    train: Split
    test: Split


@cache
def digit_arrays() -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Return all digits as (1797, 8, 8) with values 0 to 16, and their classes (1797,)."""
    arrays = load_file(DIGITS)
    return arrays["images"], arrays["labels"]


def digit_rows() -> Dataset:
    """Return digits as sequences: (N, 8, 8) float32 in [0, 1], a step per row."""
    images, labels = digit_arrays()
    return _split(torch.from_numpy(images.astype(np.float32)) / 16, labels)


def digit_images() -> Dataset:
    """Return digits as images: (N, 1, 16, 16) float32 in [0, 1], enlarged twofold (bilinear)."""
    images, labels = digit_arrays()
    small = torch.from_numpy(images.astype(np.float32))[:, None] / 16
    return _split(F.interpolate(small, scale_factor=2.0, mode="bilinear"), labels)


def _split(inputs: Tensor, labels: NDArray[np.uint8]) -> Dataset:
    truth = torch.from_numpy(labels.astype(np.int64))
    at = TRAIN_DIGITS
    return Dataset(Split((inputs[:at],), truth[:at]), Split((inputs[at:],), truth[at:]))


def write_digits() -> None:
    """Rewrite the digits from scikit-learn."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    arrays = {
        "images": digits.images.astype(np.uint8),
        "labels": digits.target.astype(np.uint8),
    }
    note = "Optical Recognition of Handwritten Digits (E. Alpaydin, C. Kaynak; UCI), test set"
    save_file(arrays, DIGITS, {"source": f"{note}, as in scikit-learn", "licence": "CC BY 4.0"})


if __name__ == "__main__":
    write_digits()
