"""A stand-in for Rockchip's `rknn.api` that enforces its documented interface and order of calls.

FAKE_STATUS names the call that returns -1.
"""

import os
from pathlib import Path
from typing import Any

import misbehave

misbehave.at_start()


class RKNN:
    """One conversion."""

    def __init__(self, verbose: bool = False) -> None:
        self._done: list[str] = []
        self._seen: dict[str, Any] = {}
        self._proto: Any = None

    def config(
        self,
        mean_values: Any = None,
        std_values: Any = None,
        quantized_dtype: str = "w8a8",
        quantized_algorithm: str = "normal",
        quantized_method: str = "channel",
        target_platform: Any = None,
    ) -> int:
        """Take the settings; the platform is needed."""
        if target_platform not in ("rk3588", "rk3566", "rk3576"):
            raise ValueError(f"target_platform {target_platform!r}")
        if (quantized_dtype, quantized_method) not in (("w8a8", "channel"), ("w8a8", "layer")):
            raise ValueError(f"{quantized_dtype} {quantized_method} on {target_platform}")
        if quantized_algorithm not in ("normal", "mmse", "kl_divergence", "gdq"):
            raise ValueError(quantized_algorithm)
        self._seen |= {"platform": target_platform, "mean": mean_values, "std": std_values}
        return self._end("config", after=[])

    def load_onnx(self, model: Any = None) -> int:
        """Read the model."""
        import handed

        self._proto = handed.model(model, 12, 19, 10)
        self._seen["inputs"] = handed.inputs(self._proto)
        return self._end("load_onnx", after=["config"])

    def build(self, do_quantization: bool = True, dataset: Any = None) -> int:
        """Quantize with the dataset: a line per call, paths relative to the list file."""
        misbehave.in_call()
        import handed

        self._seen["quantized"] = do_quantization
        if do_quantization:
            lines = Path(dataset).read_text().splitlines()
            for line in lines:
                pairs = zip(line.split(" "), self._seen["inputs"].values(), strict=True)
                for name, shape in pairs:
                    handed.array(Path(dataset).parent / name, shape)
            self._seen["calls"] = len(lines)
            if not lines:
                raise ValueError("an empty dataset")
        return self._end("build", after=["config", "load_onnx"])

    def export_rknn(self, export_path: Any) -> int:
        """Write the .rknn."""
        misbehave.write(Path(export_path), b"RKNN\0\0\0\0", **self._seen)
        return self._end("export_rknn", after=["config", "load_onnx", "build"])

    def release(self) -> None:
        """End the conversion."""

    def _end(self, call: str, after: list[str]) -> int:
        if self._done != after:
            raise RuntimeError(f"{call} after {self._done}")
        self._done.append(call)
        return -1 if os.environ.get("FAKE_STATUS") == call else 0
