"""Make a program whose products read 8-bit floats: calibrate, then round factors."""

from collections.abc import Sequence
from functools import cached_property

from npuc.errors import UsageError
from npuc.passes.base import Watch, run
from npuc.passes.round_factors import SCHEME, RoundFactors
from npuc.profile import FLOAT8, Profile
from npuc.program import Program, Tensors
from npuc.progress import Progress, Silent
from npuc.quantization.calibrator import Calibrator
from npuc.quantization.quantizer import Choices, check_skipped
from npuc.quantization.ranges import Ranges


class FactorCoder:
    """One float program and its calibration calls; the counterpart of `Quantizer` for fp8.

    Where a device multiplies 8-bit floats with wider ones only (``fp8.w8a8`` is false), weights
    alone are rounded.
    """

    def __init__(
        self,
        program: Program,
        calls: Sequence[Tensors],
        profile: Profile,
        precision: str,
        choices: Choices | None = None,
        *,
        progress: Progress | None = None,
    ) -> None:
        if precision not in FLOAT8:
            raise UsageError(f"precision {precision!r} has no 8-bit floats")
        self.form = FLOAT8[precision]
        self.prepared, self.calls, self.profile = program, calls, profile
        self.choices, self.progress = choices or Choices(), progress or Silent()
        self.activations = bool(profile.get("fp8.w8a8", True))
        check_skipped(self.choices.skip, [n.name or "" for n in program.model.graph.all_nodes()])

    @cached_property
    def ranges(self) -> Ranges:
        """The range of every tensor that is a factor."""
        if not self.activations:
            return Ranges({}, {}, 0, "none")
        calibrator = Calibrator(
            self.calls, SCHEME, self.profile.name, observer=self.choices.observer,
            table=self.choices.table, progress=self.progress,
        )  # fmt: skip
        return calibrator.ranges(self.prepared, {})

    def program(self, skip: Sequence[str] = (), watch: Watch | None = None) -> Program:
        """Return the program with rounded factors, but for those of the nodes in `skip`."""
        item = RoundFactors(self.ranges, self.form, self.activations, (*self.choices.skip, *skip))
        return run(self.prepared, [item], self.profile, watch)

    def notes(self, calls: Sequence[Tensors] = ()) -> list[str]:
        """Say what was rounded, for the report; held-out calls are not needed for that."""
        return (
            []
            if self.activations
            else [f"{self.form}: weights alone; activations stay as they are"]
        )
