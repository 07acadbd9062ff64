"""Make an integer program of a float one: prepare, calibrate, quantize, correct.

What is measured of the float program is measured once, so that many programs (one for each set of
operators kept in float) can be made of the same ranges.
"""

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from npuc.errors import UsageError
from npuc.kept import Kept
from npuc.passes.base import Watch, run
from npuc.passes.center import Center, offsets
from npuc.passes.correct_bias import CorrectBias
from npuc.passes.equalize import Equalize, chosen, observable, observed, traced
from npuc.passes.learn_rounding import LearnRounding
from npuc.passes.quantize import Quantize
from npuc.profile import IntScheme, Profile
from npuc.program import Program, Tensors
from npuc.progress import Progress, Silent
from npuc.quantization import bias_shifts, faults, margins, rounding
from npuc.quantization.calibrator import Calibrator
from npuc.quantization.channel_stats import ChannelStatistics
from npuc.quantization.hosting import hosted, without_floats
from npuc.quantization.ranges import Range, Ranges

Array = np.ndarray[Any, Any]


@dataclass(frozen=True, slots=True)
class Choices:
    """What the user chose about quantization; None is the target's own."""

    observer: str | None = None
    skip: tuple[str, ...] = ()
    equalize: bool = True
    correct_bias: bool = True
    table: Path | None = None
    rounding: str = rounding.DEFAULT


class Quantizer:
    """One float program, its calibration calls and a device; everything measured is kept.

    `watch` is called after every pass (see `npuc.passes.base.run`); `kept` has what other
    quantizers measured.
    """

    def __init__(
        self,
        program: Program,
        calls: Sequence[Tensors],
        profile: Profile,
        choices: Choices | None = None,
        *,
        watch: Watch | None = None,
        progress: Progress | None = None,
        kept: Kept | None = None,
    ) -> None:
        self.original, self.calls, self.profile = program, calls, profile
        self.choices, self.watch = choices or Choices(), watch
        self.progress, self.kept = progress or Silent(), kept
        known = [node.name or "" for node in program.model.graph.all_nodes()]
        check_skipped(self.choices.skip, known)
        rounding.check(self.choices.rounding)
        self._notes: list[str] | None = None
        self._expected: Mapping[str, ChannelStatistics] = {}
        self._ends: Mapping[str, Range] = {}
        self._shifts: Mapping[str, Array] | None = None
        self._learned: LearnRounding | None = None

    @property
    def scheme(self) -> IntScheme:
        """The device's integer scheme; raises `UsageError` where it has none."""
        scheme = self.profile.int_scheme
        if scheme is None:
            raise UsageError(f"target {self.profile.name!r} has no integer scheme")
        return scheme

    @cached_property
    def calibrator(self) -> Calibrator:
        """What measures ranges, or reads them from the user's table."""
        return Calibrator(
            self.calls, self.scheme, self.profile.name, observer=self.choices.observer,
            table=self.choices.table, progress=self.progress, kept=self.kept,
        )  # fmt: skip

    @cached_property
    def prepared(self) -> Program:
        """The float program as it is quantized: the same function, with kinder ranges."""
        program = self.original
        if not self.choices.equalize:
            return program
        model = program.model.clone()
        channels = traced(model)
        if not (axes := observed(model, self.scheme, channels)):
            return program
        every = observable(model, self.scheme, channels)
        held = dict(self.calibrator.channels(program, axes, every))
        seen = margins.extended(held)
        self.progress.stage(Equalize.name)
        logs, divisors = chosen(model, self.scheme, seen, channels)
        after = run(program, [Equalize(seen, logs)], self.profile, self.watch)
        if after.steps[-1].rolled_back:
            return after
        for stats in (seen, held):
            stats |= {name: stats[name].divided(by) for name, by in divisors.items()}
        self.progress.stage(Center.name)
        centered = run(after, [Center(seen)], self.profile, self.watch)
        if not centered.steps[-1].rolled_back:
            moved = offsets(after.model.clone(), self.scheme, seen)
            for stats in (seen, held):
                stats |= {name: stats[name].less(by) for name, by in moved.items()}
        self._expected = {name: seen[name] for name in seen if name in divisors}
        self._ends = {
            name: (float(held[name].low.min()), float(held[name].high.max())) for name in divisors
        }
        return centered

    def floats(self, skip: Sequence[str] = ()) -> Program:
        """Return the prepared program, with `skip` on the host where the device has no floats."""
        if not skip or not without_floats(self.profile):
            return self.prepared
        return hosted(self.prepared, skip, self.scheme)

    @cached_property
    def ranges(self) -> Ranges:
        """The range of every tensor that is coded."""
        program = self.prepared
        return self.calibrator.ranges(program, self._expected, self._ends)

    def program(self, skip: Sequence[str] = (), watch: Watch | None = None) -> Program:
        """Return the integer program that leaves the nodes named in `skip` in float.

        Shifts are measured once, with all nodes quantized: each is its own product's alone.
        """
        program = self._coded(skip, watch)
        if not self.choices.correct_bias:
            return program
        if self._shifts is None:
            whole, shown = self._coded() if skip else program, self.progress
            both = whole, self.prepared
            self._shifts = self.calibrator.shifts(
                lambda: self.calibrator.once(
                    "shifts", both, "", lambda: bias_shifts.measure(*both, self.calls, shown)
                )
            )
        if not self._shifts:
            return program
        self.progress.stage(CorrectBias.name)
        return run(program, [CorrectBias(self._shifts)], self.profile, watch)

    def _coded(self, skip: Sequence[str] = (), watch: Watch | None = None) -> Program:
        quantize = Quantize(self.ranges, (*self.choices.skip, *skip))
        self.progress.stage(quantize.name)
        program = run(self.floats(skip), [quantize], self.profile, watch)
        method = self.choices.rounding
        if method == rounding.NEAREST:
            return program
        if self._learned is None:  # once: where nodes stay in float, the rest keeps its codes
            plain = self._plain(self.ranges) if skip else program
            self.progress.stage(f"learn rounding ({method})")
            self._learned = rounding.learn(
                plain, self.prepared, self.calls, self.profile, method, progress=self.progress
            )
        return run(program, [self._learned], self.profile, watch)

    def notes(self, held_out: Sequence[Tensors]) -> list[str]:
        """Say what the ranges rest on, and what is wrong with that (`calibration_faults`).

        `held_out` are calls that calibration did not see. Measured once.
        """
        if self._notes is None:
            ranges, given = self.ranges, self.calibrator.given
            odd = [] if given else faults.of_calls(self.calls, self.original)
            self._notes = [
                *self.calibrator.notes,
                *faults.of_ranges(self.prepared, ranges, held_out, self._plain, odd),
            ]
        return self._notes

    def _plain(self, ranges: Mapping[str, Range]) -> Program:
        return run(self.prepared, [Quantize(ranges, self.choices.skip)], self.profile)


def check_skipped(skip: Sequence[str], names: Sequence[str]) -> None:
    if unknown := [name for name in skip if name not in names]:
        near = [f"did you mean {n!r}?" for n in difflib.get_close_matches(unknown[0], names, 1)]
        hint = "".join(near) or "--dump FOLDER writes every program"
        raise UsageError(f"--skip: there is no node {', '.join(map(repr, unknown))}", hint=hint)
