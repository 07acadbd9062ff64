"""Run a compile again without judging it, and keep every program on its way."""

import re
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from npuc import pipeline
from npuc.answers import Reference
from npuc.errors import ExportError, LoadError, NpucError, ParityError, UsageError
from npuc.load import Loaded, load
from npuc.metrics import Difference
from npuc.passes.base import Pass
from npuc.per_target import AUTO
from npuc.policy import Bar, Policy
from npuc.profile import IntScheme, Profile
from npuc.program import Program, Tensors
from npuc.progress import Progress, Silent
from npuc.report import Report
from npuc.targets.base import Payload, Runner
from npuc.validate import Validator

Kind = Literal["reference", "export", "pass", "quantization", "numerics", "lowering", "vendor"]

QUANTIZATION = frozenset(
    {"quantize", "learn-rounding", "correct-bias", "weight-only", "round-factors"}
)
NUMERICS = frozenset({"round-floats", "integer-arithmetic", "tflite-arithmetic"})

EXPORTED, LOWERING = "exported", "artifact"
"""The first step, and the one that makes the artifact of the last program, as reports call them."""

_LOADING = ("model", "inputs", "trust_pickle", "eval_mode", "model_path")


@dataclass(frozen=True, slots=True)
class Made:
    """A program and the pass that made it of the one before; the first is as it was exported.

    `ordinal` counts passes as a report's rows do, rolled back ones included. `lossy` says whether
    anything was rounded on the way, so that the policy's limits apply and not the noise floor.
    """

    step: str
    kind: Kind
    program: Program
    item: Pass | None = None
    ordinal: int = 0
    lossy: bool = False


@dataclass(frozen=True, slots=True)
class Lowered:
    """What runs instead of the last program."""

    runner: Runner
    program: Program
    loss: bool
    floats: bool
    payload: Payload | None = None
    target: str = ""

    @property
    def kind(self) -> Kind:
        """Whether a vendor's compiler made it, or npuc's own lowering."""
        by_vendor = self.payload is not None and self.payload.vendor
        ran = self.payload is not None and self.payload.evidence in ("vendor-simulator", "device")
        return "vendor" if by_vendor and ran else "lowering"


@dataclass
class Trail:
    """What a compile went through: the original's answers, programs in order, the artifact.

    `error` is what ended it early, at the stage `ended`; `rolled_back` are the steps that were
    undone as told. `coding` is a float program, its coded form, calls and the device's scheme.
    `exported` is None where the trail ends before there is a program.
    """

    exported: Program | None = None
    reference: Reference | None = None
    policy: Policy = field(default_factory=Policy)
    native: Callable[[Tensors], Tensors] | None = None
    loaded: Loaded | None = None
    made: list[Made] = field(default_factory=list)
    lowered: Lowered | None = None
    coding: tuple[Program, Program, Sequence[Tensors], IntScheme] | None = None
    error: Exception | None = None
    ended: str = ""

    @property
    def names(self) -> list[str]:
        """The steps in order, for people."""
        last = [] if self.lowered is None else [LOWERING]
        return [*(item.step for item in self.made), *last]


