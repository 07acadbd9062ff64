"""Scenes composed of real digits, for segmentation and detection.

They are drawn anew from a seed, so nothing but the digits themselves is stored.
"""

from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from npuc.models.data import Split, digit_split

Image = NDArray[np.float32]
BACKGROUND, DIGIT, BAR = 0, 1, 2
MAX_BOXES = 4

_INK = 0.35
"""A pixel of a digit counts as digit above this share of full ink."""


class Painter:
    """Draws digits of one split on noisy canvases, from one seed."""

    def __init__(self, held_out: bool) -> None:
        self.images, self.labels = digit_split(held_out)
        self.rng = np.random.RandomState(20 + held_out)  # frozen stream, unlike default_rng's

    def digit(self, size: int) -> tuple[Image, int]:
        """Return a random digit enlarged to size x size, in [0, 1], and its class."""
        at = int(self.rng.randint(len(self.images)))
        small = torch.from_numpy(self.images[at].astype(np.float32) / 16)[None, None]
        large = F.interpolate(small, size=(size, size), mode="bilinear", align_corners=False)
        return large[0, 0].numpy(), int(self.labels[at])

    def finish(self, canvas: Image) -> Image:
        """Light a canvas from one side, add noise, and clip it to [0, 1]."""
        ramp = np.linspace(-1, 1, canvas.shape[0], dtype=np.float32)
        light = 0.12 * self.rng.normal() * ramp[:, None] + 0.12 * self.rng.normal() * ramp
        noise = self.rng.normal(0, 0.06, canvas.shape)
        lit = canvas * self.rng.uniform(0.6, 0.9) + 0.15 + light + noise
        return np.asarray(np.clip(lit, 0, 1), np.float32)


def _segmentation(painter: Painter, size: int) -> tuple[Image, NDArray[np.uint8]]:
    canvas = np.zeros((size, size), np.float32)
    mask = np.zeros((size, size), np.uint8)
    for _ in range(int(painter.rng.randint(1, 4))):
        length, thick = int(painter.rng.randint(8, 21)), int(painter.rng.randint(2, 5))
        high, wide = (length, thick) if painter.rng.rand() < 0.5 else (thick, length)
        y, x = (int(painter.rng.randint(0, size - side + 1)) for side in (high, wide))
        canvas[y : y + high, x : x + wide] = painter.rng.uniform(0.5, 1.0)
        mask[y : y + high, x : x + wide] = BAR
    for _ in range(int(painter.rng.randint(1, 4))):
        side = int(painter.rng.randint(12, 19))
        ink, _ = painter.digit(side)
        y, x = (int(v) for v in painter.rng.randint(0, size - side + 1, 2))
        window = (slice(y, y + side), slice(x, x + side))
        canvas[window] = np.where(ink > _INK, ink, canvas[window])
        mask[window] = np.where(ink > _INK, DIGIT, mask[window])
    return painter.finish(canvas), mask


def _detection(painter: Painter, size: int) -> tuple[Image, NDArray[np.int64]]:
    canvas = np.zeros((size, size), np.float32)
    boxes = np.full((MAX_BOXES, 5), -1, np.int64)
    taken = np.zeros((size, size), bool)
    count = 0
    for _ in range(int(painter.rng.randint(1, MAX_BOXES + 1))):
        side = int(painter.rng.randint(12, 25))
        ink, label = painter.digit(side)
        rows, columns = (np.flatnonzero((ink > _INK).any(axis)) for axis in (1, 0))
        y, x = (int(v) for v in painter.rng.randint(0, size - side + 1, 2))
        window = (slice(y, y + side), slice(x, x + side))
        if taken[window].any():  # overlapping digits would make the truth a matter of taste
            continue
        taken[window] = True
        canvas[window] = ink
        corners = (x + columns[0], y + rows[0], x + columns[-1] + 1, y + rows[-1] + 1)
        boxes[count] = (*corners, label)
        count += 1
    return painter.finish(canvas), boxes


@cache
def segmentation(held_out: bool) -> Split:
    """Return scenes (N, 1, 32, 32) and masks (N, 32, 32): 1,200, or 200 held out."""
    return _draw(200 if held_out else 1200, held_out, 32, _segmentation)


@cache
def detection(held_out: bool) -> Split:
    """Return scenes (N, 1, 48, 48) and boxes (N, 4, 5): 2,000, or 200 held out.

    A box is x1, y1, x2, y2 in pixels and the class; rows of -1 fill up to four.
    """
    return _draw(200 if held_out else 2000, held_out, 48, _detection)


def _draw(
    count: int, held_out: bool, size: int, paint: Callable[[Painter, int], tuple[Image, Any]]
) -> Split:
    painter = Painter(held_out)
    images, truths = zip(*(paint(painter, size) for _ in range(count)), strict=True)
    inputs = torch.from_numpy(np.stack(images))[:, None]
    return Split((inputs,), torch.from_numpy(np.stack(truths)).to(torch.int64))
