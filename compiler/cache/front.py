"""Keep what is the same for every target: the exported program, the answers, the first passes."""

import json
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from npuc import stored
from npuc.front import Front
from npuc.gate.cache import Cache, Damaged
from npuc.jsonable import canonical, plain
from npuc.kept import Kept
from npuc.policy import Policy
from npuc.program import PROTO_LIMIT, Program, Refusal, Step
from npuc.progress import Progress
from npuc.report import Report
from npuc.validate import Validator

if TYPE_CHECKING:
    import onnx_ir as ir

_EXPORTED, _PROGRAM, _ANSWERS, _STATE = "exported.onnx", "program.onnx", "answers", "state.json"


@dataclass
class Fronts:
    """Where one model's front is kept. `key` says what it depends on, as files are now.

    `stages` keeps what the targets' own stages find. What is put is written beside the work that
    follows; as a context, this waits for it, and raises what became of it.
    """

    store: Cache
    key: Callable[[], str]
    stages: Kept = field(default_factory=Kept)
    _known: str = field(default="", init=False)
    _made: Front | None = field(default=None, init=False)
    _writer: ThreadPoolExecutor | None = field(default=None, init=False)
    _written: "Future[None] | None" = field(default=None, init=False)

    def __enter__(self) -> "Fronts":
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if self._writer is not None:
            self._writer.shutdown()
        if kind is None and self._written is not None:
            self._written.result()

    @contextmanager
    def found(self, policy: Policy, shown: Progress) -> Iterator[Front | None]:
        """Give what is kept, None where nothing is; then nobody else makes it meanwhile."""
        self._known = self.key()
        if (front := self._get(policy, shown)) is not None:
            yield front
            return

        def waiting(_: str) -> None:
            shown.stage("wait for another process that exports the model")

        with ExitStack() as lock:
            lock.enter_context(self.store.locked([self._known], waiting))
            yield self._get(policy, shown)
            if self._made is not None:
                self._writer = ThreadPoolExecutor(1)
                self._written = self._writer.submit(self._keep, self._made, lock.pop_all())

    def put(self, front: Front) -> None:
        """Keep a front, unless what it depends on has changed meanwhile; inside of `found`."""
        self._made = front if self.key() == self._known else None

    def _keep(self, front: Front, lock: ExitStack) -> None:
        with lock, self.store.workplace(self._known) as folder:
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
    _write_program(front.program, found.exported, folder)
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


def _write_program(program: Program, exported: Program, folder: Path) -> None:
    """Write the program; weights that are the exported program's lie in that one's file alone."""
    import onnx_ir as ir

    written = ir.load(folder / _EXPORTED).graph.initializers
    shared = {
        name: tensor
        for name, value in program.model.graph.initializers.items()
        if name in written
        and isinstance(tensor := written[name].const_value, ir.ExternalTensor)
        and _same(value.const_value, exported.model.graph.initializers[name].const_value)
    }
    if program.weight_bytes - sum(t.nbytes for t in shared.values()) > PROTO_LIMIT:
        program.save(folder / _PROGRAM)
        return
    copy = program.model.clone()
    for name, tensor in shared.items():
        copy.graph.initializers[name].const_value = tensor
    ir.save(copy, folder / _PROGRAM)


def _same(one: "ir.TensorProtocol | None", other: "ir.TensorProtocol | None") -> bool:
    if one is None or other is None or (one.dtype, one.shape) != (other.dtype, other.shape):
        return False
    return one is other or np.array_equal(_bytes(one), _bytes(other))


def _bytes(tensor: "ir.TensorProtocol") -> "np.ndarray[Any, Any]":
    array = np.ascontiguousarray(tensor.numpy())
    return array.reshape(-1).view(np.uint8)


def _read(place: Path, policy: Policy, shown: Progress) -> Front:
    from npuc.outlets import reading

    state = json.loads((place / _STATE).read_bytes())
    report = reading.report(state["report"])
    exported = _program(place / _EXPORTED, state["exported"])
    program = _program(place / _PROGRAM, state["program"], exported)
    validator = Validator(
        exported,
        stored.decode((place / _ANSWERS).read_bytes()),
        policy, shown, rows=list(report.rows), notes=list(report.notes),
    )  # fmt: skip
    validator.resume(program)
    return Front(validator, program, report.dims)


def _program(path: Path, steps: list[dict[str, Any]], owner: Program | None = None) -> Program:
    """Read a program; those of its weights that lie in the file of `owner` are the owner's."""
    import onnx_ir as ir

    model = ir.load(path)
    owned = {} if owner is None else owner.model.graph.initializers
    for name, value in model.graph.initializers.items():
        tensor = value.const_value
        if isinstance(tensor, ir.ExternalTensor) and Path(tensor.location).stem != path.stem:
            value.const_value = owned[name].const_value
    # Into memory: the files may be removed while the program is in use.
    found = Program.from_model(ir.external_data.load_to_model(model))
    return replace(found, steps=tuple(map(_step, steps)))


def _step(data: dict[str, Any]) -> Step:
    return Step(**{**data, "refusals": tuple(Refusal(**item) for item in data["refusals"])})
