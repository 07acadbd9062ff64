"""Code the weights of the zoo's GPT alone, in several ways, and print what each keeps.

    python tests/benchmarks/weight_only.py [--samples 400]      # prints Markdown

Every row is the same float program with other codes, run in ONNX Runtime on held-out samples.
"agreement" is the share of next tokens that are the float program's own choice, "accuracy" the
share that are the text's. Bytes are those of the coded weights: codes packed, float32 scales,
zero points.
"""

import argparse
from collections.abc import Sequence
from typing import Any

import numpy as np

from npuc import models
from npuc.export import export
from npuc.load import load
from npuc.passes import standard
from npuc.passes.base import run
from npuc.pipeline import ANY
from npuc.profile import Fact, Profile
from npuc.program import Program, Tensors
from npuc.quantization.weight_coder import WeightCoder
from npuc.runners import OnnxRunner

MODEL, CALIBRATION = "text-gpt", 64
HEAD = (
    "| precision | group | codes | 8-bit share | agreement | accuracy | SQNR dB | kB |\n"
    "|---|---|---|---|---|---|---|---|"
)
Array = np.ndarray[Any, Any]


def main() -> int:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--samples", type=int, default=400)
    count = parser.parse_args().samples
    zoo = models.get(MODEL)
    program = run(export(load(f"zoo:{MODEL}")), standard({"batch": 1}), ANY)
    (port,) = program.inputs
    calls, held_out = (
        [{port.name: call[0].numpy()} for call in found]
        for found in (zoo.calibration(CALIBRATION), zoo.samples(count))
    )
    truth, answers = zoo.labels(count).numpy(), _answers(program, held_out)
    print(HEAD)
    exact = _accuracy(answers, truth)
    print(f"| float32 | | | | | {exact:.3f} | | {_bytes(program) / 1e3:.1f} |", flush=True)
    for precision, group, symmetric, wide, data in _variants(calls):
        coder = WeightCoder(program, data, _device(precision, group, symmetric, wide), precision)
        got = _answers(coder.program(), held_out)
        held = sum(codes.nbytes for codes in coder.coded.values())
        row = (
            precision, group or "all", _named(symmetric, bool(data)), f"{wide:.0%}",
            f"{(got.argmax(-1) == answers.argmax(-1)).mean():.4f}", f"{_accuracy(got, truth):.3f}",
            f"{_sqnr(answers, got):.1f}", f"{held / 1e3:.1f}",
        )  # fmt: skip
        print(f"| {' | '.join(map(str, row))} |", flush=True)
    return 0


def _variants(
    calls: Sequence[Tensors],
) -> list[tuple[str, int, bool, float, Sequence[Tensors]]]:
    """Return (precision, group, symmetric, share of 8-bit weights, calibration calls)."""
    found: list[tuple[str, int, bool, float, Sequence[Tensors]]] = []
    for group in (32, 64, 128):
        found += [("w4a16", group, symmetric, 0.0, ()) for symmetric in (True, False)]
        found += [("w4a16", group, symmetric, 0.0, calls) for symmetric in (True, False)]
        found.append(("w4a16", group, False, 0.2, calls))
    return [*found, ("w8a16", 128, True, 0.0, ()), ("w8a16", 128, True, 0.0, calls)]


def _device(precision: str, group: int, symmetric: bool, wide: float) -> Profile:
    facts = {"group": group, "symmetric": symmetric, "wide": wide}
    every = {f"{precision}.{key}": Fact(value, "A", "here") for key, value in facts.items()}
    return Profile("benchmark", "Benchmark", every, {})


def _named(symmetric: bool, compensated: bool) -> str:
    kind = "symmetric" if symmetric else "asymmetric"
    return f"{kind}, {'one after the other' if compensated else 'nearest'}"


def _answers(program: Program, calls: Sequence[Tensors]) -> Array:
    runner, (port,) = OnnxRunner(program), program.outputs
    return np.concatenate([runner(call)[port.name] for call in calls])


def _accuracy(answers: Array, truth: Array) -> float:
    return float((answers.argmax(-1) == truth).mean())


def _sqnr(exact: Array, got: Array) -> float:
    power = (exact.astype(np.float64) ** 2).sum()
    return float(10 * np.log10(power / ((exact.astype(np.float64) - got) ** 2).sum()))


def _bytes(program: Program) -> int:
    """Return the bytes of the weights that are coded, as float32."""
    from npuc.passes.qdq.matrices import matrices

    return sum(4 * readers[0].array.size for readers in matrices(program.model)[0].values())


if __name__ == "__main__":
    raise SystemExit(main())
