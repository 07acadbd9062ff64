"""Synthetic sounds: a tone whose pitch moves in one of six ways, under noise."""

from functools import cache

import numpy as np
import torch

from npuc.models.data import Split

LENGTH = 1024
KINDS = ("rise", "fall", "peak", "dip", "steady", "warble")


def _pitch(kind: str, t: np.ndarray[tuple[int, ...], np.dtype[np.float64]]) -> object:
    shapes = {
        "rise": t,
        "fall": 1 - t,
        "peak": 1 - abs(2 * t - 1),
        "dip": abs(2 * t - 1),
        "steady": np.full_like(t, 0.5),
        "warble": 0.5 + 0.5 * np.sin(2 * np.pi * 4 * t),
    }
    return shapes[kind]


@cache
def sounds(held_out: bool) -> Split:
    """Return sounds (N, 1, 1024) float32 in [-1, 1] and their kind (N,): 1,800, or 300 held out."""
    rng = np.random.RandomState(40 + held_out)  # its stream is frozen, unlike default_rng's
    count = 300 if held_out else 1800
    kinds = rng.randint(0, len(KINDS), count)
    waves = np.empty((count, 1, LENGTH), np.float32)
    for wave, kind in zip(waves[:, 0], kinds, strict=True):
        start, length = rng.randint(0, 256), rng.randint(640, 769)
        t = np.arange(length) / length
        low, span = rng.uniform(0.01, 0.05), rng.uniform(0.03, 0.08)  # cycles a sample
        phase = 2 * np.pi * (np.cumsum(low + span * np.asarray(_pitch(KINDS[kind], t))))
        tone = np.sin(phase + rng.uniform(0, 2 * np.pi)) * np.hanning(length) ** 0.5
        wave[:] = rng.normal(0, rng.uniform(0.02, 0.15), LENGTH)
        wave[start : start + length] += rng.uniform(0.2, 0.7) * tone
    return Split((torch.from_numpy(waves.clip(-1, 1)),), torch.from_numpy(kinds.astype(np.int64)))
