"""The range of every tensor, as furiosa-quantizer writes it into a model for furiosa-compiler."""

import json
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import onnx_ir as ir

from npuc.passes.graphs import constant
from npuc.program import Program, Tensors

KEY = "FurisoaAI.CalibrationResult"
"""The model metadata that holds them; spelt so by furiosa-quantizer 0.10.2, read off its output."""

Ranges = Mapping[str, tuple[float, float]]


def ranges(
    program: Program,
    quantized: Program | None,
    calls: Sequence[Tensors],
    codes: tuple[int, int],
) -> Ranges:
    """Return (least, greatest) of every float32 tensor of `program` that is no constant.

    A tensor that npuc quantized has the range of its codes: s·(q_low - z) to s·(q_high - z), so
    that the chip codes it as the twin does. The others (layout operators' results, sums before a
    clamp) have what `calls` showed; without calls they are missing.
    """
    names = _floats(program)
    found = {k: v for k, v in _observed(program, names, calls).items() if k in names}
    if quantized is not None:
        found |= {k: v for k, v in _coded(quantized, codes).items() if k in names}
    return {name: found[name] for name in sorted(found)}


def yaml(values: Ranges) -> str:
    """Write ranges as furiosa-quantizer does: tensor → list of two numbers.

    Names are quoted as JSON strings, which YAML reads: a bare ``123`` would be a number.
    """
    lines = ["---"]
    for name, pair in values.items():
        lines.append(f"{json.dumps(name)}:")
        lines += [f"  - {_number(value)}" for value in pair]
    return "\n".join(lines) + "\n"


def _number(value: float) -> str:
    """Spell a float so that every YAML reader takes it for one: 1e-07 is a word to some."""
    text = repr(float(value))
    mantissa, e, exponent = text.partition("e")
    return text if not e or "." in mantissa else f"{mantissa}.0e{exponent}"


def _floats(program: Program) -> dict[str, ir.Value]:
    graph = program.model.graph
    weights = graph.initializers
    values: Iterable[ir.Value] = (
        *(v for v in graph.inputs if v.name not in weights),
        *(v for node in graph for v in node.outputs if constant(v) is None),
    )
    return {v.name: v for v in values if v.name and v.dtype == ir.DataType.FLOAT}


def _observed(
    program: Program, names: Mapping[str, ir.Value], calls: Sequence[Tensors]
) -> dict[str, tuple[float, float]]:
    if not calls:
        return {}
    from npuc.runners import OnnxRunner

    ports = {port.name for port in (*program.inputs, *program.outputs)}
    run = OnnxRunner(program, extra=[name for name in names if name not in ports])
    found: dict[str, tuple[float, float]] = {}
    for call in calls:
        for name, array in {**call, **run(call)}.items():
            if array.size:
                low, high = found.get(name, (np.inf, -np.inf))
                found[name] = (min(low, float(array.min())), max(high, float(array.max())))
    return found


def _coded(quantized: Program, codes: tuple[int, int]) -> dict[str, tuple[float, float]]:
    """Read the parameters of every QuantizeLinear: by the tensor it codes, and, where that was
    renamed, by the tensor that is decoded from it.
    """
    found: dict[str, tuple[float, float]] = {}
    for node in quantized.model.graph:
        scale = constant(node.inputs[1]) if node.op_type == "QuantizeLinear" else None
        if scale is None or scale.size != 1:
            continue
        zero = constant(node.inputs[2]) if len(node.inputs) > 2 else None
        z = 0 if zero is None else int(zero.reshape(-1)[0])
        s = float(scale.reshape(-1)[0])
        pair = (s * (codes[0] - z), s * (codes[1] - z))
        readers = [use.node.outputs[0] for use in node.outputs[0].uses()]
        for value in (*readers, node.inputs[0]):
            if value is not None and value.name:
                found[value.name] = pair
    return found
