"""What the original answered: inputs, outputs, how it was computed, and its noise floor.

The noise floor of an output is the distance of the original's own native answer from a float64
run of the same model on the same inputs: how far rounding alone moves it. Where no float64 run
is possible it is estimated by moving inputs and weights by one unit in the last place.
"""

import hashlib
import platform
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from npuc import batches as batching
from npuc import floors, inner
from npuc.errors import ExportError, ParityError
from npuc.floors import Floor, Noise
from npuc.inputs import random
from npuc.jsonable import canonical, plain
from npuc.policy import Policy
from npuc.program import Port, Program, Tensors
from npuc.switches import environment, grain, machine

if TYPE_CHECKING:
    import torch

    from npuc.capture import Captured
    from npuc.load import Loaded

__all__ = [
    "Floor",
    "Noise",
    "Reference",
    "check",
    "from_module",
    "from_program",
    "identified",
    "of",
    "record",
    "run",
]

REPEATS = (1, 3)
"""Runs after the first, on a CPU and on a GPU, where the order of sums changes from run to run: of
four runs the chance that all fall on one side of the middle is an eighth."""


@dataclass(frozen=True)
class Reference:
    """The original's answers. `samples[i]` gave `outputs[i]`; names are those of the program.

    `floor` is per output over all samples; `noise` says which part of it is rounding and which is
    run-to-run spread (None where that was not kept apart). `fingerprint` says where and how it was
    computed; `fingerprint["inputs"]` says what the samples are: "recorded", "given" or "random
    inputs". `calibration` are inputs without answers. `axes` names dynamic axes: input → axis →
    name. `intermediates[i]` is what chosen modules returned in call i, of the first calls; `inner`
    is their noise.
    """

    samples: tuple[Tensors, ...]
    outputs: tuple[Tensors, ...]
    floor: Mapping[str, Floor]
    fingerprint: Mapping[str, Any]
    calibration: tuple[Tensors, ...] = ()
    axes: Mapping[str, Mapping[int, str]] = field(default_factory=dict)
    noise: Noise | None = None
    intermediates: tuple[Tensors, ...] = ()
    inner: Noise | None = None

    @property
    def id(self) -> str:
        """The SHA-256 of the reference as it was recorded (`identified`)."""
        return str(self.fingerprint.get("id") or identified(self).fingerprint["id"])


def of(
    loaded: "Loaded",
    program: Program,
    samples: Sequence[Tensors] = (),
    calibration: Sequence[Tensors] = (),
) -> Reference:
    """Return the recorded reference, or compute one here from the model or the ONNX program.

    `samples` given by the user replace recorded ones only where there are none recorded;
    without either, seeded random inputs are used and the fingerprint says so.
    """
    recorded: Any = loaded.reference
    if isinstance(recorded, Reference):
        return recorded
    if loaded.program is not None:
        return from_program(program, samples, calibration)
    return from_module(loaded, samples, calibration)


def from_module(
    loaded: "Loaded", samples: Sequence[Tensors] = (), calibration: Sequence[Tensors] = ()
) -> Reference:
    """Run the loaded torch model here, on the CPU; raises `ExportError` if it answers at random."""
    captured = loaded.captured
    named = captured.signature.flatten
    what = "given"
    if not samples and loaded.samples:
        samples = [named(s, {}) for s in loaded.samples]
        calibration = calibration or [named(s, {}) for s in loaded.calibration]
        what = "the zoo's held-out data"
    if not samples and loaded.exported is not None and loaded.args:
        samples, what = [named(loaded.args, loaded.kwargs)], "the file's example inputs"
    if not samples:
        samples, what = [named(loaded.args, loaded.kwargs)], "random inputs"
    return record(captured, tuple(samples), tuple(calibration) or tuple(samples), what)


def record(
    captured: "Captured",
    samples: tuple[Tensors, ...],
    calibration: tuple[Tensors, ...],
    what: str,
    names: Sequence[str] = (),
    **about: Any,
) -> Reference:
    """Run the captured model's native module on `samples`, again, and once in float64.

    `names` are modules whose results are kept too; `about` goes into the fingerprint. Hundreds of
    small calls are answered in batches where they have the same answers there, up to noise.
    """
    inner.check(captured.native, names)
    found = None if names else _in_batches(captured, samples)
    if found is not None:
        about = {**about, "batches": found.calls}
    else:
        found = _measured(captured, samples, names)
    device = device_of(captured.native)
    fingerprint = {
        **environment(device),
        "inputs": what,
        "noise_floor": found.how,
        "runs": 1 + REPEATS[device.type == "cuda"],
        "dtype": sorted(map(str, _dtypes(captured.native))),
        "sha256_weights": floors.digest(captured.native.state_dict()),
        "sha256_program": _program(captured),
        "sha256_inputs": floors.digest(samples),
        "sha256_outputs": floors.digest(found.outputs),
        **about,
    }
    return identified(
        Reference(
            samples, found.outputs, found.noise.floor, fingerprint, calibration, captured.axes,
            found.noise, found.inside, found.inner if names else None,
        )
    )  # fmt: skip


