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
TOPICS = FOLDER / "data-topics.safetensors"

TRAIN_DIGITS = 1000
"""Digits 0 to 999 train; the 797 after them, largely by other writers, are held out."""

TOPIC_NAMES = (
    "specialnames",
    "compound",
    "types",
    "formatstrings",
    "string-methods",
    "typesseq",
    "debugger",
    "typesmapping",
)
"""The longest help topics of Python that do not contain one another."""


@dataclass(frozen=True, slots=True)
class Split:
    """Inputs, each with the sample as first dimension, and their truth."""

    inputs: tuple[Tensor, ...]
    truth: Tensor

    def __len__(self) -> int:
        return len(self.truth)


@cache
def digit_arrays() -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Return all digits as (1797, 8, 8) with values 0 to 16, and their classes (1797,)."""
    arrays = load_file(DIGITS)
    return arrays["images"], arrays["labels"]


def digit_split(held_out: bool) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Return the digits of one split and their classes."""
    images, labels = digit_arrays()
    rows = slice(TRAIN_DIGITS, None) if held_out else slice(TRAIN_DIGITS)
    return images[rows], labels[rows]


def digit_rows(held_out: bool) -> Split:
    """Return digits as sequences: (N, 8, 8) float32 in [0, 1], a step per row."""
    images, labels = digit_split(held_out)
    rows = torch.from_numpy(images.astype(np.float32)) / 16
    return Split((rows,), torch.from_numpy(labels.astype(np.int64)))


def digit_images(held_out: bool) -> Split:
    """Return digits as images: (N, 1, 16, 16) float32 in [0, 1], enlarged twofold (bilinear)."""
    split = digit_rows(held_out)
    large = F.interpolate(split.inputs[0][:, None], scale_factor=2.0, mode="bilinear")
    return Split((large,), split.truth)


@cache
def topic_texts() -> tuple[str, ...]:
    """Return the texts of TOPIC_NAMES in ASCII, "?" for any other character."""
    arrays = load_file(TOPICS)
    return tuple(arrays[name].tobytes().decode("ascii") for name in TOPIC_NAMES)


def write_digits() -> None:
    """Rewrite the digits from scikit-learn."""
    from sklearn.datasets import load_digits

    pixels, labels = load_digits(return_X_y=True)
    arrays = {
        "images": np.asarray(pixels, np.uint8).reshape(-1, 8, 8),
        "labels": np.asarray(labels, np.uint8),
    }
    note = "Optical Recognition of Handwritten Digits (E. Alpaydin, C. Kaynak; UCI), test set"
    _write(DIGITS, arrays, f"{note}, as in scikit-learn; licence CC BY 4.0")


def write_topics() -> None:
    """Rewrite the help texts from Python's pydoc_data."""
    from platform import python_version
    from pydoc_data.topics import topics

    arrays = {
        name: np.frombuffer(topics[name].encode("ascii", "replace"), np.uint8)
        for name in TOPIC_NAMES
    }
    source = f"pydoc_data.topics of Python {python_version()}, (c) Python Software Foundation"
    _write(TOPICS, arrays, f"{source}; licence PSF-2.0")


def _write(path: Path, arrays: dict[str, NDArray[np.uint8]], about: str) -> None:
    save_file(arrays, path, {"about": about})  # one key: several come in random order
    path.chmod(0o644)  # safetensors writes files that only their owner may read


if __name__ == "__main__":
    write_digits()
    write_topics()