@dataclass
class _Collector(Validator):
    """Takes a validator's place: keeps what it is shown, judges nothing."""

    trail: Trail = field(default_factory=Trail)
    undone: frozenset[int] = frozenset()

    def watch(self, item: Pass, before: Program, after: Program) -> None:
        """Keep a program; undo the steps that are to be undone."""
        ordinal = len(after.steps)
        if ordinal in self.undone:
            raise ParityError("rolled back, as before")
        made = self.trail.made
        lossy = not item.exact or made[-1].lossy
        made.append(Made(item.name, _kind(item.name), after, item, ordinal, lossy))

    def settle(self, program: Program) -> None:
        """Add no rows."""

    def export(self, native: Callable[[Tensors], Tensors] | None, fresh: bool = False) -> None:
        """Keep the exported program and what answers as the original does."""
        self.trail.native = native
        self.trail.made.append(Made(EXPORTED, "export", self.exported))

    def coded(
        self, program: Program, quantized: Program, calls: Sequence[Tensors], scheme: IntScheme
    ) -> None:
        """Keep what operators' codes are held to what they should cost on."""
        self.trail.coding = (program, quantized, calls, scheme)

    def add(
        self, stage: str, answers: Sequence[Tensors], bar: Bar | None, note: str = ""
    ) -> tuple[Difference, ...]:
        """Compare nothing."""
        return ()

    def answers(self, runner: Runner, program: Program, calls: Sequence[Tensors]) -> list[Tensors]:
        """Run nothing: only rows that are shown, not judged, would be made of it."""
        return []

    def artifact(self, runner: Runner, final: Program, loss: bool, floats: bool = False) -> None:
        """Keep what was lowered."""
        self.trail.lowered = Lowered(runner, final, loss, floats)

    def report(
        self, name: str, profile: Profile, precision: str, payload: Payload, dims: Mapping[str, int]
    ) -> Report:
        """Note the payload; the report holds no rows."""
        found = self.trail.lowered
        if found is not None:
            self.trail.lowered = Lowered(
                found.runner, found.program, found.loss, found.floats, payload, profile.name
            )
        return Validator.report(self, name, profile, precision, payload, dims)


class _Stages:
    """Remembers the stage that a compile is at."""

    def __init__(self, shown: Progress) -> None:
        self.shown, self.now = shown, ""

    def stage(self, name: str) -> None:
        """Note the stage."""
        self.now = name
        self.shown.stage(name)

    def advance(self, done: int, total: int) -> None:
        """Pass it on."""
        self.shown.advance(done, total)

    def close(self) -> None:
        """Leave the display open: judging comes after."""


def collect(
    source: Any,
    *,
    target: str,
    undone: Iterable[int] = (),
    progress: Progress | None = None,
    **call: Any,
) -> Trail:
    """Compile without checks, into a folder that is gone afterwards; see `npuc.pipeline.compile`.

    `undone` are the ordinals of optional steps to roll back. Raises what is the caller's to mend
    (`UsageError`, `LoadError`, `ExportError`); every other error ends the trail and is kept in it.
    """
    if call.get("precision") == AUTO:
        raise UsageError(
            "precision auto searches anew, and may find something else",
            hint="npuc blame REPORT.json, or --precision int8 with --skip for what auto kept",
        )
    trail, stages = Trail(), _Stages(progress or Silent())

    def checks(
        exported: Program, reference: Reference, policy: Policy, shown: Progress
    ) -> Validator:
        trail.exported, trail.reference, trail.policy = exported, reference, policy
        return _Collector(exported, reference, policy, shown, trail=trail, undone=frozenset(undone))

    given = {name: call.pop(name) for name in _LOADING if name in call}
    loaded = source if isinstance(source, Loaded) else load(source, **given)
    trail.loaded = loaded
    call |= {"eval_mode": given["eval_mode"]} if "eval_mode" in given else {}
    try:
        with tempfile.TemporaryDirectory(prefix="npuc-") as work:
            pipeline.compile(
                loaded, target=target, output=Path(work) / "again.npuc", checks=checks,
                progress=stages, **call,
            )  # fmt: skip
    except (UsageError, LoadError, ExportError):
        raise
    except Exception as error:  # a pass or a target that crashes is what this looks for
        if trail.exported is None:
            raise
        trail.error, trail.ended = error, _at(error, stages.now)
    return trail


def _at(error: Exception, stage: str) -> str:
    """Name the step that an error came from: the pass that its note names, or the stage."""
    return blamed_pass(error) or (LOWERING if stage.startswith("lower for") else stage)


def blamed_pass(error: Exception) -> str:
    """Return the pass that the engine's note on an error names, or ""."""
    notes = error.notes if isinstance(error, NpucError) else ()
    found = [m[1] for note in notes if (m := re.search(r"in pass '([^']+)'", note))]
    return found[0] if found else ""


def kind_at(step: str) -> Kind:
    """Return the kind of a step by its name."""
    known: dict[str, Kind] = {LOWERING: "lowering", EXPORTED: "export"}
    return known.get(step) or _kind(step)


def _kind(name: str) -> Kind:
    return "quantization" if name in QUANTIZATION else "numerics" if name in NUMERICS else "pass"
