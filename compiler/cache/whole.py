"""Compile through the cache: what nothing has changed for is not compiled again."""

import hashlib
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from npuc import outputs
from npuc.atomic import atomic_write
from npuc.errors import NpucError, OutputError
from npuc.gate import identity, machine
from npuc.gate.cache import Cache, Damaged
from npuc.gate.pairs import Model, Pair
from npuc.jsonable import canonical, plain
from npuc.policy import Policy
from npuc.progress import Progress
from npuc.report import Compiled

if TYPE_CHECKING:
    from npuc.cache.front import Fronts

FORMAT = 1
"""Counts changes of what is kept that npuc's own files do not show."""

_WRITE = ("dump", "calibration_table")
"""Options that write files of their own."""

_TOOLS = ("packages", "tools")
"""Facts of a machine that only a target's own toolchain, or the user's code, depends on."""

_COMMON = (
    "model", "model_path", "inputs", "trust_pickle", "eval_mode", "opset", "dims", "samples",
    "calibration", "reference", "strict",
)  # fmt: skip
"""Options that decide what is the same for every target."""


@dataclass(frozen=True, slots=True)
class Request:
    """A compile as the command line asks for it; `options` are arguments of `npuc.compile`.

    `shown` options watch, and decide nothing.
    """

    source: str
    targets: Sequence[str]
    output: Path | None
    policy: Policy
    progress: Progress
    options: Mapping[str, Any]
    shown: Mapping[str, Any]


def compile(request: Request, store: Cache | None) -> list[Compiled]:
    """Do what `npuc.compile` does, with what `store` has.

    A verdict is taken from the store only where everything that it depends on is equal: contents
    of all files given, options, npuc's own code, versions, the CPU, toolchains and variables. Two
    processes never compile the same at once: one waits and takes what the other made.
    """
    options, targets = request.options, request.targets
    wrote = any(options.get(name) for name in _WRITE)
    if store is None or wrote or request.policy.demands or _artifact(request.source):
        return _compiled(request, targets, request.output)
    paths = outputs.artifact_paths(request.source, targets, request.output)
    places = dict(zip(targets, paths, strict=True))
    try:
        known = _keys(request, store)
    except NpucError:  # a file that is not there: the compile says it better
        return _compiled(request, targets, request.output)
    found = _kept(request, known, places, store)
    if missing := [name for name in targets if name not in found]:

        def waiting(_: str) -> None:
            request.progress.stage(f"wait for another process that compiles {request.source}")

        with store.locked([known[name] for name in missing], waiting):
            found |= _kept(request, {n: known[n] for n in missing}, places, store)
            if missing := [name for name in targets if name not in found]:
                found |= _made(request, missing, known, places, store)
        store.trim(list(known.values()))
    return [found[name] for name in targets if name in found]


def _made(
    request: Request,
    targets: Sequence[str],
    known: Mapping[str, str],
    places: Mapping[str, Path],
    store: Cache,
) -> dict[str, Compiled]:
    found = {}
    from npuc.cache.front import Fronts
    from npuc.cache.stages import Stages

    stages = Stages(store, lambda: _versions(store), request.progress)
    with (
        store.workplace(known[targets[0]]) as folder,
        Fronts(store, lambda: _front_key(request, store), stages) as fronts,
    ):
        for item in _compiled(request, targets, folder, fronts):
            name, made = item.report.target, Path(item.artifact_path)
            _copy(made, places[name])
            found[name] = Compiled(places[name], item.report)
            # What was changed meanwhile may have been changed before it was read.
            if _keys(request, store).get(name) == known[name]:
                store.put(known[name], item.report, made)
    return found


def _compiled(
    request: Request, targets: Sequence[str], output: Path | None, fronts: "Fronts | None" = None
) -> list[Compiled]:
    from npuc import pipeline

    shown = request.shown if fronts is None else {**request.shown, "fronts": fronts}
    return pipeline.compile(
        request.source, target=targets, output=output, policy=request.policy,
        progress=request.progress, **request.options, **shown,
    )  # fmt: skip


def _kept(
    request: Request, known: Mapping[str, str], places: Mapping[str, Path], store: Cache
) -> dict[str, Compiled]:
    """Copy what the store has to its place."""
    found = {}
    for name, key in known.items():
        try:
            kept = store.get(key)
        except Damaged as error:
            request.progress.stage(f"what was kept for {name} is damaged ({error}): compile again")
            continue
        if kept is not None:
            request.progress.stage(f"{request.source} for {name}: nothing has changed")
            try:
                _copy(kept.artifact, places[name])
            except FileNotFoundError:  # another process needed the room
                continue
            found[name] = Compiled(places[name], kept.report)
    return found


def _copy(source: Path, place: Path) -> None:
    with source.open("rb") as file, atomic_write(place) as part:
        try:
            with part.open("wb") as copy:
                shutil.copyfileobj(file, copy, 1 << 20)
        except OSError as error:
            raise OutputError(f"cannot write {place}: {error.strerror}") from error


def _keys(request: Request, store: Cache) -> dict[str, str]:
    """Return each target's key, from what files and npuc's own code hold now."""
    found = _parts(request, request.options, store)
    return {name: _hash(about) for name, about in found.items()}


def _front_key(request: Request, store: Cache) -> str:
    """Return the key of what is the same for every target: no device has a say in it."""
    options = {n: v for n, v in request.options.items() if n in _COMMON}
    about = next(iter(_parts(request, options, store).values()))
    return _hash(["front", {**about, "of": {**about["of"], "target": None}}])


def _parts(request: Request, options: Mapping[str, Any], store: Cache) -> dict[str, dict[str, Any]]:
    digests = store.digests()
    here = machine.here(digests)
    given = {n: v for n, v in options.items() if v is not None and v != ""}
    folder = Path(given.get("model_path", "."))
    found = {}
    for name in request.targets:
        model = Model(request.source, request.source, (name,), folder.absolute(), given)
        found[name] = {
            "compile": FORMAT,
            "of": identity.parts(Pair(model, name), here, digests, store.findings),
            "code": machine.now(digests),
            # Artifacts say what they were asked for, files by their names.
            "asked": [request.source, plain({n: _named(v) for n, v in given.items()})],
            "policy": plain(request.policy),
        }
    digests.save()
    return found


def _versions(store: Cache) -> str:
    """Return a hash of what computes, as it is now; of no model, option or target."""
    digests = store.digests()
    here = plain(machine.here(digests))
    code = machine.now(digests)
    digests.save()
    return _hash([FORMAT, code, {n: v for n, v in here.items() if n not in _TOOLS}])


def _hash(value: Any) -> str:
    return hashlib.sha256(canonical(value)).hexdigest()


def _named(value: Any) -> Any:
    return str(value) if isinstance(value, Path) else value


def _artifact(source: str) -> bool:
    """Whether a file is an artifact, which its vendor's compiler finishes."""
    path = Path(source)
    if source.startswith("zoo:") or not path.is_file():
        return False
    with path.open("rb") as file:
        head = file.read(64)
    return head.startswith(b"PK") and b"manifest.json" in head
