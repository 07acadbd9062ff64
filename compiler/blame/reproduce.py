"""Show a fault again: run the graphs beside this file on their inputs, and compare.

A bundle of `npuc blame` holds a copy. ``python BUNDLE.zip`` runs it, or ``python reproduce.py``
where the bundle was unpacked. Needs numpy and onnxruntime; npuc as well where a compiler is at
fault and not a graph. Exits with 1 while the fault is there, with 0 once it is gone.
"""

import io
import json
import sys
import tempfile
import zipfile
from pathlib import Path
from typing import Any

import numpy as np

HERE = Path(__file__).resolve().parent


def main() -> int:
    """Compare, print what was found, and return the exit code."""
    settings = json.loads(_read("settings.json"))
    inputs, expected = _arrays("inputs.npz"), _arrays("expected.npz")
    try:
        got = _lowered(settings, inputs) if settings["lowering"] else _run("bad.onnx", inputs)
    except Exception as error:  # whatever the fault raises is the fault
        print(f"FAULT: it does not run: {type(error).__name__}: {error}")
        return 1
    if settings["good"]:
        again = _run("good.onnx", inputs)
        worst = max(_ratio(expected[name], again[name])[0] for name in expected)
        if worst > settings["limit"]:
            print("the good graph does not answer as recorded: this machine computes otherwise")
    wrong = False
    for name, right in expected.items():
        ratio, text = _ratio(right, got[name])
        wrong |= not ratio <= settings["limit"]
        print(f"{'WRONG' if not ratio <= settings['limit'] else 'right'}: {name}: {text}")
    print("FAULT: it is there" if wrong else "the fault is gone")
    return 1 if wrong else 0


def _ratio(right: "np.ndarray[Any, Any]", got: "np.ndarray[Any, Any]") -> tuple[float, str]:
    """Return noise to signal as a ratio of powers, and in words; infinite for another shape."""
    if right.shape != got.shape:
        return float("inf"), f"shape {got.shape}, expected {right.shape}"
    a, b = right.astype(np.float64), got.astype(np.float64)
    odd = ~(np.isfinite(a) & np.isfinite(b))
    if (odd & ~((a == b) | (np.isnan(a) & np.isnan(b)))).any():
        return float("inf"), "NaN or Inf on one side only"
    gap = np.abs(a - b)[~odd]
    centre = a[~odd].mean() if right.dtype.kind in "iu" and gap.size else 0.0
    error = float((gap**2).sum())
    signal = float(((a[~odd] - centre) ** 2).sum()) or float((a[~odd] ** 2).sum())
    ratio = 0.0 if error == 0 else error / signal if signal > 0 else float("inf")
    decibels = "exact" if ratio == 0 else f"SQNR {-10 * np.log10(ratio):.1f} dB"
    at = np.unravel_index(int(np.abs(a - b).argmax()), a.shape) if a.size else ()
    pair = f"; at {tuple(map(int, at))} expected {right[at]}, got {got[at]}" if a.size else ""
    return ratio, f"{decibels}, max abs {gap.max(initial=0.0):.3g}{pair}"


def _run(name: str, inputs: "dict[str, np.ndarray[Any, Any]]") -> "dict[str, Any]":
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 4
    session = ort.InferenceSession(_read(name), options, providers=["CPUExecutionProvider"])
    names = [value.name for value in session.get_outputs()]
    wanted = {value.name for value in session.get_inputs()}
    feed = {key: value for key, value in inputs.items() if key in wanted}
    return dict(zip(names, session.run(names, feed), strict=True))


def _lowered(settings: dict[str, Any], inputs: "dict[str, Any]") -> "dict[str, Any]":
    """Compile the graph for the target again, and run it."""
    from npuc.blame.lowering import again

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "bad.onnx"
        path.write_bytes(_read("bad.onnx"))
        return dict(again(path, settings["target"], settings["call"], inputs))


def _arrays(name: str) -> "dict[str, np.ndarray[Any, Any]]":
    with np.load(io.BytesIO(_read(name)), allow_pickle=False) as found:
        return {key: found[key] for key in found.files}


def _read(name: str) -> bytes:
    """Read a file that lies beside this one, in a folder or in a zip."""
    if HERE.is_file():
        with zipfile.ZipFile(HERE) as archive:
            return archive.read(name)
    return (HERE / name).read_bytes()


if __name__ == "__main__":
    sys.exit(main())
