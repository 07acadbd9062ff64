"""`--precision auto`: keep in float what a policy needs, held to the bars of the report."""

from collections.abc import Callable, Sequence
from dataclasses import replace

from npuc import prices, source_lines
from npuc.metrics import differences
from npuc.mixed import Mixed
from npuc.passes.base import Pass, run
from npuc.program import Program, Tensors
from npuc.progress import Progress
from npuc.quantization import Quantizer
from npuc.runners import OnnxRunner
from npuc.search import Search
from npuc.sensitivity import Bench, Clock, Kept
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
) -> Mixed:
    """Search for `budget` seconds at most; returns the cheapest valid assignment, or the best.

    Measures on calibration calls, and accepts what also meets the policy on the recorded samples.
    `found` is called with a valid assignment at the end of each stage. The last measurement may
    end after the budget does; Ctrl-C ends the search, not the compile.
    """
    clock = Clock(budget)
    integers = quantizer.program()
    bench = Bench(quantizer, numerics, quantizer.calls, validator.policy, clock)
    places = source_lines.known(validator.exported.model)
    layers = prices.layers(quantizer.prepared, integers, quantizer.profile, places)
    judge = _Judge(bench, validator)
    form = prices.form(quantizer.profile)
    return Search(bench, layers, form, judge.holds, found, progress).run()


class _Judge:
    """Says whether an assignment would pass the report's own bars, with some dB to spare."""

    def __init__(self, bench: Bench, validator: Validator) -> None:
        self._bench, self._validator = bench, validator

    def holds(self, kept: Kept, margin: float) -> bool:
        """Run it on the recorded samples: every step on the first ones, the last on all."""
        programs = [self._bench.program(kept)]
        run(
            programs[0], self._bench.numerics, self._bench.quantizer.profile,
            lambda item, before, after: programs.append(after),
        )  # fmt: skip
        calls = len(self._validator.reference.samples)
        last = self._answers(programs[-1], calls)
        if not self._passes(last, margin) or not self._passes(last[:CALLS], margin):
            return False
        return all(self._passes(self._answers(p, CALLS), margin) for p in programs[:-1])

    def _answers(self, program: Program, count: int) -> list[Tensors]:
        runner = OnnxRunner(program, "candidate")
        self._bench.runs += 1
        answers: list[Tensors] = []
        for call in self._validator.reference.samples[:count]:
            self._bench.clock.check()
            answers += self._validator.answers(runner, program, [call])
        return answers

    def _passes(self, answers: Sequence[Tensors], margin: float) -> bool:
        validator = self._validator
        policy = replace(validator.policy, sqnr_db=validator.policy.sqnr_db + margin)
        expected = validator.reference.outputs[: len(answers)]
        return not policy.loss().faults(differences(expected, answers, validator.ties))
