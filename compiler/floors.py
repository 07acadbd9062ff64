"""How far rounding alone moves a model's answer."""

import copy
import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from npuc.program import Program, Tensors
from npuc.quiet import quiet

if TYPE_CHECKING:
    import onnx_ir as ir
    import torch

    from npuc.capture import Captured

DRAWS = 4
"""Perturbed runs where no float64 run is possible: the worst of four one-ulp disturbances."""


@dataclass(frozen=True, slots=True)
class Floor:
    """One output: largest and root-mean-square distance, and the answer's largest magnitude."""

    max_abs: float
    rms: float
    peak: float


def distance(answers: Sequence[Tensors], others: Sequence[Tensors]) -> dict[str, Floor]:
    """Compare two lists of answers per output, over finite values, in float64."""
    return {name: _distance([(a[name], b[name]) for a, b in zip(answers, others, strict=True)])
            for name in answers[0]}  # fmt: skip


def _distance(pairs: Iterable[tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]]) -> Floor:
    worst = peak = total = 0.0
    count = 0
    for first, second in pairs:
        if first.shape != second.shape:
            # Rounding changed how many rows there are (boxes that suppression keeps): no distance.
            peak = max(peak, float(np.abs(first[np.isfinite(first)]).max(initial=0)))
            continue
        if first.dtype.kind == "c":
            first, second = first.view(first.real.dtype), second.view(second.real.dtype)
        a, b = first.astype(np.float64), second.astype(np.float64)
        finite = np.isfinite(a) & np.isfinite(b)
        gap = np.abs(a[finite] - b[finite])
        worst = max(worst, float(gap.max(initial=0.0)))
        peak = max(peak, float(np.abs(a[finite]).max(initial=0.0)))
        total, count = total + float(gap @ gap), count + gap.size
    return Floor(worst, (total / count) ** 0.5 if count else 0.0, peak)


def largest(first: Floor, second: Floor) -> Floor:
    """Combine two floors of one output."""
    return Floor(
        max(first.max_abs, second.max_abs), max(first.rms, second.rms), max(first.peak, second.peak)
    )


@dataclass(frozen=True)
class Noise:
    """Where a reference's noise comes from, per tensor.

    `rounding` is the distance of the recorded answer from the float64 run, `spread` that of
    further runs on the same device from the recorded one: 0 where it repeats itself bit for bit.
    """

    rounding: Mapping[str, Floor]
    spread: Mapping[str, Floor]

    @property
    def floor(self) -> dict[str, Floor]:
        """The larger of both, which bars are multiples of."""
        return {name: largest(self.rounding[name], self.spread[name]) for name in self.rounding}


Runs = Sequence[tuple[Tensors, Tensors]]
"""Per call its outputs, and the values inside the model (empty for calls beyond `KEPT`)."""

KEPT = 4
"""Calls whose inner values are kept: they say where an error is born, not how often."""

FLOAT64 = "float64 run of the same model"
"""How a floor was found that is measured, not estimated."""


def wider(first: Mapping[str, Floor], second: Mapping[str, Floor]) -> dict[str, Floor]:
    """Combine the floors of several outputs."""
    return {n: largest(first[n], f) if n in first else f for n, f in second.items()}


def of_module(
    captured: "Captured", samples: Sequence[Tensors], runs: Runs, names: Sequence[str] = ()
) -> tuple[dict[str, Floor], dict[str, Floor], str]:
    """Return the floors of outputs and of the modules `names`, and how they were found.

    By a float64 run, else by perturbation. Both are run without autocast and without TF32, so
    that what these lose is part of the distance.
    """
    try:
        with quiet():  # copying a captured graph warns about torch's own internals
            module = _double(captured.native)
        exact = [_run_double(module, captured, s, wanted(i, names)) for i, s in enumerate(samples)]
    except Exception as error:  # an operator without a double kernel, or dtypes fixed in code
        reason = str(error).strip().splitlines()[0][:120] if str(error) else type(error).__name__
        nudged = [
            [_run_nudged(captured, s, draw, wanted(i, names)) for i, s in enumerate(samples)]
            for draw in range(DRAWS)
        ]
        return (
            _worst([r[0] for r in runs], [[r[0] for r in run] for run in nudged]),
            _worst(inside(runs), [inside(run) for run in nudged]),
            f"one-ulp perturbation of inputs and weights, {DRAWS} draws (no float64 run: {reason})",
        )
    return distance([r[0] for r in runs], [r[0] for r in exact]), within(runs, exact), FLOAT64


def wanted(call: int, names: Sequence[str]) -> Sequence[str]:
    """Return the modules whose values are kept of this call: of the first few alone."""
    return names if call < KEPT else ()


def inside(runs: Runs) -> list[Tensors]:
    """Return the inner values of the calls that have them."""
    return [inner for _, inner in runs if inner]


def within(runs: Runs, others: Runs) -> dict[str, Floor]:
    """Compare inner values of the calls that have them; {} where none was recorded."""
    recorded = inside(runs)
    return distance(recorded, inside(others)) if recorded else {}


def _worst(outputs: Sequence[Tensors], runs: Sequence[Sequence[Tensors]]) -> dict[str, Floor]:
    found = [distance(outputs, run) for run in runs] if outputs else [{}]
    return {
        name: Floor(
            max(f[name].max_abs for f in found),
            max(f[name].rms for f in found),
            found[0][name].peak,
        )
        for name in found[0]
    }


