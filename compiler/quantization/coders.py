"""The coder of a precision that computes in floats: of weights alone, or of fp8 factors."""

from collections.abc import Sequence
from typing import Protocol

from npuc.passes.base import Watch
from npuc.profile import FLOAT8, Profile
from npuc.program import Program, Tensors
from npuc.progress import Progress
from npuc.quantization.factor_coder import FactorCoder
from npuc.quantization.quantizer import Choices
from npuc.quantization.weight_coder import WeightCoder


class Coder(Protocol):
    """What the pipeline needs of a coder; `Quantizer` is the one of precisions in integers."""

    prepared: Program

    def program(self, skip: Sequence[str] = (), watch: Watch | None = None) -> Program:
        """Return the coded program; the nodes named in `skip` stay as they are."""
        ...

    def notes(self, calls: Sequence[Tensors] = ()) -> list[str]:
        """Say what was done, for the report."""
        ...


def coder(
    precision: str,
    program: Program,
    calls: Sequence[Tensors],
    profile: Profile,
    choices: Choices,
    progress: Progress,
) -> Coder:
    """Return the coder of a precision of `npuc.profile.FLOATS` other than "float"."""
    if precision in FLOAT8:
        return FactorCoder(program, calls, profile, precision, choices, progress=progress)
    return WeightCoder(program, calls, profile, precision, choices, progress=progress)
