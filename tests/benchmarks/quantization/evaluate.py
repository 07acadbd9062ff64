"""Compare quantized models with the original on the held-out calls.

Usage, in tests/benchmarks: python -m quantization.evaluate FOLDER FLOAT.onnx QUANTIZED.onnx…
Prints one JSON object: a file's name → its figures; the float model's own come first.
"""

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from quantization.data import FACTS, HELD_OUT, LABELS, Array, Calls
from quantization.measures import CLASS_AXIS, agreement, answers, sqnr
from quantization.shares import kernels, share


def main(folder: Path, source: Path, paths: Sequence[Path]) -> dict[str, Any]:
    """Return every file's figures."""
    facts = json.loads((folder / FACTS).read_text())
    calls = Calls(folder / HELD_OUT)
    original = answers(source, calls)
    noise = _noise(original, answers(source, calls, optimized=False))
    found: dict[str, Any] = {
        source.stem: {"metric": _metric(facts, folder, original), "samples": len(calls)}
    }
    for path in paths:
        other = answers(path, calls)
        row: dict[str, Any] = {
            "sqnr": [sqnr(a, b) for a, b in zip(original, other, strict=True)],
            "metric": _metric(facts, folder, other),
            "share": share(path),
            "kernels": kernels(path),
        }
        axis = CLASS_AXIS.get(facts["task"]) if facts["trained"] else None
        if axis is not None:
            row["agreement"], row["ties"] = agreement(original[0], other[0], axis, noise)
        found[path.stem] = row
    return found


def _noise(one: Sequence[Array], two: Sequence[Array]) -> float:
    """Return what float rounding moves in the first output: between two orders of summing up."""
    moved = float(np.abs(one[0] - two[0]).max())
    return max(moved, float(np.spacing(np.abs(one[0]).max())))


def _metric(facts: Mapping[str, Any], folder: Path, outputs: Sequence[Array]) -> float | None:
    """Return the zoo's own metric; None for models that were not trained."""
    if not facts["trained"]:
        return None
    import torch

    from npuc.models.recipes import RECIPES

    truth = torch.from_numpy(np.load(folder / LABELS))
    return RECIPES[facts["zoo"]].score(tuple(map(torch.from_numpy, outputs)), truth)


if __name__ == "__main__":
    folder, source, *paths = map(Path, sys.argv[1:])
    print(json.dumps(main(folder, source, paths)))
