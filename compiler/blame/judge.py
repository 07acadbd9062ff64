"""Say whether one program of a trail answers within its bar, over all samples, and count runs."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from npuc import samples as sampling
from npuc.answers import Reference
from npuc.blame.trail import Lowered, Made, Trail
from npuc.errors import ParityError
from npuc.layers import expected
from npuc.metrics import Difference, differences
from npuc.policy import Bar
from npuc.program import Program, Tensors
from npuc.progress import Silent
from npuc.report import LOWERED, Row
from npuc.runners import OnnxRunner
from npuc.targets.base import Runner
from npuc.validate import DRAFTS, MENDING, Validator

Groups = list[list[Tensors]]
EPS, TINY = float(np.finfo(np.float32).eps), float(np.finfo(np.float64).tiny)
Faults = tuple[str, ...]
QUANTIZE = "quantize"
"""The step whose codes are held to what they should cost."""


@dataclass(frozen=True, slots=True)
class Coded:
    """A tensor whose codes, or whose operator's codes, cost too much."""

    tensor: str
    codes: bool


class Judge:
    """Answers of the programs of a trail, each computed once and over all samples.

    Programs with dynamic dimensions also answer at a second size of each. `runs` counts
    evaluations of one program, or artifact, over all of that.
    """

    def __init__(self, trail: Trail) -> None:
        assert trail.exported is not None and trail.reference is not None
        self.trail, self.exported = trail, trail.exported
        self.reference: Reference = trail.reference
        self.policy = trail.policy
        self.runs = 0
        self._validator = Validator(self.exported, self.reference, self.policy, Silent())
        self._answers: dict[int, Groups | ParityError] = {}
        self._faults: dict[int, Faults] = {}
        self._again: dict[int, Faults] = {}
        self._original: Faults | None = None
        self._asked: Groups | None = None
        self.expected: Groups = []

    @property
    def groups(self) -> Groups:
        """All samples; and the first one at a second size of each dynamic dimension."""
        if self._asked is None:
            self._asked = [list(self.reference.samples)]
            self.expected = [list(self.reference.outputs)]
            answer = self.trail.native or OnnxRunner(self.exported, "exported")
            for group in sampling.variants(self.reference.samples, self.exported)[1:]:
                try:
                    self.expected.append([answer(call) for call in group])
                except Exception:  # anyone's forward(): the original does not take this size
                    continue
                self._asked.append(group)
        return self._asked

    def original(self) -> Faults:
        """Say how what the original answers here misses what was recorded; () without an original.

        To the noise floor over all samples, and as a compile does: the floor is that of the
        recorded answers, and grows with whatever is wrong with them.
        """
        native = self.trail.native
        if native is None:
            return ()
        if self._original is None:
            self.runs += 1
            got = [native(call) for call in self.reference.samples]
            faults = self._noise().faults(self._differences(self.groups[0], self.expected[0], got))
            self._original = faults or self.recorded()
        return self._original

    def recorded(self) -> Faults:
        """Say whether a compile finds that what was recorded is not the original's answer."""
        if self.trail.native is None:
            return ()
        self.runs += 1
        validator = self._validator.fork()
        try:
            validator.export(self.trail.native)
        except ParityError:  # the export does not run: that says nothing of the reference
            return ()
        return tuple(f for row in validator.rows if row.stage == "reference" for f in row.faults)

    def made(self, index: int) -> Faults:
        """Say how the program at `index` misses the bar of where it stands, against the original.

        Before anything is rounded that is the noise floor, after it the policy's limits and what
        else the policy demands.
        """
        if index not in self._faults:
            self._faults[index] = tuple(self._judged(self.trail.made[index], index))
        return self._faults[index]

    def step(self, index: int) -> Faults:
        """Say how an exact step misses the bar that a compile holds it to: the step before it."""
        item = self.trail.made[index].item
        return self.made(index) if item is None else self._watched(index)

    def own(self, index: int) -> Faults:
        """Say where a rounding step costs more than such a step can, whatever all of it costs."""
        item = self.trail.made[index].item
        if item is None or self._mended(index):
            return ()
        whole = set(self.made(index))
        return tuple(fault for fault in self._watched(index) if fault not in whole)

    def coding(self, quantized: Program | None = None) -> tuple[Faults, tuple[Coded, ...]]:
        """Say which codes cost more than they should, and name them, the worst first.

        Of the program that is lowered, or of an earlier one (`quantized`).
        """
        if self.trail.coding is None:
            return (), ()
        self.runs += 1
        program, last, calls, scheme = self.trail.coding
        last = quantized or last
        validator = self._validator.fork()
        validator.rows = [Row(QUANTIZE, "ok", ())]
        validator.coded(program, last, calls, scheme)
        found = expected.costs(program, last, calls, scheme)
        costly = [c for c in found if self.policy.coding([c])]
        costly.sort(key=lambda c: -c.found / max(c.expected, EPS * c.signal, TINY))
        return validator.rows[0].faults, tuple(Coded(c.tensor, not c.op) for c in costly)

    def power(self, index: int) -> float:
        """Return a program's error power over all samples, in parts of each output's own."""
        found = self.answered(index)
        if isinstance(found, ParityError):
            return math.inf
        differing = self._differences(self.groups[0], self.expected[0], found[0])
        return sum(math.inf if d.fault else (d.rms / (d.peak or 1.0)) ** 2 for d in differing)

    def _mended(self, index: int) -> bool:
        """Whether a later step is there to make good what this one loses."""
        later = {item.step for item in self.trail.made[index + 1 :]}
        return self.trail.made[index].step in DRAFTS and bool(later & MENDING)

    def _watched(self, index: int) -> Faults:
        before, made = self.trail.made[index - 1], self.trail.made[index]
        answers = [self.answered(at) for at in (index - 1, index)]
        if isinstance(answers[1], ParityError):
            return (answers[1].message,)
        if isinstance(answers[0], ParityError) or made.item is None:
            return ()
        validator = self._validator.fork()
        validator.groups = self._sized(before.program)
        # What was done before decides what a step is held to.
        validator.rows = [Row(item.step, "ok", ()) for item in self.trail.made[:index]]
        try:
            validator.watch(made.item, before.program, made.program)
        except ParityError as error:
            lines = [line.strip() for line in error.message.splitlines()]
            return tuple(lines[1:]) or tuple(lines)
        return validator.rows[-1].faults

    def lowered(self, item: Lowered) -> tuple[Faults, Faults]:
        """Say how the artifact misses its bars: by its own error, and against the original."""
        self.runs += 1
        validator = self._validator.fork()
        runner = _First(item.runner)
        validator.artifact(runner, item.program, item.loss, item.floats)
        row = validator.rows[-1]
        own = tuple(f for f in row.faults if f.startswith(LOWERED) or not item.loss)
        first = self.reference.samples[:1]
        differing = self._differences(first, [runner.answer], [runner.again()])
        own += self._noise().faults(differing)
        rest = tuple(f for f in row.faults if f not in own)
        failed = tuple(h.text for h in validator.held if h.state == "failed")
        return own, (*rest, *failed)

    def answered(self, index: int) -> Groups | ParityError:
        """Return a program's answers to all groups that fit it, or why it does not run."""
        if index not in self._answers:
            self.runs += 1
            program = self.trail.made[index].program
            try:
                runner = OnnxRunner(program, self.trail.made[index].step)
                found = [self.answers(runner, program, group) for group in self._sized(program)]
                self._answers[index] = found
                self._again[index] = self._repeated(runner, program, found)
            except ParityError as error:
                self._answers[index] = error
        return self._answers[index]

    def answers(self, runner: Runner, program: Program, calls: Sequence[Tensors]) -> list[Tensors]:
        """Run calls, in parts where the program's batch is smaller."""
        return Validator.answers(self._validator, runner, program, calls)

    def _judged(self, item: Made, index: int) -> list[str]:
        found = self.answered(index)
        if isinstance(found, ParityError):
            return [found.message]
        faults = list(self._again[index])
        bar = self.policy.loss() if item.lossy else self._noise()
        for at, got in enumerate(found):
            what = "" if at == 0 else "at another size: "
            listed = bar.faults(self._differences(self.groups[at], self.expected[at], got))
            faults += [what + fault for fault in listed]
        if item.lossy:
            for demand in self.policy.demands:
                held = demand.judge(
                    self.reference.samples, self.reference.outputs, found[0], self.reference.floor
                )
                faults += [h.text for h in held if h.state == "failed"]
        return faults

    def _sized(self, program: Program) -> Groups:
        return self.groups if program.symbols else self.groups[:1]

    def _noise(self) -> Bar:
        return self.policy.noise(self.reference.floor)

    def _differences(
        self, calls: Sequence[Tensors], expected: Sequence[Tensors], got: Sequence[Tensors]
    ) -> tuple[Difference, ...]:
        settle = self._validator.by_scores(calls)
        return differences(expected, got, self._validator.ties, settle)

    def _repeated(self, runner: Runner, program: Program, first: Groups) -> Faults:
        """Ask the first call again after all others: an answer must not depend on them."""
        again = self.answers(runner, program, self.reference.samples[:1])
        return changed(first[0][:1], again)


class _First:
    """A runner that remembers the first call, to ask it again after all others."""

    def __init__(self, runner: Runner) -> None:
        self.runner, self.name = runner, runner.name
        self.call: Tensors = {}
        self.answer: Tensors = {}

    def __call__(self, inputs: Tensors) -> Tensors:
        answer = self.runner(inputs)
        if not self.call:
            self.call = inputs
            self.answer = {name: np.array(array) for name, array in answer.items()}
        return answer

    def again(self) -> Tensors:
        """Answer the first call once more."""
        return self.runner(self.call)


def changed(first: Sequence[Tensors], again: Sequence[Tensors]) -> Faults:
    """Say which outputs differ between two runs of the same calls; to the bit, as it is one
    program on one machine."""
    return tuple(
        f"{name}: another answer to the same call, asked again after the others"
        for a, b in zip(first, again, strict=True)
        for name in a
        if not np.array_equal(a[name], b[name], equal_nan=a[name].dtype.kind in "fc")
    )
