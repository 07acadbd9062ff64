"""Say what makes a reference doubtful: how it was computed, and on what.

A doubtful reference is used, at the noise that was measured with it: what TF32 or autocast lost
is in its distance from the float64 run. Under ``--strict`` it is refused.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from npuc import floors
from npuc.answers import Reference
from npuc.errors import ParityError
from npuc.floors import FLOAT64
from npuc.program import Tensors

FEW = 8
"""Samples below which a reference says little: with eight, a fault that shows on every fourth
input is seen with a chance of 90 % (1 - 0.75^8)."""

Kind = Literal["computed", "noise", "constant", "random", "few"]


@dataclass(frozen=True, slots=True)
class Doubt:
    """One reason not to trust a reference, in one line, and what to do about it."""

    kind: Kind
    reason: str
    remedy: str


def doubts(reference: Reference) -> tuple[str, ...]:
    """Return one line for each reason not to trust a reference; () for one that can be trusted."""
    return tuple(doubt.reason for doubt in find(reference))


def notes(reference: Reference) -> tuple[str, ...]:
    """Return what every report says of a doubtful reference.

    Of random inputs it speaks itself, and the number of samples is a doubt only where one asks for
    strictness: trying a model on one example is no fault.
    """
    found = [doubt for doubt in find(reference) if doubt.kind not in ("random", "few")]
    return tuple(f"doubtful reference: {doubt.reason}" for doubt in found)


def require(reference: Reference, strict: bool) -> None:
    """Under `strict` raise `ParityError` with every doubt, and the commands that remove them."""
    found = find(reference) if strict else ()
    if found:
        remedies = dict.fromkeys(doubt.remedy for doubt in found)
        raise ParityError(
            "--strict refuses this reference:\n  " + "\n  ".join(d.reason for d in found),
            hint="record it again with\n  " + "\n  ".join(remedies),
        )


def reduced(reference: Reference) -> bool:
    """Whether the fingerprint says that less than float32 computed the answers."""
    kinds = reference.fingerprint.get("dtype") or ()
    return any(True for _ in _switches(reference)) or any("16" in str(kind) for kind in kinds)


def find(reference: Reference) -> tuple[Doubt, ...]:
    """Return every doubt about a reference, those that change numbers first."""
    return (*_switches(reference), *_noise(reference), *_inputs(reference))


def _switches(reference: Reference) -> Iterator[Doubt]:
    about = reference.fingerprint
    cuda = about.get("device", "cpu") != "cpu" and about.get("cuda") is not None
    loss = _measured(reference)
    short = [str(v) for v in about.get("variables") or () if not str(v).startswith("CUBLAS")]
    on = [
        what
        for what, key in (("matmul", "tf32_matmul"), ("cuDNN", "tf32_cudnn"))
        if cuda and about.get(key)
    ]
    if on:
        off = {"matmul": "cuda.matmul", "cuDNN": "cudnn"}
        yield Doubt(
            "computed",
            f"TF32 was on for {' and '.join(on)}: 10 bits of mantissa instead of 23{loss}",
            "; ".join(f"torch.backends.{off[what]}.allow_tf32 = False" for what in on),
        )
    elif (precision := _reduced(about, cuda)) != "":
        yield Doubt(
            "computed",
            f"float32 was computed in less ({precision}){loss}",
            'torch.set_float32_matmul_precision("highest")',
        )
    if about.get("autocast"):
        yield Doubt(
            "computed",
            f"autocast to {about['autocast']} was on{loss}",
            f'no torch.autocast around npuc.save (or torch.autocast("{"cuda" if cuda else "cpu"}", '
            "enabled=False))",
        )
    if short:
        yield Doubt(
            "computed",
            f"environment variables that reduce float32 were set: {', '.join(short)}{loss}",
            "unset " + " ".join(v.split("=")[0] for v in short),
        )


def _reduced(about: Any, cuda: bool) -> str:
    """Name what computed float32 in less on this device; "" where nothing did."""
    stated = {k: v for k, v in about.items() if k.startswith("fp32_precision.")}
    reduced = [f"{k.partition('.')[2]} {v}" for k, v in stated.items() if v in ("tf32", "bf16")]
    if cuda and stated:
        return ""  # the TF32 switches say the same
    precision = about.get("float32_matmul_precision", "highest")
    if precision in ("high", "medium"):
        return f"float32_matmul_precision {precision}"
    return ", ".join(reduced)


def _noise(reference: Reference) -> Iterator[Doubt]:
    about = reference.fingerprint
    how = str(about.get("noise_floor", ""))
    if not how.startswith(FLOAT64):
        onnx = "onnxruntime" in about
        yield Doubt(
            "noise",
            f"its noise is estimated, not measured: {how or 'nothing says how'}",
            "the torch model instead of ONNX: npuc.save, npuc record --reference"
            if onnx
            else "a model that runs in float64: no dtype fixed in forward()",
        )
    if reference.noise is None:
        yield Doubt(
            "noise",
            "recorded by an older npuc: rounding and run-to-run spread were not kept apart",
            "npuc record --update FILE",
        )
        return
    spread = {n: f for n, f in reference.noise.spread.items() if f.max_abs > 0}
    if spread:
        worst = ", ".join(f"{n} by {f.max_abs:.2g} (peak {f.peak:.2g})" for n, f in spread.items())
        yield Doubt(
            "noise",
            f"kernels were not deterministic: {about.get('runs', 2)} runs differ in {worst}",
            "torch.use_deterministic_algorithms(True) and CUBLAS_WORKSPACE_CONFIG=:4096:8",
        )
        return
    fixed = about.get("deterministic") or about.get("cudnn_deterministic")
    if about.get("cudnn_benchmark") and about.get("cudnn") is not None and not fixed:
        yield Doubt(
            "noise",
            "cudnn.benchmark chose kernels by time: another run may choose others",
            "torch.backends.cudnn.benchmark = False",
        )


def _inputs(reference: Reference) -> Iterator[Doubt]:
    what = str(reference.fingerprint.get("inputs", ""))
    if what.startswith("random inputs"):
        yield Doubt("random", "random inputs: nothing a user would send", "real --inputs/--samples")
    count = _distinct(reference)
    if count < FEW:
        yield Doubt(
            "few",
            f"{count} different sample{'s' if count > 1 else ''}: fewer than {FEW} say little",
            f"at least {FEW} different samples",
        )
    # All outputs: one that never changes may be right, such as a detector's anchors.
    if _differ(reference.samples) and not _differ(reference.outputs):
        yield Doubt(
            "constant",
            f"the answer is the same for all {len(reference.outputs)} samples",
            "samples that the model tells apart",
        )


def _distinct(reference: Reference) -> int:
    """Count different samples, up to `FEW`: calls, or rows where the first axis is dynamic."""
    batched = {name for name, axes in reference.axes.items() if 0 in axes}
    seen: set[str] = set()
    for call in reference.samples:
        rows = min((call[name].shape[0] for name in batched if name in call), default=1)
        for row in range(rows if batched else 1):
            parts = {n: a[row : row + 1] if n in batched else a for n, a in call.items()}
            seen.add(floors.digest(parts))
            if len(seen) == FEW:
                return FEW
    return len(seen)


def _differ(calls: Sequence[Tensors]) -> bool:
    first = calls[0]
    return any(not np.array_equal(call[name], first[name]) for call in calls[1:] for name in first)


def _measured(reference: Reference) -> str:
    """Say how far the answers are from float64, in words; "" where that was not measured."""
    if reference.noise is None or not reference.noise.rounding:
        return ""
    ratio = {n: f.max_abs / f.peak for n, f in reference.noise.rounding.items() if f.peak > 0}
    if not ratio:
        return ""
    name = max(ratio, key=lambda n: ratio[n])
    found = reference.noise.rounding[name]
    return f"; {name} is {found.max_abs:.2g} from float64 (peak {found.peak:.2g})"