def _run_double(
    module: "torch.nn.Module", captured: "Captured", sample: Tensors, names: Sequence[str]
) -> tuple[Tensors, Tensors]:
    import torch
    from torch.utils import _pytree as pytree

    from npuc.inner import tapped
    from npuc.switches import exact

    args, kwargs = captured.signature.call(sample)
    first = next(iter((*module.parameters(), *module.buffers())), torch.empty(0))

    def widen(tensor: "torch.Tensor") -> "torch.Tensor":
        tensor = tensor.to(first.device)
        return tensor.double() if tensor.is_floating_point() else tensor

    args, kwargs = pytree.tree_map_only(torch.Tensor, widen, (args, kwargs))
    with torch.no_grad(), exact(first.device), tapped(module, names) as seen:
        return captured.signature.results(module(*args, **kwargs)), seen


def _double(module: "torch.nn.Module") -> "torch.nn.Module":
    """Copy a module to float64; in a captured graph the dtypes written into it as well."""
    import torch
    from torch.fx.node import map_aggregate

    module = copy.deepcopy(module).double()
    if isinstance(module, torch.fx.GraphModule):
        narrow = (torch.float32, torch.float16, torch.bfloat16)

        def widen(value: Any) -> Any:
            return torch.float64 if value in narrow else value

        for part in module.modules():
            if isinstance(part, torch.fx.GraphModule):
                for node in part.graph.nodes:
                    node.args = map_aggregate(node.args, widen)
                    node.kwargs = map_aggregate(node.kwargs, widen)
                part.recompile()
            for name, value in list(vars(part).items()):
                if isinstance(value, torch.Tensor) and value.dtype in narrow:
                    setattr(part, name, value.double())
    return module


def _run_nudged(
    captured: "Captured", sample: Tensors, draw: int, names: Sequence[str]
) -> tuple[Tensors, Tensors]:
    """Run with every weight and float input moved by one ulp, up or down at random.

    All switches that reduce float32 are off, as in a float64 run: one ulp of float32 would not
    show in what is rounded to fewer bits.
    """
    import torch

    from npuc.inner import tapped
    from npuc.signature import to_array, to_tensor

    generator = np.random.default_rng(draw)
    with quiet():
        module = copy.deepcopy(captured.native)
    with torch.no_grad():
        for tensor in (*module.parameters(), *module.buffers()):
            if tensor.is_floating_point():
                tensor.copy_(to_tensor(nudge(to_array(tensor), generator)))
    moved = {k: nudge(v, generator) for k, v in sample.items()}
    from dataclasses import replace

    from npuc.answers import device_of, run
    from npuc.switches import exact

    with exact(device_of(module)), tapped(module, names) as seen:
        return run(replace(captured, native=module), moved), seen


def nudge(array: np.ndarray[Any, Any], generator: np.random.Generator) -> np.ndarray[Any, Any]:
    """Move every float value to its neighbour above or below, at random; zeros stay."""
    bits = {"float64": 52, "float32": 23, "float16": 10, "bfloat16": 7}.get(array.dtype.name)
    if bits is None:
        return array
    sign = generator.integers(0, 2, array.shape) * 2 - 1
    wide = array.astype(np.float64)
    moved = np.where(np.isfinite(wide), wide * (1 + 2.0**-bits * sign), wide)
    with np.errstate(over="ignore"):
        narrow = moved.astype(array.dtype)
    # A mask is often the lowest number there is: it has no neighbour below.
    return np.where(np.isfinite(narrow), narrow, array).astype(array.dtype)


def of_program(
    program: Program, samples: Sequence[Tensors], outputs: Sequence[Tensors]
) -> dict[str, Floor]:
    """Estimate an ONNX program's floor: one-ulp moves of float inputs and weights, seeded."""
    import onnx_ir as ir

    from npuc.runners import OnnxRunner

    runs = []
    for draw in range(DRAWS):
        generator = np.random.default_rng(draw)
        copied = program.clone()
        for graph in copied.model.graphs():
            for value in graph.initializers.values():
                tensor = value.const_value
                if tensor is not None and tensor.dtype.is_floating_point() and not _sizes(value):
                    moved = nudge(np.array(tensor.numpy()), generator)
                    value.const_value = ir.tensor(moved, name=value.name)
        runner = OnnxRunner(copied)
        runs.append([runner({k: nudge(v, generator) for k, v in s.items()}) for s in samples])
    return _worst(outputs, runs)


def _sizes(value: "ir.Value") -> bool:
    """Say whether a constant is the factors of a Resize: they set shapes, and are no weights."""
    return any(use.node.op_type == "Resize" and use.idx > 0 for use in value.uses())


def digest(tensors: Any) -> str:
    """SHA-256 over names, dtypes, shapes and values of named tensors, or of a list of them."""
    from npuc.signature import to_array

    found = hashlib.sha256()
    for group in (tensors,) if isinstance(tensors, Mapping) else tensors:
        for name in sorted(group):
            value = group[name]
            array = value if isinstance(value, np.ndarray) else to_array(value)
            found.update(f"{name}:{array.dtype.name}:{array.shape}".encode())
            found.update(np.ascontiguousarray(array).tobytes())
    return found.hexdigest()
