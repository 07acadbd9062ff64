"""Quantize with NNCF, in a Python of its own: that has nncf, onnx and onnxruntime, but no npuc.

Usage, in tests/benchmarks:
    $NPUC_NNCF_PYTHON -m quantization.peers_nncf VARIANT FLOAT.onnx FOLDER COUNT OUT.onnx
"""

import importlib
import logging
import sys
import time
import warnings
from pathlib import Path
from typing import Any

import onnx
from quantization.data import CALIBRATION, Calls
from quantization.result import report

# Not imported as usual: static tools run where there is no nncf.
nncf: Any = importlib.import_module("nncf")
advanced: Any = importlib.import_module("nncf.quantization.advanced_parameters")

_MIXED: dict[str, Any] = {"preset": nncf.QuantizationPreset.MIXED}
_TRANSFORMER: dict[str, Any] = {**_MIXED, "model_type": nncf.ModelType.TRANSFORMER}
_ACCURATE: dict[str, Any] = {"fast_bias_correction": False}


def _options(variant: str) -> dict[str, Any]:
    per_tensor = advanced.AdvancedQuantizationParameters(
        activations_quantization_params=advanced.QuantizationParameters(per_channel=False)
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
