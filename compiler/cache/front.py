"""Keep what is the same for every target: the exported program, the answers, the first passes."""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from npuc import stored
from npuc.front import Front
from npuc.gate.cache import Cache, Damaged
from npuc.jsonable import canonical, plain
from npuc.kept import Kept
from npuc.policy import Policy
from npuc.program import Program, Refusal, Step
from npuc.progress import Progress
from npuc.report import Report
from npuc.validate import Validator

_EXPORTED, _PROGRAM, _ANSWERS, _STATE = "exported.onnx", "program.onnx", "answers", "state.json"


@dataclass
class Fronts:
    """Where one model's front is kept. `key` says what it depends on, as files are now.

    `stages` keeps what the targets' own stages find.
    """

    store: Cache
    key: Callable[[], str]
    stages: Kept = field(default_factory=Kept)
    _known: str = field(default="", init=False)

    @contextmanager
    def found(self, policy: Policy, shown: Progress) -> Iterator[Front | None]:
        """Give what is kept, None where nothing is; then nobody else makes it meanwhile."""
        self._known = self.key()
        if (front := self._get(policy, shown)) is not None:
            yield front
            return

        def waiting(_: str) -> None:
            shown.stage("wait for another process that exports the model")

        with self.store.locked([self._known], waiting):
            yield self._get(policy, shown)

    def put(self, front: Front) -> None:
        """Keep a front, unless what it depends on has changed meanwhile; inside of `found`."""
        if self.key() != self._known:
            return
        with self.store.workplace(self._known) as folder:
            _write(front, folder)
            self.store.put_files(self._known, folder)

    def _get(self, policy: Policy, shown: Progress) -> Front | None:
        try:
            place = self.store.files(self._known)
            if place is None:
                return None
            shown.stage("take the export that was kept")
            return _read(place, policy, shown)
        except Damaged as error:
            shown.stage(f"the export that was kept is damaged ({error}): export again")
        except FileNotFoundError:  # another process needed the room
            pass
        return None


def _write(front: Front, folder: Path) -> None:
    found = front.validator
    found.exported.save(folder / _EXPORTED)
    front.program.save(folder / _PROGRAM)
    (folder / _ANSWERS).write_bytes(stored.encode(found.reference))
    report = Report(
        "", "", "", "", "", "", tuple(found.rows), notes=tuple(found.notes), dims=front.dims
    )
    state = {
        "report": report.to_json(),
        "exported": [plain(asdict(step)) for step in found.exported.steps],
        "program": [plain(asdict(step)) for step in front.program.steps],
    }
    (folder / _STATE).write_bytes(canonical(state))


def _read(place: Path, policy: Policy, shown: Progress) -> Front:
    from npuc.outlets import reading

    state = json.loads((place / _STATE).read_bytes())
    report = reading.report(state["report"])
    program = _program(place / _PROGRAM, state["program"])
    validator = Validator(
        _program(place / _EXPORTED, state["exported"]),
        stored.decode((place / _ANSWERS).read_bytes()),
        policy, shown, rows=list(report.rows), notes=list(report.notes),
    )  # fmt: skip
    validator.resume(program)
    return Front(validator, program, report.dims)


def _program(path: Path, steps: list[dict[str, Any]]) -> Program:
    import onnx_ir as ir

    # Into memory: the files may be removed while the program is in use.
    found = Program.from_model(ir.external_data.load_to_model(ir.load(path)))
    return replace(found, steps=tuple(map(_step, steps)))


def _step(data: dict[str, Any]) -> Step:
    return Step(**{**data, "refusals": tuple(Refusal(**item) for item in data["refusals"])})
