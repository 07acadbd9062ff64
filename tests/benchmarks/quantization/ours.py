"""Quantize with npuc for target cpu, on the path of `npuc compile FLOAT.onnx --precision int8`.

Usage, in tests/benchmarks: python -m quantization.ours VARIANT FLOAT.onnx FOLDER COUNT OUT.onnx
"""

import sys
import time
from pathlib import Path

import onnx
import onnx_ir as ir
from quantization.data import CALIBRATION, Calls
from quantization.result import report

from npuc import plugins
from npuc.export import export
from npuc.load import load
from npuc.passes import standard
from npuc.passes.base import run
from npuc.per_target import prepare
from npuc.pipeline import ANY
from npuc.quantization.quantizer import Choices, Quantizer


def main(variant: str, source: Path, folder: Path, count: int, target: Path) -> None:
    """Quantize one model with one observer, `default` being the target's own."""
    start = time.perf_counter()
    cpu = plugins.find("cpu")
    program = run(export(load(source)), standard({}), ANY)
    program = run(program, prepare(cpu), cpu.profile)
    calls = Calls(folder / CALIBRATION, count)
    prepared = time.perf_counter() - start
    choices = Choices() if variant == "default" else Choices(observer=variant)

    def work() -> None:
        quantized = Quantizer(program, calls, cpu.profile, choices).program()
        onnx.save(ir.to_proto(quantized.model), target)

    report(work, prepared)


if __name__ == "__main__":
    variant, source, folder, count, target = sys.argv[1:]
    main(variant, Path(source), Path(folder), int(count), Path(target))
