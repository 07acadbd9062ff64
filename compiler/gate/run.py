"""Compile what parity.toml names, hold it to what it asks, and keep what was found."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from datetime import date
from pathlib import Path
from typing import Any

from npuc.errors import NpucError
from npuc.gate import identity, keys, machine
from npuc.gate.cache import Cache, Damaged, Kept
from npuc.gate.outcome import Outcome
from npuc.gate.pairs import Model, Pair, Spec
from npuc.gate.waive import waive
from npuc.held import Held
from npuc.progress import Progress, Silent
from npuc.report import Report

__all__ = ["Outcome", "check", "check_all", "check_pairs"]


def check(
    pair: Pair,
    cache: Cache | None = None,
    *,
    today: date | None = None,
    progress: Progress | None = None,
) -> Outcome:
    """Check one pair, or return what was found when nothing it depends on was different.

    What goes wrong is in the outcome; only a `cache` that cannot be written raises (`OutputError`).
    It is the user's own where none is given. `today` is what waivers are held against.
    """
    return check_pairs([pair], cache, today=today, progress=progress)[0]


def check_all(
    spec: Spec,
    only: Callable[[Pair], bool] | None = None,
    cache: Cache | None = None,
    *,
    today: date | None = None,
    progress: Progress | None = None,
) -> tuple[Outcome, ...]:
    """Check every pair of a file, or those that `only` chooses, in its order."""
    chosen = [pair for pair in spec.pairs() if only is None or only(pair)]
    return check_pairs(chosen, cache, today=today, progress=progress)


def check_pairs(
    pairs: Sequence[Pair],
    cache: Cache | None = None,
    *,
    today: date | None = None,
    progress: Progress | None = None,
) -> tuple[Outcome, ...]:
    """Check pairs; those of one model share the work that is the same for all targets."""
    store, shown = cache or Cache.own(), progress or Silent()
    digests = store.digests()
    here = machine.here(digests)
    known: dict[str, str] = {}
    found: dict[str, Outcome] = {}
    for pair in pairs:
        try:
            known[pair.name] = identity.key(pair, here, digests, store.findings)
        except NpucError as error:
            found[pair.name] = Outcome(pair, None, error)
    digests.save()
    for model in dict.fromkeys(pair.model for pair in pairs):
        group = [pair for pair in pairs if pair.model == model and pair.name in known]
        found |= _model(group, known, store, shown)
    day = today or date.today()
    return tuple(waive(found[pair.name], day) for pair in pairs)


def _model(
    pairs: Sequence[Pair], known: Mapping[str, str], cache: Cache, shown: Progress
) -> dict[str, Outcome]:
    """Check the pairs of one model: take what is kept, and compile all others at once."""
    found, _ = _kept(pairs, known, cache)
    if not (missing := [pair for pair in pairs if pair.name not in found]):
        return found

    def waiting(key: str) -> None:
        shown.stage(f"{pairs[0].model}: wait for another process that compiles it")

    names = [known[pair.name] for pair in missing]
    with cache.locked(names, waiting):
        again, damage = _kept(missing, known, cache)  # another process may have been faster
        found |= again
        missing = [pair for pair in missing if pair.name not in found]
        if missing:
            shown.stage(f"{pairs[0].model}: compile for {', '.join(p.target for p in missing)}")
            made = _compiled(missing, known, cache, shown)
            found |= {n: replace(o, notes=(*damage.get(n, ()), *o.notes)) for n, o in made.items()}
    if missing:
        cache.trim(list(known.values()))
    return found


def _kept(
    pairs: Sequence[Pair], known: Mapping[str, str], cache: Cache
) -> tuple[dict[str, Outcome], dict[str, tuple[str, ...]]]:
    """Return what the cache has, and notes on what it has no more."""
    found: dict[str, Outcome] = {}
    damage: dict[str, tuple[str, ...]] = {}
    for pair in pairs:
        started = time.monotonic()
        try:
            kept = cache.get(known[pair.name])
        except Damaged as error:
            damage[pair.name] = (f"the cached verdict was damaged and is made again: {error}",)
            continue
        if kept is not None:
            found[pair.name] = _outcome(pair, kept, time.monotonic() - started, cached=True)
    return found, damage


def _outcome(pair: Pair, kept: Kept, seconds: float, cached: bool) -> Outcome:
    """Name the model as parity.toml does, and what is asked by where it lies now."""
    asked = {"source": pair.of.source}
    asked |= {name: str(pair.of.options[name]) for name in keys.FILES if name in pair.of.options}
    call = {name: asked.get(name, value) for name, value in kept.report.call.items()}
    report = replace(kept.report, model=pair.model, call=call)
    return Outcome(pair, report, None, cached, kept.artifact, seconds)


def _compiled(
    pairs: Sequence[Pair], known: Mapping[str, str], cache: Cache, shown: Progress
) -> dict[str, Outcome]:
    from npuc import pipeline

    started = time.monotonic()
    model, targets = pairs[0].of, {pair.target: pair for pair in pairs}
    failed: dict[str, NpucError] = {}
    found: dict[str, Outcome] = {}
    with cache.workplace(known[pairs[0].name]) as folder:
        try:
            done = pipeline.compile(
                model.source, target=tuple(targets), output=folder, progress=shown,
                failed=failed.__setitem__, layers="failed", **_arguments(model, pairs[0].strict),
            )  # fmt: skip
        except NpucError as error:
            failed, done = dict.fromkeys(targets, error), []
        seconds = (time.monotonic() - started) / len(pairs)
        for compiled in done:
            pair = targets[compiled.report.target]
            report = _judged(compiled.report, model)
            kept = cache.put(known[pair.name], report, Path(compiled.artifact_path))
            found[pair.name] = _outcome(pair, kept, seconds, cached=False)
    for target, fault in failed.items():
        found[targets[target].name] = Outcome(targets[target], None, fault, seconds=seconds)
    return found


def _arguments(model: Model, strict: bool) -> dict[str, Any]:
    from npuc.gate.policies import policy

    options = dict(model.options)
    if "model_path" in options:
        options["model_path"] = str(options["model_path"])
    return {**options, "policy": policy(model), **({"strict": True} if strict else {})}


def _judged(report: Report, model: Model) -> Report:
    """Say of what is asked of an artifact that was not run that nobody looked; that is no pass."""
    from npuc.gate.policies import policy

    unrun = [row for row in report.rows if row.stage == "artifact" and row.state == "not run"]
    demands = policy(model).demands
    if not unrun or not demands:
        return report
    text = f"what parity.toml asks was not looked at: {unrun[0].note}"
    nan = float("nan")
    return replace(report, held=(*report.held, Held("demands", "", "not run", text, nan, nan)))
