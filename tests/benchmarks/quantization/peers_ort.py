"""Quantize with ONNX Runtime's quantize_static: QDQ, per channel, u8 activations, s8 weights.

Usage, in tests/benchmarks:
    python -m quantization.peers_ort VARIANT FLOAT.onnx FOLDER COUNT OUT.onnx
"""

import logging
import sys
import time
from pathlib import Path
from typing import Any

from onnxruntime.quantization import (
    CalibrationDataReader,
    CalibrationMethod,
    QuantFormat,
    QuantType,
    quantize_static,
)
from onnxruntime.quantization.shape_inference import quant_pre_process
from quantization.data import CALIBRATION, Calls
from quantization.result import report

_METHODS = {
    "minmax": CalibrationMethod.MinMax,
    "percentile": CalibrationMethod.Percentile,
    "entropy": CalibrationMethod.Entropy,
    "minmax-products": CalibrationMethod.MinMax,
}
_PRODUCTS = ["Conv", "ConvTranspose", "Gemm", "MatMul"]


class Reader(CalibrationDataReader):  # type: ignore[misc, unused-ignore]
    """Hands out one call after the other."""

    def __init__(self, calls: Calls) -> None:
        self._calls = iter(calls)

    def get_next(self) -> Any:  # None after the last
        return next(self._calls, None)


def main(variant: str, source: Path, folder: Path, count: int, target: Path) -> None:
    """Quantize one model with one variant."""
    prepared = target.with_suffix(".prepared.onnx")
    start = time.perf_counter()
    # Shapes are all known; symbolic inference adds nothing and needs sympy.
    quant_pre_process(source, prepared, skip_symbolic_shape=True)
    seconds = time.perf_counter() - start
    reader = Reader(Calls(folder / CALIBRATION, count))
    only = _PRODUCTS if variant.endswith("products") else None

    def work() -> None:
        quantize_static(
            prepared, target, reader, quant_format=QuantFormat.QDQ, per_channel=True,
            activation_type=QuantType.QUInt8, weight_type=QuantType.QInt8,
            calibrate_method=_METHODS[variant], op_types_to_quantize=only,
        )  # fmt: skip

    report(work, seconds)
    prepared.unlink()


if __name__ == "__main__":
    logging.disable(logging.WARNING)
    variant, source, folder, count, target = sys.argv[1:]
    main(variant, Path(source), Path(folder), int(count), Path(target))
