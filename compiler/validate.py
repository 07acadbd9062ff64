"""Check every step against the one before and against the original, on real inputs."""

from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, field, replace

import numpy as np

from npuc import samples as sampling
from npuc.answers import Reference
from npuc.choices import Chosen
from npuc.errors import ParityError
from npuc.held import Held
from npuc.layers import expected
from npuc.metrics import Difference, Settle, differences
from npuc.passes.base import Pass
from npuc.policy import Bar, Policy
from npuc.profile import FLOATS, IntScheme, Profile
from npuc.program import Program, Tensors
from npuc.progress import Progress
from npuc.report import LOWERED, Report, Row, describe
from npuc.runners import OnnxRunner, each
from npuc.targets.base import Payload, Runner
from npuc.trust import reduced

MENDING = frozenset({"learn-rounding", "correct-bias"})
"""Passes that make good what the one before them lost."""

DRAFTS = frozenset({"quantize", "learn-rounding"})
"""Passes whose result is not the device's program where one of `MENDING` follows."""

ARITHMETIC = frozenset({"integer-arithmetic", "tflite-arithmetic", "round-floats"})
"""Passes that compute a quantized program as the device does: they round anew."""

ASKED = 4
"""Recorded calls that the original is asked again here: one tells other weights already."""

CALLS = 8
"""Recorded calls that every pass is checked on; the last stages are checked on all of them."""


