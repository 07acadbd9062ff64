"""Calibrate an ONNX model by percentile on N random samples, with npuc or with ONNX Runtime.

Usage: calibrate_peak.py npuc|ort MODEL.onnx N. Samples are drawn one at a time, so that the data
itself takes no memory worth counting. Both sides keep the ranges of the 99.999th percentile and
the settings of npuc's target atom. Prints the number of tensors observed.
"""

import logging
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

INPUT, SHAPE = "image", (1, 3, 224, 224)
Call = dict[str, np.ndarray[Any, Any]]


def draw(count: int) -> Iterator[Call]:
    """Yield `count` calls, the same ones every time."""
    for index in range(count):
        generator = np.random.default_rng(index)
        yield {INPUT: generator.standard_normal(SHAPE, dtype=np.float32)}


def with_npuc(path: Path, count: int) -> int:
    """Calibrate with npuc for atom, whose observer is the percentile."""
    from npuc import calibrate, plugins
    from npuc.program import Program

    scheme = plugins.find("atom").profile.int_scheme
    assert scheme is not None and scheme.percentile == 99.999
    return len(calibrate.collect(Program.load(path), draw(count), scheme, observer="percentile"))


def with_ort(path: Path, count: int) -> int:
    """Quantize with ONNX Runtime, whose peak is its calibration."""
    import onnx
    from onnxruntime.quantization import CalibrationDataReader, CalibrationMethod, QuantFormat
    from onnxruntime.quantization import quantize_static as static

    class Reader(CalibrationDataReader):  # type: ignore[misc, unused-ignore]
        def __init__(self) -> None:
            self._calls = draw(count)

        def get_next(self) -> Any:  # None after the last
            return next(self._calls, None)

    target = path.with_name(f"ort-{count}.onnx")
    static(
        path, target, Reader(), quant_format=QuantFormat.QDQ, per_channel=True,
        calibrate_method=CalibrationMethod.Percentile,
        extra_options={"CalibPercentile": 99.999, "ActivationSymmetric": True},
    )  # fmt: skip
    nodes = onnx.load(target).graph.node
    weights = {i.name for i in onnx.load(target).graph.initializer}
    return len({n.input[0] for n in nodes if n.op_type == "QuantizeLinear"} - weights)


if __name__ == "__main__":
    logging.disable(logging.WARNING)
    side, model, number = sys.argv[1:]
    tensors = {"npuc": with_npuc, "ort": with_ort}[side](Path(model), int(number))
    print(f"{tensors} tensors observed")