@dataclass(frozen=True)
class _Measured:
    """What a model answered to so many calls, and its noise."""

    calls: int
    outputs: tuple[Tensors, ...]
    noise: Noise
    how: str
    inside: tuple[Tensors, ...]
    inner: Noise


def _measured(captured: "Captured", calls: Sequence[Tensors], names: Sequence[str]) -> _Measured:
    device = device_of(captured.native)
    runs, spread, within = _repeated(captured, calls, names, device)
    _refuse_random(spread, device, grain(device, _dtypes(captured.native)))
    rounding, deep, how = floors.of_module(captured, calls, runs, names)
    outputs = tuple(outputs for outputs, _ in runs)
    noise, inside = Noise(rounding, spread), tuple(floors.inside(runs))
    return _Measured(len(calls), outputs, noise, how, inside, Noise(deep, within))


def _in_batches(captured: "Captured", samples: Sequence[Tensors]) -> _Measured | None:
    """Answer many small calls together; None where that gives, or may give, other answers."""
    batches = batching.joined(captured, samples)
    if batches is None:
        return None
    first = batching.measured(batches)
    found = _measured(captured, batches[:first], ())
    rest = (run(captured, call) for call in batches[first:])
    outputs = tuple(batching.parted((*found.outputs, *rest)))
    bar = Policy().noise(found.noise.floor)
    if not batching.agree(partial(run, captured), samples, outputs, bar.max_abs):
        return None
    how = found.how if first == len(batches) else f"{found.how}, in the first {first} batches"
    return replace(found, calls=len(batches), outputs=outputs, how=how)


def _repeated(
    captured: "Captured", samples: Sequence[Tensors], names: Sequence[str], device: "torch.device"
) -> tuple[floors.Runs, dict[str, Floor], dict[str, Floor]]:
    """Answer all samples, then again: the answers, and how far the others are from them."""

    def answered() -> floors.Runs:
        return [_observed(captured, s, floors.wanted(i, names)) for i, s in enumerate(samples)]

    first = answered()
    spread: dict[str, Floor] = {}
    within: dict[str, Floor] = {}
    for _ in range(REPEATS[device.type == "cuda"]):
        again = answered()
        outputs = floors.distance([r[0] for r in first], [r[0] for r in again])
        spread = floors.wider(spread, outputs)
        within = floors.wider(within, floors.within(first, again))
    return first, spread, within


def _observed(
    captured: "Captured", sample: Tensors, names: Sequence[str]
) -> tuple[Tensors, Tensors]:
    with inner.tapped(captured.native, names) as seen:
        return run(captured, sample), seen


def _dtypes(module: "torch.nn.Module") -> "set[torch.dtype]":
    return {tensor.dtype for tensor in module.state_dict().values()}


def _program(captured: "Captured") -> str:
    """Return the SHA-256 of what is computed: the exported graph, and constants in its code.

    Not of where: a program that was captured on a GPU is stored as one on the CPU.
    """
    import torch

    graph = re.sub(r"device: [\w:]+", "device", str(captured.program.graph)).encode()
    constants = captured.program.constants
    tensors = {k: v for k, v in constants.items() if isinstance(v, torch.Tensor)}
    return hashlib.sha256(graph + floors.digest(tensors).encode()).hexdigest()


def run(captured: "Captured", sample: Tensors) -> dict[str, np.ndarray[Any, Any]]:
    """Answer one call natively, on the device the module is on."""
    import torch
    from torch.utils import _pytree as pytree

    args, kwargs = captured.signature.call(sample)
    device = device_of(captured.native)
    args, kwargs = pytree.tree_map_only(torch.Tensor, lambda t: t.to(device), (args, kwargs))
    with torch.no_grad():
        return captured.signature.results(captured.native(*args, **kwargs))


