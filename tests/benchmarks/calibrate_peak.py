"""Calibrate an ONNX model on N samples, with npuc or with ONNX Runtime, and time it.

Usage: calibrate_peak.py npuc|ort min-max|percentile|entropy MODEL.onnx N
       calibrate_peak.py export NAME MODEL.onnx

Samples are drawn once and used again, so that the data takes neither time nor memory worth
counting. Both sides start from the file and end with a range for each tensor they observe; the
imports are not timed. Percentile keeps 99.999 % on both sides. Prints the number of tensors
observed and the seconds.
"""

import contextlib
import io
import logging
import sys
import time
from collections.abc import Iterator
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import numpy as np

Call = dict[str, np.ndarray[Any, Any]]
DRAWN = 8
PERCENTILE = 99.999


def draw(model: Path, count: int) -> Iterator[Call]:
    """Yield `count` calls, the same ones every time; integers are tokens, masks hide nothing."""
    import onnxruntime as ort

    inputs = ort.InferenceSession(str(model), providers=["CPUExecutionProvider"]).get_inputs()
    generator = np.random.default_rng(0)

    def one(port: Any) -> np.ndarray[Any, Any]:
        shape = tuple(map(int, port.shape))
        if "mask" in port.name:
            return np.ones(shape, np.int64)
        if "int64" in port.type:
            return generator.integers(0, 256, shape)
        return generator.standard_normal(shape, dtype=np.float32)

    calls = [{port.name: one(port) for port in inputs} for _ in range(DRAWN)]
    return islice(cycle(calls), count)


def with_npuc(path: Path, method: str, calls: Iterator[Call]) -> tuple[int, float]:
    """Calibrate with npuc for its target cpu."""
    from dataclasses import replace

    from npuc import plugins
    from npuc.program import Program
    from npuc.quantization import calibrate

    scheme = plugins.find("cpu").profile.at("int8").int_scheme
    assert scheme is not None
    scheme = replace(scheme, percentile=PERCENTILE)
    start = time.perf_counter()
    found = calibrate.collect(Program.load(path), calls, scheme, observer=method)
    return len(found), time.perf_counter() - start


def with_ort(path: Path, method: str, calls: Iterator[Call]) -> tuple[int, float]:
    """Calibrate as ONNX Runtime's quantize_static does, with its operators."""
    from onnxruntime.quantization import CalibrationDataReader, CalibrationMethod
    from onnxruntime.quantization.calibrate import create_calibrator
    from onnxruntime.quantization.registry import QDQRegistry, QLinearOpsRegistry

    class Reader(CalibrationDataReader):  # type: ignore[misc, unused-ignore]
        def get_next(self) -> Any:  # None after the last
            return next(calls, None)

    kinds = {"min-max": "MinMax", "percentile": "Percentile", "entropy": "Entropy"}
    observed = sorted({*QDQRegistry, *QLinearOpsRegistry})
    start = time.perf_counter()
    with contextlib.redirect_stdout(io.StringIO()):  # it tells what it does
        calibrator = create_calibrator(
            str(path), observed, str(path.with_name("augmented.onnx")),
            calibrate_method=getattr(CalibrationMethod, kinds[method]),
            extra_options={"percentile": PERCENTILE} if method == "percentile" else {},
        )  # fmt: skip
        calibrator.collect_data(Reader())
        found = calibrator.compute_data()
    return len(found.data), time.perf_counter() - start


def export(name: str, path: Path) -> None:
    """Write one reference model as float ONNX at a batch of 1, as a tutorial would."""
    import by_hand

    from npuc import models

    zoo = models.get(name)
    by_hand.export(zoo.module(), zoo.example(), zoo.input_names, path)


if __name__ == "__main__":
    logging.disable(logging.WARNING)
    if sys.argv[1] == "export":
        export(sys.argv[2], Path(sys.argv[3]))
        sys.exit()
    side, how, model, number = sys.argv[1:]
    samples = draw(Path(model), int(number))
    tensors, seconds = {"npuc": with_npuc, "ort": with_ort}[side](Path(model), how, samples)
    print(f"{tensors} tensors observed in {seconds:.3f} s")
