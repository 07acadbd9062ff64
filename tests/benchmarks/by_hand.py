"""The job of `npuc compile --precision int8`, assembled by hand as tutorials do it.

Usage: by_hand.py MODEL SAMPLES. Writes float.onnx and int8.onnx to the current folder and prints
how far their answers are from torch's. Settings are those of npuc's target cpu: 8-bit weights per
channel, unsigned activations per tensor, ranges from minimum and maximum.
"""

import logging
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from npuc import models

Call = dict[str, np.ndarray[Any, Any]]
CHECKED = 8
"""Held-out samples to compare on: as many as npuc compares a reference model on."""


def export(module: Any, args: tuple[Any, ...], names: Sequence[str], path: Path) -> None:
    """Export at a fixed batch of 1 and simplify."""
    import onnx
    import onnxsim
    import torch

    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            module, args, path, dynamo=True, input_names=list(names), output_names=["out"],
            opset_version=20, external_data=False, verbose=False,
        )  # fmt: skip
    simplified, checked = onnxsim.simplify(onnx.load(path))
    if not checked:
        sys.exit("onnxsim changed the answer")
    onnx.save(simplified, path)


def quantize(source: Path, target: Path, calls: Sequence[Call]) -> None:
    """Quantize to QDQ int8 with ONNX Runtime."""
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType
    from onnxruntime.quantization import quantize_static as static

    class Reader(CalibrationDataReader):  # type: ignore[misc, unused-ignore]
        def __init__(self) -> None:
            self._calls = iter(calls)

        def get_next(self) -> Any:  # None after the last
            return next(self._calls, None)

    static(
        source, target, Reader(), quant_format=QuantFormat.QDQ, per_channel=True,
        weight_type=QuantType.QInt8, activation_type=QuantType.QUInt8,
    )  # fmt: skip


def answers(path: Path, calls: Sequence[Call]) -> list[np.ndarray[Any, Any]]:
    """Run a model on every call, as ONNX Runtime runs it by default."""
    import onnxruntime as ort

    session: Any = ort.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return [session.run(None, call)[0] for call in calls]


def _distance(got: Sequence[np.ndarray[Any, Any]], want: Sequence[np.ndarray[Any, Any]]) -> str:
    error = sum(float(np.square(a - b).sum()) for a, b in zip(got, want, strict=True))
    signal = sum(float(np.square(b).sum()) for b in want)
    agree = np.mean([a.argmax() == b.argmax() for a, b in zip(got, want, strict=True)])
    return f"SQNR {10 * np.log10(signal / error):.1f} dB, agreement {agree:.0%}"


def main(name: str, samples: int) -> None:
    """Export, simplify, quantize and compare one reference model."""
    import torch

    logging.disable(logging.WARNING)
    zoo = models.get(name)
    module, names = zoo.module(), zoo.input_names

    def calls(batch: Sequence[tuple[Any, ...]]) -> list[Call]:
        return [{n: t.numpy() for n, t in zip(names, args, strict=True)} for args in batch]

    full, int8 = Path("float.onnx"), Path("int8.onnx")
    export(module, zoo.example(), names, full)
    quantize(full, int8, calls(zoo.calibration(samples)))
    held_out = zoo.samples(CHECKED)
    with torch.no_grad():
        original = [module(*args).numpy() for args in held_out]
    for path in (full, int8):
        print(f"{path.name}: {_distance(answers(path, calls(held_out)), original)}")


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
