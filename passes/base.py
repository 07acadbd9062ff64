"""The pass contract and the one engine that runs passes."""

import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, ClassVar

from npuc.errors import NpucError, PassError
from npuc.profile import Profile
from npuc.program import Program, Refusal, Step

if TYPE_CHECKING:
    import onnx_ir as ir


@dataclass(frozen=True, slots=True)
class Result:
    """What `apply` did: the number of changes, and the nodes it left alone with the reason."""

    changes: int = 0
    refusals: tuple[Refusal, ...] = ()


@dataclass(frozen=True)
class Pass(ABC):
    """One transformation. Fields are its options; an instance holds nothing else.

    `exact` passes keep the answer up to the noise floor; others are held to the policy's
    tolerance. `optional` passes that fail or break parity are rolled back and reported.
    A pass may assume a valid model and must leave a valid one; it may edit `model` in place.
    """

    name: ClassVar[str]
    exact: ClassVar[bool] = True
    optional: ClassVar[bool] = False

    @abstractmethod
    def apply(self, model: "ir.Model", profile: Profile) -> "Result | tuple[ir.Model, Result]":
        """Transform `model` in place, or return another model with the result."""

    @property
    def options(self) -> Mapping[str, object]:
        """The fields a user may set, by name."""
        return {f.name: getattr(self, f.name) for f in fields(self) if f.repr}


Watch = Callable[[Pass, Program, Program], None]
"""Called with (pass, before, after) for every pass; raises `ParityError` to reject the step."""


def run(
    program: Program, passes: Iterable[Pass], profile: Profile, watch: Watch | None = None
) -> Program:
    """Apply passes in order, each to a copy; undo an optional one that fails or breaks parity.

    Raises the pass's own `NpucError` for a required pass, with the pass named in a note.
    """
    for item in passes:
        program = _step(program, item, profile, watch)
    return program


def _step(program: Program, item: Pass, profile: Profile, watch: Watch | None) -> Program:
    start = time.perf_counter()
    try:
        copy = program.model.clone()
        outcome = item.apply(copy, profile)
        model, result = outcome if isinstance(outcome, tuple) else (copy, outcome)
        seconds = time.perf_counter() - start
        step = Step(item.name, item.options, result.changes, result.refusals, seconds)
        after = Program.from_model(model, (*program.steps, step))
        _same_ports(item, program, after)
        if watch is not None:
            watch(item, program, after)
    except NpucError as error:
        if not item.optional:
            error.add_note(f"in pass {item.name!r}, after {[s.name for s in program.steps]}")
            raise
        seconds = time.perf_counter() - start
        step = Step(item.name, item.options, 0, (), seconds, rolled_back=error.message)
        return replace(program, steps=(*program.steps, step))
    return after


def _same_ports(item: Pass, before: Program, after: Program) -> None:
    for side in ("inputs", "outputs"):
        old, new = ([(p.name, p.dtype) for p in getattr(p, side)] for p in (before, after))
        if old != new:
            raise PassError(
                f"pass {item.name!r} changed the model's {side} from {old} to {new}",
                hint="a pass must keep names, order and dtypes of ports; report this as a bug",
            )
