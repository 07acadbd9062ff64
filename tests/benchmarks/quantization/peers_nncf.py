"""Quantize with NNCF, in a Python of its own: that has nncf, onnx and onnxruntime, but no npuc.

Usage, in tests/benchmarks:
    $NPUC_NNCF_PYTHON -m quantization.peers_nncf VARIANT FLOAT.onnx FOLDER COUNT OUT.onnx
"""

import logging
import sys
import time
import warnings
from pathlib import Path
from typing import Any

import nncf
import onnx
from quantization.data import CALIBRATION, Calls
from quantization.result import report

_MIXED: dict[str, Any] = {"preset": nncf.QuantizationPreset.MIXED}
_TRANSFORMER: dict[str, Any] = {**_MIXED, "model_type": nncf.ModelType.TRANSFORMER}
_ACCURATE: dict[str, Any] = {"fast_bias_correction": False}


def _options(variant: str) -> dict[str, Any]:
    from nncf.quantization.advanced_parameters import (
        AdvancedQuantizationParameters,
        QuantizationParameters,
    )

    per_tensor = AdvancedQuantizationParameters(
        activations_quantization_params=QuantizationParameters(per_channel=False)
    )
    return {
        "default": {},
        "mixed": _MIXED,
        "transformer": _TRANSFORMER,
        "accurate": {**_MIXED, **_ACCURATE},
        "transformer-accurate": {**_TRANSFORMER, **_ACCURATE},
        "per-tensor": {"advanced_parameters": per_tensor},
    }[variant]


def main(variant: str, source: Path, folder: Path, count: int, target: Path) -> None:
    """Quantize one model with one variant."""
    start = time.perf_counter()
    model, data = onnx.load(source), nncf.Dataset(Calls(folder / CALIBRATION, count))
    prepared = time.perf_counter() - start

    def work() -> None:
        onnx.save(nncf.quantize(model, data, subset_size=count, **_options(variant)), str(target))

    report(work, prepared)


if __name__ == "__main__":
    logging.disable(logging.WARNING)
    warnings.simplefilter("ignore")
    variant, source, folder, count, target = sys.argv[1:]
    main(variant, Path(source), Path(folder), int(count), Path(target))
