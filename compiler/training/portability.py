"""Say in seconds how well each chip would serve a model as it is now, in the middle of training."""

import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from torch import nn

from npuc import plugins, source_lines
from npuc.errors import NpucError, ParityError, UsageError
from npuc.metrics import Difference, differences
from npuc.passes import standard
from npuc.passes.base import run
from npuc.pipeline import ANY
from npuc.policy import Policy
from npuc.program import Program
from npuc.runners import OnnxRunner
from npuc.signature import Signature
from npuc.simulation import structure
from npuc.training import programs
from npuc.training.judge import Case, chosen, judge
from npuc.training.own import Call, Data, Metric, Own
from npuc.training.result import Portability
from npuc.training.undisturbed import copied, undisturbed, unwrapped

SAME_DB = 60.0
"""How near a program must be to the module it stands for. Float32 sums in another order leave it
some 100 dB near; what is farther is another function. At 60 dB it would move a reading of 40 dB
by 0.04 dB, and of the policy's 20 dB by nothing that shows."""


def portability(
    model: nn.Module,
    inputs: Any,
    targets: str | Sequence[str],
    *,
    precision: str | None = None,
    calibration: Iterable[Any] | None = None,
    samples: Iterable[Any] | None = None,
    labels: Sequence[str] = (),
    metric: Metric | None = None,
    layers: int = 3,
    policy: Policy | None = None,
    failed: Callable[[str, NpucError], None] | None = None,
) -> Portability:
    """Return how near each target's answers would be to the model's own, without compiling it.

    The model is copied to the CPU, in eval mode (running statistics, no dropout) and float32; the
    copy is prepared, calibrated and quantized as `npuc.compile` does it by default, and run with
    the target's numerics. Only lowering is left out. Training goes on as if nothing had happened:
    neither the model nor any random state changes, and nothing is allocated on a GPU.

    `inputs` is one call, as the model takes it: a tensor, a tuple, or a dict of keywords.
    `calibration` and `samples` are iterables of such calls, by default that call alone. What
    forward does not take is left out, and so are keywords named in `labels`. Calls of another
    shape than `inputs` are left out, and a note says so. `metric` gets what the model returned for
    each sample, and the samples as they were given (on the CPU), and returns a number of which
    more is better. The `layers` worst layers are named. With `failed` what a target raises is
    handed to it, and the other targets go on.

    The first call exports the model, which takes seconds; later ones of the same shape put the
    weights in as they are then. Where weights cannot be told from the rest of the export, each
    call exports, and a note says so.

    Raises `UsageError` for an unknown target or precision, or without calls; what `npuc.compile`
    raises where the model cannot be captured, or a target cannot take it; `ParityError` where
    the exported program does not compute what the module does.
    """
    begun = time.perf_counter()
    names = targets.split(",") if isinstance(targets, str) else list(targets)
    if not names:
        raise UsageError("no target is named", hint="targets=['atom']; npuc targets lists them")
    pairs = chosen([plugins.find(name) for name in dict.fromkeys(names)], precision)
    limits, model = policy or Policy(), unwrapped(model)
    with undisturbed():
        data = Data(inputs, calibration, samples, tuple(labels))
        case, notes = _case(model, data, metric, limits, layers)
        if calibration is None and any(t.profile.scheme(kind) is not None for t, kind in pairs):
            notes.append("ranges are those of inputs alone: give calibration for firm numbers")
        rows = []
        for target, kind in pairs:
            try:
                rows.append(judge(target, kind, case))
            except NpucError as error:
                error.add_note(f"for target {target.name!r}")
                if failed is None:
                    raise
                failed(target.name, error)
    return Portability(
        type(model).__name__, tuple(rows), len(case.samples), len(case.calibration),
        limits.loss().text, time.perf_counter() - begun, tuple(notes),
    )  # fmt: skip


def _case(
    model: nn.Module, data: Data, metric: Metric | None, policy: Policy, layers: int
) -> tuple[Case, list[str]]:
    """Copy the model, run the copy, and export it; returns notes for the user as well."""
    copy = copied(model)
    structure.check(copy)
    first, calibration, calls, samples, notes = data.read(copy)
    own = Own(copy, calls, samples, metric)
    program, signature, near, why = _program(programs.of(model), own, first)
    if why:
        notes.append(f"exported anew at every call: {why}")
    case = Case(
        own, signature, run(program, standard({}), ANY),
        [signature.flatten(*call) for call in calibration],
        [signature.flatten(*call) for call in calls], own.named(signature),
        2 * max((d.max_abs for d in near if not d.integer), default=0.0),
        source_lines.known(program.model), policy, layers,
    )  # fmt: skip
    return case, notes


def _program(
    known: programs.Programs, own: Own, first: Call
) -> tuple[Program, Signature, tuple[Difference, ...], str]:
    """Return the model's program with its weights, and how near its answers are to the model's.

    What an export took for constant may have changed since, such as a number that the training
    script sets on a module: then it is exported anew.
    """
    faults: list[str] = []
    for attempt in range(2):
        program, signature, why = known.at(own.model, *first)
        runner = OnnxRunner(program, "exported")
        answers = [runner(signature.flatten(*call)) for call in own.calls]
        near = differences(own.named(signature), answers)
        faults = [text for found in near if (text := _apart(found))]
        if not faults:
            return program, signature, near, why
        if attempt == 0:
            known.forget()
    raise ParityError(
        "the exported program does not compute what the module does:\n  " + "\n  ".join(faults),
        hint="npuc.save and npuc compile --target cpu --precision float show where they part",
    )


def _apart(found: Difference) -> str:
    if found.fault:
        return f"{found.output}: {found.fault}"
    if found.integer or found.sqnr_db >= SAME_DB or found.max_abs == 0:
        return ""
    return f"{found.output}: SQNR {found.sqnr_db:.1f} dB, at least {SAME_DB:g} dB are needed"
