"""What the original answered: inputs, outputs, how it was computed, and its noise floor.

The noise floor of an output is the distance of the original's own native answer from a float64
run of the same model on the same inputs: how far rounding alone moves it. Where no float64 run
is possible it is estimated by moving inputs and weights by one unit in the last place.
"""

import platform
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from npuc import floors
from npuc.errors import ExportError, ParityError
from npuc.floors import Floor
from npuc.inputs import random
from npuc.program import Program, Tensors

if TYPE_CHECKING:
    import torch

    from npuc.capture import Captured
    from npuc.load import Loaded

__all__ = ["Floor", "Reference", "check", "from_module", "from_program", "of", "record", "run"]


@dataclass(frozen=True)
class Reference:
    """The original's answers. `samples[i]` gave `outputs[i]`; names are those of the program.

    `floor` is per output over all samples. `fingerprint` says where and how it was computed;
    `fingerprint["inputs"]` says what the samples are: "recorded", "given" or "random inputs".
    `calibration` are inputs without answers. `axes` names dynamic axes: input → axis → name.
    """

    samples: tuple[Tensors, ...]
    outputs: tuple[Tensors, ...]
    floor: Mapping[str, Floor]
    fingerprint: Mapping[str, Any]
    calibration: tuple[Tensors, ...] = ()
    axes: Mapping[str, Mapping[int, str]] = field(default_factory=dict)


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
    captured: "Captured", samples: tuple[Tensors, ...], calibration: tuple[Tensors, ...], what: str
) -> Reference:
    """Run the captured model's native module on `samples`, twice, and once in float64."""
    import torch

    outputs = tuple(run(captured, s) for s in samples)
    again = tuple(run(captured, s) for s in samples)
    jitter = floors.distance(outputs, again)
    device = _device(captured.native)
    _refuse_random(jitter, device)
    floor, how = floors.of_module(captured, samples, outputs)
    floor = {name: floors.largest(floor[name], jitter[name]) for name in floor}
    print_of = {
        **environment(device),
        "inputs": what,
        "noise_floor": how,
        "dtype": sorted({str(p.dtype) for p in captured.native.state_dict().values()}),
        "sha256_weights": floors.digest(captured.native.state_dict()),
        "sha256_inputs": floors.digest(samples),
        "torch": torch.__version__,
    }
    return Reference(samples, outputs, floor, print_of, calibration, captured.axes)


def run(captured: "Captured", sample: Tensors) -> dict[str, np.ndarray[Any, Any]]:
    """Answer one call natively, on the device the module is on."""
    import torch
    from torch.utils import _pytree as pytree

    args, kwargs = captured.signature.call(sample)
    device = _device(captured.native)
    args, kwargs = pytree.tree_map_only(torch.Tensor, lambda t: t.to(device), (args, kwargs))
    with torch.no_grad():
        return captured.signature.results(captured.native(*args, **kwargs))


def from_program(
    program: Program, samples: Sequence[Tensors] = (), calibration: Sequence[Tensors] = ()
) -> Reference:
    """Take an ONNX model's own answers under ONNX Runtime; the floor is by perturbation."""
    from npuc.runners import OnnxRunner

    what = "given" if samples else "random inputs"
    samples = tuple(samples) or random(program.inputs, 4)
    runner = OnnxRunner(program)
    outputs = tuple(runner(s) for s in samples)
    floor = floors.of_program(program, samples, outputs)
    import onnxruntime

    fingerprint = {
        "device": "cpu",
        "platform": platform.platform(),
        "python": platform.python_version(),
        "onnxruntime": onnxruntime.__version__,
        "inputs": what,
        "noise_floor": "one-ulp perturbation of inputs and weights, 4 draws",
        "sha256_inputs": floors.digest(samples),
    }
    return Reference(samples, outputs, floor, fingerprint, tuple(calibration) or samples)


def environment(device: "torch.device") -> dict[str, Any]:
    """Say how torch computes here: versions, device and every switch that changes numbers."""
    import torch

    cuda = device.type == "cuda"
    return {
        "device": torch.cuda.get_device_name(device) if cuda else device.type,
        "cuda": torch.version.cuda if cuda else None,
        "cudnn": torch.backends.cudnn.version() if cuda else None,  # type: ignore[no-untyped-call]
        "driver": _driver(cuda),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "tf32_matmul": torch.backends.cuda.matmul.allow_tf32,
        "tf32_cudnn": torch.backends.cudnn.allow_tf32,
        "float32_matmul_precision": torch.get_float32_matmul_precision(),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "cudnn_benchmark": torch.backends.cudnn.benchmark,
        "autocast": str(torch.get_autocast_dtype(device.type))
        if torch.is_autocast_enabled(device.type)
        else None,
        "threads": torch.get_num_threads(),
        "platform": platform.platform(),
        "python": sys.version.split()[0],
    }


def _driver(cuda: bool) -> str | None:
    """The NVIDIA driver's version, from the kernel module where it is exposed."""
    if not cuda:
        return None
    from pathlib import Path

    place = Path("/sys/module/nvidia/version")
    return place.read_text().strip() if place.is_file() else "unknown"


def _device(module: "torch.nn.Module") -> "torch.device":
    import torch

    for tensor in (*module.parameters(), *module.buffers()):
        return tensor.device
    return torch.device("cpu")


def _refuse_random(jitter: Mapping[str, Floor], device: "torch.device") -> None:
    # A CPU repeats itself bit for bit. On a GPU, sums in another order move an output by
    # rounding, far below a thousandth of its peak; random operators move it by its own size.
    share = 0.0 if device.type == "cpu" else 1e-3
    wild = [f"{n}: differs by {f.max_abs:.3g} (peak {f.peak:.3g})" for n, f in jitter.items()
            if not f.max_abs <= share * f.peak]  # fmt: skip
    if wild:
        raise ExportError(
            "the model answers differently on the same input:\n  " + "\n  ".join(wild),
            hint="remove dropout and random operators from forward(), or pass noise as an input",
        )


def check(reference: Reference, program: Program) -> None:
    """Raise `ParityError` where names of a recorded reference and a program differ."""
    for side, names, ports in (
        ("inputs", reference.samples[0], program.inputs),
        ("outputs", reference.outputs[0], program.outputs),
    ):
        if set(names) != {p.name for p in ports}:
            raise ParityError(
                f"the reference has {side} {sorted(names)}, the program {[p.name for p in ports]}"
            )
