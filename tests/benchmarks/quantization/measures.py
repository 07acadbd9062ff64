"""How far a quantized model's answers are from the original's. Numpy and ONNX Runtime only."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from quantization.data import Array, Call

CLASS_AXIS = {"classification": 1, "segmentation": 1, "language": -1}
"""Where a task's first output has its classes; tasks that make no choice are not listed."""


def answers(path: Path, calls: Iterable[Call], optimized: bool = True) -> list[Array]:
    """Return every output over all calls, joined along the batch; as ONNX Runtime does by default.

    `optimized` False leaves the graph as it is written.
    """
    import onnxruntime as ort

    options: Any = ort.SessionOptions()
    options.log_severity_level = 4
    if not optimized:
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    session: Any = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    found = [session.run(None, call) for call in calls]
    return [np.concatenate(column) for column in zip(*found, strict=True)]


def sqnr(original: Array, other: Array) -> float:
    """Return signal power over error power in dB, both summed over everything; at most 300."""
    signal, error = (np.square(a.astype(np.float64)).sum() for a in (original, original - other))
    return min(300.0, float(10 * np.log10(signal / error))) if error > 0 else 300.0


def agreement(original: Array, other: Array, axis: int, noise: float) -> tuple[float, int]:
    """Return the share of equal choices where the original makes one, and how many it leaves open.

    Left open are choices whose two best lie within twice `noise`, what float rounding moves.
    """
    best = np.partition(original, -2, axis=axis).take([-1, -2], axis=axis)
    gap = np.abs(np.diff(best, axis=axis)).squeeze(axis)
    clear = gap > 2 * noise
    same = original.argmax(axis) == other.argmax(axis)
    return float(same[clear].mean()), int((~clear).sum())
