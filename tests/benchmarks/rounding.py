"""What learned codes are worth: `python tests/benchmarks/rounding.py [MODEL…] [--target cpu]`.

For each model and precision: SQNR in dB on held-out samples with the nearest codes, GPTQ's and
AdaRound's, all else equal (64 calibration samples, equalised, biases corrected), and the seconds
that quantization took on this machine once ranges were known.
"""

import argparse
import time
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from npuc import models, plugins
from npuc.export import export
from npuc.load import load
from npuc.passes import standard
from npuc.passes.base import run
from npuc.per_target import prepare
from npuc.pipeline import ANY
from npuc.program import Program, Tensors
from npuc.quantization import rounding
from npuc.quantization.quantizer import Choices, Quantizer
from npuc.runners import OnnxRunner
from npuc.targets.base import Target

DEFAULT = ("digits-mobilenet", "digits-resnet", "digits-vit", "text-bert")
CALIBRATION, HELD_OUT = 64, 200


def prepared(name: str, target: Target) -> Program:
    """Return a model of the zoo, batch 1, as the target's compiler quantizes it."""
    program = export(load(f"zoo:{name}"))
    example = models.get(name).example()
    sizes = {
        symbol: int(value.shape[axis])
        for port, value in zip(program.inputs, example, strict=True)
        for axis, symbol in enumerate(port.shape)
        if isinstance(symbol, str)
    }
    return run(run(program, standard(sizes), ANY), prepare(target), target.profile)


def calls(program: Program, found: Sequence[tuple[Any, ...]]) -> list[Tensors]:
    """Name the inputs of samples."""
    names = [port.name for port in program.inputs]
    return [dict(zip(names, map(np.asarray, one), strict=True)) for one in found]


def sqnr(program: Program, other: Program, data: Sequence[Tensors]) -> float:
    """Return 10·log10 of all outputs' power by that of their error."""
    first, second = OnnxRunner(program), OnnxRunner(other)
    signal = noise = 0.0
    for call in data:
        answers = second(call)
        for key, value in first(call).items():
            signal += float((value.astype(np.float64) ** 2).sum())
            noise += float(((value.astype(np.float64) - answers[key]) ** 2).sum())
    return float(10 * np.log10(signal / max(noise, 1e-30)))


def measured(name: str, precision: str, target: Target) -> Iterator[tuple[str, float, float]]:
    """Yield (rounding, SQNR, seconds that the program took, ranges being there)."""
    profile, zoo = target.profile.at(precision), models.get(name)
    program = prepared(name, target)
    held_out = calls(program, zoo.samples(HELD_OUT))
    seen = calls(program, zoo.calibration(CALIBRATION))
    for method in rounding.NAMES:
        quantizer = Quantizer(program, seen, profile, Choices(rounding=method))
        assert quantizer.ranges  # measured before the clock starts
        start = time.perf_counter()
        made = quantizer.program()
        seconds = time.perf_counter() - start
        yield method, sqnr(program, made, held_out), seconds


def main() -> None:
    """Print one row for each model and precision."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("models", nargs="*", default=DEFAULT)
    parser.add_argument("--target", default="cpu")
    parser.add_argument("--precision", nargs="+", default=["int8", "w4a8"])
    given = parser.parse_args()
    target = plugins.find(given.target)
    heads = [f"{name} dB (s)" for name in rounding.NAMES]
    print("| model | precision |", " | ".join(heads), "|")
    print("|---|---|" + "---|" * len(heads))
    for name in given.models:
        for precision in given.precision:
            found = measured(name, precision, target)
            cells = [f"{db:.1f} ({seconds:.0f})" for _, db, seconds in found]
            print(f"| {name} | {precision} |", " | ".join(cells), "|", flush=True)


if __name__ == "__main__":
    main()