@dataclass
class Validator:
    """Collects the report's rows. `watch` is the hook of `npuc.passes.run`.

    `exported` is the program with its dynamic dimensions: recorded calls fit its ports. Later
    programs of fixed shapes are run on parts of a call where their batch is smaller.
    """

    exported: Program
    reference: Reference
    policy: Policy
    progress: Progress
    rows: list[Row] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    held: list[Held] = field(default_factory=list)
    groups: list[list[Tensors]] = field(default_factory=list)
    _settled_rows: int = 0
    _settled_steps: int = 0
    _last: tuple[Program, list[list[Tensors]]] | None = None
    _chosen: Chosen | None = None

    def fork(self) -> "Validator":
        """Return a validator that goes on from here for one of several targets."""
        return replace(self, rows=list(self.rows), notes=list(self.notes), held=list(self.held))

    @property
    def ties(self) -> Mapping[str, float]:
        """Two choices of an output closer than this are one: what rounding alone may move."""
        return {name: 2 * found.max_abs for name, found in self.reference.floor.items()}

    def by_scores(self, calls: Sequence[Tensors]) -> Settle | None:
        """Return what judges outputs that hold indices, in the answers to `calls`, by scores."""
        if self._chosen is None:
            # Either side of a comparison may be as far off as the bar of noise lets it.
            factor = 2 * self.policy.noise_factor
            self._chosen = Chosen(self.exported, self.reference.samples, factor)
        return self._chosen.over(calls)

    def watch(self, item: Pass, before: Program, after: Program) -> None:
        """Compare the programs around a pass; raises `ParityError` where an exact one moved."""
        self.progress.stage(f"check {item.name}")
        old = self._answers(before)
        new = (
            old
            if before.equals(after)
            else self._run(OnnxRunner(after, item.name, apart=True), after)
        )
        settle = self.by_scores(_flat(self.groups[: len(new)]))
        step = differences(_flat(old[: len(new)]), _flat(new), self.ties, settle)
        original = self._original(new[0])
        bar = self.policy.noise(self.reference.floor) if item.exact else self.policy.loss()
        faults = bar.faults(step if item.exact else original)
        faults += self._rounds(item, old[0][: len(new[0])], original, step, after.steps[-1].changes)
        if faults and (item.exact or item.optional):
            raise ParityError(
                f"{item.name} changed the answer:\n  " + "\n  ".join(faults),
                hint=f"the bar is {bar.text}: {bar.reason}",
            )
        self._last = (after, new)
        self.rows.append(
            Row(
                item.name, "failed" if faults else "ok", original, step,
                held="step" if item.exact else "original", bar=bar, faults=faults,
                calls=len(_flat(new)), sizes=len(new), changes=after.steps[-1].changes,
            )
        )  # fmt: skip

    def _rounds(
        self,
        item: Pass,
        before: Sequence[Tensors],
        original: Sequence[Difference],
        step: Sequence[Difference],
        changes: int,
    ) -> tuple[str, ...]:
        """Say so where a device's arithmetic costs more than rounding as it does can."""
        coded = any(row.stage == "quantize" for row in self.rows)
        if not coded or item.name not in ARITHMETIC:
            return ()
        so_far, floor = self._original(before), self.reference.floor
        from npuc.passes.round_floats import RoundFloats

        share = 0.0
        if isinstance(item, RoundFloats):
            # Each rounding moves a value by up to half a last place of its own, evenly spread.
            share = changes * 2.0 ** (-2 * (item.format.mantissa + 1)) / 3
        bar = self.policy.arithmetic(so_far, floor, share)
        return tuple(f"its own step: {f}" for f in bar.faults(step))

    def settle(self, program: Program) -> None:
        """Put rows for steps that were undone in their place among those that `watch` added."""
        added = iter(self.rows[self._settled_rows :])
        steps = program.steps[self._settled_steps :]
        rows = [
            Row(s.name, "rolled back", (), note=" ".join(s.rolled_back.split()))
            if s.rolled_back
            else next(added)
            for s in steps
        ]
        self.rows[self._settled_rows :] = _superseded(rows)
        self._settled_rows, self._settled_steps = len(self.rows), len(program.steps)

    def resume(self, program: Program) -> None:
        """Go on with rows that were found before, up to `program`, whose shapes are fixed."""
        self.groups = [list(self.reference.samples[:CALLS])]
        self._settled_rows, self._settled_steps = len(self.rows), len(program.steps)

    def coded(
        self, program: Program, quantized: Program, calls: Sequence[Tensors], scheme: IntScheme
    ) -> None:
        """Hold each operator's codes to what they should cost, and its row to that.

        `program` is the float program that `quantized` was made of; `calls` fit its ports.
        """
        self.progress.stage("check codes")
        found = expected.costs(program, quantized, calls, scheme)
        faults = (*expected.misread(quantized), *self.policy.coding(found))
        self._blame({"quantize"}, faults)
        self._blame(MENDING | {"quantize"}, self.policy.shifts(found))

    def _blame(self, stages: Set[str], faults: Sequence[str]) -> None:
        """Add faults to the last row of some stages."""
        index = max((i for i, row in enumerate(self.rows) if row.stage in stages), default=-1)
        if not faults or index < 0:
            return
        row = self.rows[index]
        note = "" if row.note == "corrected below" else row.note
        self.rows[index] = replace(row, state="failed", faults=(*row.faults, *faults), note=note)

    def export(self, native: Callable[[Tensors], Tensors] | None, fresh: bool = False) -> None:
        """Compare the exported program with the original's own answers, at every size.

        `native` runs the original here, for sizes that were not recorded; without it the
        exported program is the original. A size the original itself refuses is left out. With
        `fresh` the original answered here just now, call by call and twice (`npuc.answers`):
        asking a third time could say nothing else.
        """
        self.progress.stage("check export")
        recorded, *others = sampling.variants(self.reference.samples[:CALLS], self.exported)
        runner = OnnxRunner(self.exported, "exported", apart=True)
        self.groups = [recorded]
        got = [self.answers(runner, self.exported, recorded)]
        faults: list[str] = []
        bar = self.policy.noise(self.reference.floor)
        for group in others:
            try:
                expected = [native(call) if native else runner(call) for call in group]
            except Exception as error:  # anyone's forward(): whatever it raises means "not this"
                shapes = ", ".join(f"{k} {v.shape}" for k, v in group[0].items())
                self.notes.append(f"not checked at {shapes}: the original fails there: {error}")
                continue
            answers: list[Tensors] = [runner(call) for call in group]
            faults += bar.faults(differences(expected, answers, self.ties, self.by_scores(group)))
            self.groups.append(group)
            got.append(answers)
        self._last = (self.exported, got)
        if native is not None and not fresh:
            self._recorded(native, got[0])
        self.add("exported", got[0], bar)
        row = self.rows.pop()
        faults = [*row.faults, *(f"at another size: {f}" for f in faults)]
        state = "failed" if faults else "ok"
        self.rows.append(replace(row, state=state, faults=tuple(faults), sizes=len(got)))
        self._settled_rows = len(self.rows)

    def _recorded(self, native: Callable[[Tensors], Tensors], got: Sequence[Tensors]) -> None:
        """Ask the original here: what was recorded has to be its answer, in float32.

        The bar of noise cannot say so: it is the recorded answers' own distance from float64, and
        grows with whatever is wrong with them. Where the fingerprint says that less than float32
        computed them, the distance is what it should be.
        """
        calls = self.reference.samples[:ASKED]
        if reduced(self.reference):
            return
        try:
            here = [native(call) for call in calls]
        except Exception as error:  # anyone's forward(), recorded on another device
            self.notes.append(f"the original could not be run here: {error}")
            return
        found = differences(self.reference.outputs[: len(calls)], here, self.ties)
        bar = self.policy.original(differences(here, got[: len(calls)], self.ties))
        faults = bar.faults(found)
        if faults:
            row = Row("reference", "failed", found, bar=bar, faults=faults, calls=len(calls))
            self.rows.append(row)

    def add(
        self, stage: str, answers: Sequence[Tensors], bar: Bar | None, note: str = ""
    ) -> tuple[Difference, ...]:
        """Add a row for answers to the recorded calls, held against the original's."""
        original = self._original(answers)
        faults = bar.faults(original) if bar else ()
        state = "failed" if faults else "ok" if bar else "shown"
        row = Row(stage, state, original, bar=bar, faults=faults, calls=len(answers), note=note)
        self.rows.append(row)
        return original

    def artifact(self, runner: Runner, final: Program, loss: bool, floats: bool = False) -> None:
        """Compare what was lowered with the program it came from, and with the original.

        `loss` says whether anything before was rounded, `floats` whether every float result was;
        if nothing was, noise is all that is allowed.
        """
        self.progress.stage("check artifact")
        calls = self.reference.samples
        program = self._final(final, calls)
        got = self.answers(runner, final, calls)
        floor = self.reference.floor
        step = differences(program, got, self.ties, self.by_scores(calls))
        original = self._original(got)
        noise = self.policy.noise(floor)
        so_far = self._original(program)
        lowering = self.policy.lowering(so_far, floor, floats) if loss else noise
        bar = self.policy.loss() if loss else noise
        kept = self.policy.kept(so_far, floor).faults(original) if loss else ()
        faults = (
            *bar.faults(original),
            *(f"{LOWERED}its own error: {f}" for f in kept),
            *(f"{LOWERED}{f} ({lowering.reason})" for f in lowering.faults(step)),
            *self._again(runner, final, got),
        )
        state = "failed" if faults else "ok"
        self.rows.append(Row("artifact", state, original, step, "both", bar, faults, len(calls)))
        settled = self._settled(calls, got)
        for demand in self.policy.demands:
            self.held += demand.judge(calls, self.reference.outputs, settled, floor)

    def _again(self, runner: Runner, final: Program, got: Sequence[Tensors]) -> Iterator[str]:
        """Ask again, last call first: a program has no memory and no dice, so all bits are equal.

        What races, or keeps something of the call before, gives itself away.
        """
        calls = list(enumerate(self.reference.samples))[:CALLS]
        for index, call in reversed(calls):
            (again,) = self.answers(runner, final, [call])
            for name, first in got[index].items():
                second = again[name]
                if first.tobytes() != second.tobytes():
                    gap = np.abs(first.astype(np.float64) - second.astype(np.float64)).max()
                    yield (
                        f"{LOWERED}call {index} asked again, in another order, is answered "
                        f"otherwise: {name} by up to {gap:.3g}"
                    )
                    return

    def unrun(self, why: str) -> None:
        """Add a row that says that the artifact was not run."""
        self.rows.append(Row("artifact", "not run", (), note=why))

    def report(
        self, name: str, profile: Profile, precision: str, payload: Payload, dims: Mapping[str, int]
    ) -> Report:
        """Gather what was found into a report."""
        fingerprint = self.reference.fingerprint
        notes = [*payload.notes, *self.notes]
        if str(fingerprint.get("inputs")).startswith("random inputs"):
            notes.append("answers are compared on RANDOM inputs: give real ones with --samples")
            if precision != "float" and "calibration" not in fingerprint:
                notes.append(
                    "ranges come from RANDOM inputs: they say nothing about real data; "
                    "give --calibration"
                )
        return Report(
            model=name, target=profile.name, precision=precision, evidence=payload.evidence,
            vendor=payload.vendor, reference=describe(fingerprint), rows=tuple(self.rows),
            assumed=_assumed(profile, precision), notes=tuple(notes), dims=dims,
            placement=payload.placement, fingerprint=fingerprint, held=tuple(self.held),
        )  # fmt: skip

    def answers(self, runner: Runner, program: Program, calls: Sequence[Tensors]) -> list[Tensors]:
        """Run recorded calls, in parts where the program's batch is smaller."""
        fitted = sampling.Rebatched(runner, program, self.exported)
        return each(fitted, calls, isinstance(runner, OnnxRunner) and runner.apart)

    def _original(self, answers: Sequence[Tensors]) -> tuple[Difference, ...]:
        expected = self.reference.outputs[: len(answers)]
        return differences(expected, answers, self.ties, self.by_scores(self.reference.samples))

    def _settled(self, calls: Sequence[Tensors], got: Sequence[Tensors]) -> Sequence[Tensors]:
        """Return answers with the original's index wherever another is as good a choice."""
        settle, pairs = self.by_scores(calls), zip(self.reference.outputs, got, strict=True)
        if settle is None:
            return got
        return [
            {name: settle(name, at, array, answer[name]) for name, array in original.items()}
            for at, (original, answer) in enumerate(pairs)
        ]

    def _answers(self, program: Program) -> list[list[Tensors]]:
        if self._last is None or self._last[0].model is not program.model:
            self._last = (program, self._run(OnnxRunner(program, "before", apart=True), program))
        return self._last[1]

    def _final(self, program: Program, calls: Sequence[Tensors]) -> list[Tensors]:
        """Answer all recorded calls, unless that is what the last pass was checked on."""
        if self._last is not None and self._last[0].model is program.model:
            known = _flat(self._last[1])
            if not program.symbols and len(known) == len(calls):
                return known
        return self.answers(OnnxRunner(program, "program", apart=True), program, calls)

    def _run(self, runner: Runner, program: Program) -> list[list[Tensors]]:
        """Answer the recorded calls, and while the program has dynamic dimensions other sizes."""
        groups = self.groups if program.symbols else self.groups[:1]
        return [self.answers(runner, program, group) for group in groups]


def _superseded(rows: list[Row]) -> list[Row]:
    """Show what quantization's own later steps mend, and hold their result to the policy."""
    last = max((i for i, row in enumerate(rows) if row.stage in MENDING), default=0)
    return [
        replace(row, state="shown", held="", bar=None, faults=(), note="corrected below")
        if index < last and row.stage in DRAFTS and row.state != "rolled back"
        else row
        for index, row in enumerate(rows)
    ]


def _flat(groups: list[list[Tensors]]) -> list[Tensors]:
    return [call for group in groups for call in group]


def _assumed(profile: Profile, precision: str) -> Mapping[str, str]:
    """Return what the numbers rest on that no public source states."""
    kinds = ("float.", f"{precision}." if precision in FLOATS else "int8.")
    return {
        key: f"{fact.value} ({'inferred' if fact.grade == 'I' else 'assumed'})"
        for key, fact in profile.at(precision).assumed.items()
        if key.startswith(kinds)
    }
