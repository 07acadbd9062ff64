"""`--precision auto`: keep in float what a policy needs, held to the bars of the report."""

from collections.abc import Callable, Collection, Sequence

from npuc import source_lines
from npuc.metrics import differences
from npuc.mixed import prices
from npuc.mixed.outcome import Mixed
from npuc.mixed.search import Search
from npuc.mixed.sensitivity import Bench, Burden, Clock, Kept, burden
from npuc.passes.base import Pass, run
from npuc.program import Program, Tensors
from npuc.progress import Progress
from npuc.quantization.hosting import without_floats
from npuc.quantization.quantizer import Quantizer
from npuc.runners import OnnxRunner
from npuc.validate import CALLS, Validator

BUDGET = 300.0
"""Seconds that a search may take unless told otherwise."""


def find(
    quantizer: Quantizer,
    numerics: Sequence[Pass],
    validator: Validator,
    budget: float,
    found: Callable[[Mixed], None],
    progress: Progress,
    fixed: Collection[str] | None = (),
) -> Mixed:
    """Search for `budget` seconds at most; returns the cheapest valid assignment, or the best.

    Measures on calibration calls, and accepts what also meets the policy on the recorded samples,
    at every step that the report holds to it.
    `found` is called with a valid assignment at the end of each stage. `fixed` are operators that
    must not go to the host, None where none may: that counts for devices without floats. The last
    measurement may end after the budget does; Ctrl-C ends the search, not the compile.
    """
    integers = quantizer.program()  # what it measures and learns is kept, and no part of the search
    clock = Clock(budget)
    bench = Bench(quantizer, numerics, quantizer.calls, validator.policy, clock)
    places = source_lines.known(validator.exported.model)
    layers = prices.layers(quantizer.prepared, integers, quantizer.profile, places)
    judge, form = _Judge(bench, validator), prices.form(quantizer.profile)
    if not without_floats(quantizer.profile):
        return Search(bench, layers, form, judge, found, progress).run()
    free = [layer for layer in layers if fixed is not None and layer.op not in fixed]
    note = "" if fixed is not None else "the device has no floats, and nothing may be on the host"
    return Search(bench, free, form, judge, found, progress, host=True, note=note).run()


class _Judge:
    """Measures an assignment as the report does."""

    def __init__(self, bench: Bench, validator: Validator) -> None:
        self._bench, self._validator = bench, validator

    def __call__(self, kept: Kept) -> Burden:
        """Run it on the recorded samples: every step on the first ones, the last on all.

        Returns each output's largest burden. Cosine needs no look: at an SQNR of 10·log10(1/p) it
        is at least √(1 - p), which is more than the policy's 1 - p.
        """
        programs: list[Program] = []

        def record(item: Pass, before: Program, after: Program) -> None:
            programs.append(after)

        quantizer = self._bench.quantizer
        program = quantizer.program(tuple(sorted(kept)))
        programs.append(program)
        run(program, self._bench.numerics, quantizer.profile, record)
        calls = len(self._validator.reference.samples)
        last = self._answers(programs[-1], calls)
        steps = [last, last[:CALLS], *(self._answers(p, CALLS) for p in programs[:-1])]
        return tuple(map(max, zip(*map(self._burden, steps), strict=True)))

    def _answers(self, program: Program, count: int) -> list[Tensors]:
        runner = OnnxRunner(program, "candidate")
        self._bench.runs += 1
        answers: list[Tensors] = []
        for call in self._validator.reference.samples[:count]:
            self._bench.clock.check()
            answers += self._validator.answers(runner, program, [call])
        return answers

    def _burden(self, answers: Sequence[Tensors]) -> Burden:
        validator, count = self._validator, len(answers)
        settle = validator.by_scores(validator.reference.samples[:count])
        expected = validator.reference.outputs[:count]
        return burden(differences(expected, answers, validator.ties, settle), validator.policy)
