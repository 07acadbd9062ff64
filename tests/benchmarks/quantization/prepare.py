"""Write one model's folder: its float ONNX, plain and rescaled, and its calls.

Usage, in tests/benchmarks: python -m quantization.prepare MODEL FOLDER SAMPLES HELD_OUT
HELD_OUT 0 stands for all there are. Prints what was written as JSON.
"""

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
from quantization import rescale_channels, rescale_norms
from quantization.data import CALIBRATION, FACTS, HELD_OUT, LABELS, Calls, write
from quantization.measures import answers, sqnr
from quantization.relu_mobilenet import RELU_MOBILENET, relu_mobilenet

from npuc import models
from npuc.export import export
from npuc.load import Loaded, load
from npuc.passes import standard
from npuc.passes.base import run
from npuc.pipeline import ANY
from npuc.program import Program

SAME = 100.0
"""dB: a rescaled model differs from its plain twin by float32 rounding, 120 dB and more."""

CHECKED = 8


def main(name: str, folder: Path, samples: int, held_out: int) -> dict[str, Any]:
    """Write the folder and return its facts."""
    base = "digits-mobilenet" if name == RELU_MOBILENET else name
    zoo = models.get(base)
    every = held_out or (len(_split(base)) if zoo.trained else 16)
    program = _program(_load(name), zoo)
    names = [port.name for port in program.inputs]

    def calls(batch: Sequence[tuple[Any, ...]]) -> list[dict[str, Any]]:
        return [{n: t.numpy() for n, t in zip(names, args, strict=True)} for args in batch]

    folder.mkdir(parents=True, exist_ok=True)
    write(folder / CALIBRATION, calls(zoo.calibration(samples)))
    write(folder / HELD_OUT, calls(zoo.samples(every)))
    if zoo.trained:
        np.save(folder / LABELS, zoo.labels(every).numpy())
    _save(program.model, folder / "plain.onnx")
    facts: dict[str, Any] = {
        "task": zoo.task, "trained": zoo.trained, "zoo": base,
        "activations": _activation_bytes(program), "reached": _rescaled(program, folder),
    }  # fmt: skip
    (folder / FACTS).write_text(json.dumps(facts))
    return facts


def _load(name: str) -> Loaded:
    if name == RELU_MOBILENET:
        return load(relu_mobilenet(), inputs=["image:1x1x16x16:float32"])
    return load(f"zoo:{name}")


def _split(name: str) -> Any:
    from npuc.models.recipes import RECIPES

    return RECIPES[name].split(True)


def _program(loaded: Loaded, zoo: models.ZooModel) -> Program:
    """Export at batch 1 and simplify, as npuc does: all methods start from this program."""
    exported = export(loaded)
    sizes = (
        {"batch": 1} if zoo.time is None else {"batch": 1, "time": zoo.example()[0].shape[zoo.time]}
    )
    return run(exported, standard({name: sizes[name] for name in exported.symbols}), ANY)


def _save(model: ir.Model, path: Path) -> None:
    """Write one file: ONNX Runtime's preparation refuses links to weights outside of it."""
    onnx.save(ir.to_proto(model), path)


def _rescaled(program: Program, folder: Path) -> dict[str, tuple[int, int]]:
    """Write the rescaled twin where there is one; return what was reached, by kind."""
    twin = program.clone().model
    norms = rescale_norms.rescale(twin)
    kinds = {"norms": norms} if norms[1] else {"convolutions": rescale_channels.rescale(twin)}
    if not any(reached for reached, _ in kinds.values()):
        return kinds
    path = folder / "rescaled.onnx"
    _save(twin, path)
    calls = Calls(folder / HELD_OUT)[:CHECKED]
    pairs = zip(answers(folder / "plain.onnx", calls), answers(path, calls), strict=True)
    same = [sqnr(plain, rescaled) for plain, rescaled in pairs]
    assert min(same) > SAME, f"rescaling changed the function: {same} dB"
    return kinds


def _activation_bytes(program: Program) -> int:
    """Return what one call's float activations take when all are kept."""
    sizes = (v.shape for node in program.model.graph for v in node.outputs if v.shape is not None)
    return sum(4 * int(np.prod([int(s) for s in size.numpy()])) for size in sizes)


if __name__ == "__main__":
    print(json.dumps(main(sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4]))))
