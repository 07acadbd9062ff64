"""One target's quantized twin against the model's own answers: no lowering, no vendor."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from npuc import partition
from npuc.errors import UsageError
from npuc.layers import measure
from npuc.layers import text as wording
from npuc.layers.measure import Layer
from npuc.metrics import differences
from npuc.passes.base import run
from npuc.per_target import prepare
from npuc.policy import Policy
from npuc.profile import FLOATS, UNCODED
from npuc.program import Program, Tensors
from npuc.progress import Silent
from npuc.quantization.coders import Coder, coder
from npuc.quantization.quantizer import Choices, Quantizer
from npuc.runners import OnnxRunner
from npuc.signature import Signature
from npuc.targets.base import Target
from npuc.training.own import Own
from npuc.training.result import Row


@dataclass(frozen=True)
class Case:
    """What is common to all targets: the program before their own passes, and its calls.

    `samples` and `answers` are the inputs and the model's own answers; `ties` is the distance
    within which two choices are one. `places` are `source_lines.known` of the program.
    """

    own: Own
    signature: Signature
    program: Program
    calibration: Sequence[Tensors]
    samples: Sequence[Tensors]
    answers: Sequence[Tensors]
    ties: float
    places: Mapping[str, tuple[str, str]]
    policy: Policy
    layers: int


def judge(target: Target, precision: str, case: Case) -> Row:
    """Prepare, quantize and run the program as `npuc.compile` would, up to lowering it.

    Raises what the target's passes and calibration raise.
    """
    profile = target.profile.at(precision)
    program = run(case.program, prepare(target), profile)
    host = tuple(sorted({partition.kind(node) for node in partition.host_nodes(program.model)}))
    quantizer: Quantizer | Coder | None = None
    coded = plain = program
    if precision not in UNCODED:
        if precision in FLOATS:
            quantizer = coder(precision, program, case.calibration, profile, Choices(), Silent())
        else:
            quantizer = Quantizer(program, case.calibration, profile)
        coded, plain = quantizer.program(), quantizer.prepared
    runner = OnnxRunner(run(coded, target.numerics(precision), profile), target.name)
    answers = [runner(call) for call in case.samples]
    found = differences(case.answers, answers, case.ties)
    worst, finding = _worst(plain, coded, quantizer, case) if case.layers else ((), "")
    return Row(
        target.name, precision, found, case.policy.loss().faults(found), worst, finding,
        case.own.drop(answers, case.signature), host,
    )  # fmt: skip


def _worst(
    plain: Program, coded: Program, quantizer: "Quantizer | Coder | None", case: Case
) -> tuple[tuple[Layer, ...], str]:
    """Name the layers that lose most, the one that costs most first, and say what is behind it."""
    if quantizer is None:
        return (), ""  # nothing is coded: floats are rounded everywhere alike
    observer = measure.FLOATS
    if isinstance(quantizer, Quantizer):
        observer = quantizer.ranges.observer
    with np.errstate(over="ignore"):  # codes may reach beyond float32 where an attention mask does
        found = measure.measure(
            plain, coded, case.samples[: measure.CALLS], observer=observer, places=case.places,
            worst=case.layers,
        )  # fmt: skip
    first = wording.largest(found)
    if first is None:
        return (), ""
    names = dict.fromkeys([first.tensor, *(culprit.tensor for culprit in found.worst)])
    return tuple(found.find(name) for name in names), wording.finding(found)


def chosen(targets: Sequence[Target], precision: str | None) -> list[tuple[Target, str]]:
    """Pair targets with a precision each has, its first by default; raises `UsageError`."""
    wrong = [t for t in targets if precision and precision not in t.profile.precisions]
    if wrong:
        listed = "; ".join(f"{t.name} has {', '.join(t.profile.precisions)}" for t in wrong)
        raise UsageError(f"precision {precision!r} is not available: {listed}")
    return [(t, precision or t.profile.precisions[0]) for t in targets]
