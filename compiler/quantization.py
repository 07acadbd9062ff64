"""Make an integer program of a float one: prepare, calibrate, quantize, correct.

What is measured of the float program is measured once, so that many programs (one for each set of
operators kept in float) can be made of the same ranges.
"""

import difflib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from npuc import calibrate, channel_stats
from npuc.calibrate import Ranges
from npuc.errors import UsageError
from npuc.passes.base import Watch, run
from npuc.passes.equalize import Equalize, observed
from npuc.passes.quantize import Quantize
from npuc.profile import IntScheme, Profile
from npuc.program import Program, Tensors
from npuc.progress import Progress, Silent


@dataclass(frozen=True, slots=True)
class Choices:
    """What the user chose about quantization; None is the target's own."""

    observer: str | None = None
    skip: tuple[str, ...] = ()
    equalize: bool = True


class Quantizer:
    """One float program, its calibration calls and a device; everything measured is kept.

    `watch` is called after every pass (see `npuc.passes.base.run`).
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
    ) -> None:
        self.original, self.calls, self.profile = program, calls, profile
        self.choices, self.watch = choices or Choices(), watch
        self.progress = progress or Silent()
        known = [node.name or "" for node in program.model.graph.all_nodes()]
        _check_skipped(self.choices.skip, known)

    @property
    def scheme(self) -> IntScheme:
        """The device's integer scheme; raises `UsageError` where it has none."""
        scheme = self.profile.int_scheme
        if scheme is None:
            raise UsageError(f"target {self.profile.name!r} has no integer scheme")
        return scheme

    @cached_property
    def prepared(self) -> Program:
        """The float program as it is quantized: the same function, with kinder ranges."""
        program = self.original
        if not self.choices.equalize or not (axes := observed(program.model.clone(), self.scheme)):
            return program
        self.progress.stage(f"observe channels for {self.profile.name}")
        seen = channel_stats.collect(program, self.calls, axes, progress=self.progress.advance)
        self.progress.stage(Equalize.name)
        return run(program, [Equalize(seen)], self.profile, self.watch)

    @cached_property
    def ranges(self) -> Ranges:
        """The range of every tensor that is coded."""
        program = self.prepared
        self.progress.stage(f"calibrate for {self.profile.name}")
        return calibrate.collect(
            program, self.calls, self.scheme,
            observer=self.choices.observer, progress=self.progress.advance,
        )  # fmt: skip

    def program(self, skip: Sequence[str] = (), watch: Watch | None = None) -> Program:
        """Return the integer program that leaves the nodes named in `skip` in float."""
        quantize = Quantize(self.ranges, (*self.choices.skip, *skip))
        self.progress.stage(quantize.name)
        return run(self.prepared, [quantize], self.profile, watch)


def _check_skipped(skip: Sequence[str], names: Sequence[str]) -> None:
    if unknown := [name for name in skip if name not in names]:
        near = [f"did you mean {n!r}?" for n in difflib.get_close_matches(unknown[0], names, 1)]
        hint = "".join(near) or "--dump FOLDER writes every program"
        raise UsageError(f"--skip: there is no node {', '.join(map(repr, unknown))}", hint=hint)