def from_program(
    program: Program,
    samples: Sequence[Tensors] = (),
    calibration: Sequence[Tensors] = (),
    what: str = "given",
) -> Reference:
    """Take an ONNX model's own answers under ONNX Runtime; the floor is by perturbation."""
    from npuc.runners import OnnxRunner

    what = what if samples else "random inputs"
    samples = tuple(samples) or random(program.inputs, 4)
    runner = OnnxRunner(program)
    outputs = tuple(runner(s) for s in samples)
    floor = floors.of_program(program, samples, outputs)
    import onnxruntime

    fingerprint = {
        "device": "cpu",
        "platform": machine(),
        "python": platform.python_version(),
        "onnxruntime": onnxruntime.__version__,
        "inputs": what,
        "runs": 2,
        "noise_floor": "one-ulp perturbation of inputs and weights, 4 draws",
        "sha256_onnx_weights": _weights(program),
        "sha256_inputs": floors.digest(samples),
        "sha256_outputs": floors.digest(outputs),
    }
    noise = Noise(floor, floors.distance(outputs, tuple(runner(s) for s in samples)))
    return identified(
        Reference(
            samples, outputs, noise.floor, fingerprint, tuple(calibration) or samples, noise=noise
        )
    )


def _weights(program: Program) -> str:
    values = program.model.graph.initializers.values()
    return floors.digest(
        {
            str(v.name): np.asarray(v.const_value.numpy())
            for v in values
            if v.const_value is not None
        }
    )


def device_of(module: "torch.nn.Module") -> "torch.device":
    import torch

    for tensor in (*module.parameters(), *module.buffers()):
        return tensor.device
    return torch.device("cpu")


def _refuse_random(spread: Mapping[str, Floor], device: "torch.device", step: float) -> None:
    # A CPU repeats itself bit for bit. On a GPU, sums in another order move an output by a few
    # roundings: far below a thousandth of its peak, more where values are rounded to `step` of
    # themselves (bfloat16: 2^-7). Random operators move it by its own size.
    share = 0.0 if device.type == "cpu" else max(1e-3, 8 * step)
    wild = [f"{n}: differs by {f.max_abs:.3g} (peak {f.peak:.3g})" for n, f in spread.items()
            if not f.max_abs <= share * f.peak]  # fmt: skip
    if wild:
        raise ExportError(
            "the model answers differently on the same input:\n  " + "\n  ".join(wild),
            hint="remove dropout and random operators from forward(), or pass noise as an input",
        )


def identified(reference: Reference) -> Reference:
    """Return the reference with its id in the fingerprint: SHA-256 over all that it holds.

    Inputs, answers, intermediates and calibration by name, type, shape and value; noise, axes and
    fingerprint (less the id itself). Equal content has equal ids, in whichever file it lies.
    """
    about = {k: v for k, v in reference.fingerprint.items() if k != "id"}
    inside = reference.inner
    content = {
        "inputs": list(reference.samples[0]),
        "outputs": list(reference.outputs[0]),
        "samples": len(reference.samples),
        "floor": reference.floor,
        "noise": reference.noise,
        "inner": inside,
        "axes": {n: {str(a): d for a, d in axes.items()} for n, axes in reference.axes.items()},
        "fingerprint": about,
        "sha256": [
            floors.digest(calls)
            for calls in (
                reference.samples, reference.outputs, reference.calibration,
                reference.intermediates,
            )
        ],
    }  # fmt: skip
    found = hashlib.sha256(canonical(plain(content))).hexdigest()
    return replace(reference, fingerprint={**about, "id": found})


def check(reference: Reference, program: Program) -> None:
    """Raise `ParityError` listing every name, rank and size that a reference and a program differ
    in, and every type of input.

    A dynamic dimension takes any size; whether its sizes fit together is for the run to say.
    """
    faults: list[str] = []
    for what, calls, ports in (
        ("input", reference.samples, program.inputs),
        ("output", reference.outputs, program.outputs),
    ):
        known = {port.name: port for port in ports}
        names = dict.fromkeys(name for call in calls for name in call)
        faults += [f"the reference has no {what} {name!r}" for name in known if name not in names]
        faults += [f"the program has no {what} {name!r}" for name in names if name not in known]
        for name, port in known.items():
            arrays = [call[name] for call in calls if name in call]
            stated = what == "input" or port.shape  # ONNX may leave an output's shape open
            shapes = {a.shape for a in arrays if stated and not _shaped(a, port)}
            faults += [f"{what} {name} is {_size(s)}, the program's is {port}" for s in shapes]
            kinds = {a.dtype.name for a in arrays} - {port.dtype}
            if what == "input":
                faults += [f"input {name} is {k}, the program's is {port.dtype}" for k in kinds]
    if faults:
        raise ParityError(
            "the reference does not belong to this program:\n  " + "\n  ".join(faults),
            hint="record it from the model that was compiled: npuc record MODEL --inputs X.npz "
            "--reference FILE",
        )


def _shaped(array: np.ndarray[Any, Any], port: Port) -> bool:
    return array.ndim == len(port.shape) and all(
        isinstance(want, str) or want == got
        for want, got in zip(port.shape, array.shape, strict=True)
    )


def _size(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape)) or "a scalar"
