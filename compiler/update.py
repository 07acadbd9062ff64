"""Record a model's answers again on the same inputs, and say what moved by how much."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import numpy as np

from npuc import inner, originals, record, stored, summary, trust
from npuc import samples as sampling
from npuc.answers import Reference, identified
from npuc.errors import UsageError
from npuc.floors import Floor, largest
from npuc.load import Loaded, load
from npuc.metrics import Difference, differences
from npuc.policy import Policy
from npuc.program import Program
from npuc.text import columns

WEIGHTS = ("sha256_weights", "sha256_onnx_weights")
"""Fingerprint entries that must be those of the model, or the reference is of another one."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What recording again found. `stale` are the reasons why the reference is out of date."""

    text: str
    stale: tuple[str, ...]


def update(
    path: Path,
    loaded: Loaded | None = None,
    *,
    inputs: Path | None = None,
    intermediates: Sequence[str] = (),
    max_bytes: int = stored.LIMIT,
    strict: bool = False,
    check: bool = False,
) -> Outcome:
    """Record the model in `path` again, or `loaded` in its place, on the recorded inputs.

    Writes the file and its summary, each as a whole or not at all; with `check` nothing. Other
    `inputs` replace the recorded ones. Raises `UsageError` where `path` holds no model and none is
    given, or the recorded inputs do not fit it.
    """
    old = stored.read(path)
    whole = _holds_model(path)
    if loaded is None and not whole:
        raise UsageError(
            f"{path} holds answers alone, without the model that gave them",
            hint=f"npuc record MODEL --update {path}",
        )
    loaded = load(path) if loaded is None else originals.exemplified(loaded, old)
    if whole and loaded.program is not None:
        raise UsageError(
            f"{path} holds a torch model; {loaded.name} is ONNX",
            hint="record its answers alone: --reference FILE",
        )
    new, lost = _again(old, loaded, inputs, tuple(intermediates), max_bytes)
    outcome = compare(path, old, new)
    outcome = replace(outcome, text="\n".join([outcome.text, *lost]))
    if check:
        return outcome
    stored.bounded(new, max_bytes)
    trust.require(new, strict)
    if whole:
        record.write(loaded.captured, new, path)
        summary.write(new, path)
    else:
        record.write_reference(new, path)
    return outcome


def _holds_model(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(2) == b"PK"


def _again(
    old: Reference, loaded: Loaded, inputs: Path | None, names: tuple[str, ...], limit: int
) -> tuple[Reference, list[str]]:
    """Answer the same calls, or other ones; also what could not be recorded again."""
    ports = record.ports_of(loaded)
    calls: Sequence[Any] = old.samples
    if inputs is not None:
        calls = sampling.load_inputs(inputs, ports)
    shapes = Program(cast(Any, None), ports, ())
    for call in (*calls, *old.calibration):
        sampling.bind_check(call, shapes)
    kept = old.intermediates[0] if old.intermediates else {}
    names = names or tuple(dict.fromkeys(n.split("@")[0].split(":")[0] for n in kept))
    lost = []
    known = inner.modules(loaded.captured.native) if names and loaded.program is None else []
    if gone := [name for name in names if name not in known]:
        lost = [f"intermediates dropped: {loaded.name} has no {', '.join(gone)}"]
        names = tuple(name for name in names if name in known)
    data = () if old.calibration is old.samples else old.calibration
    new = record.answered(loaded, calls, data, names, limit)
    about = dict(new.fingerprint)
    if inputs is None:
        about["inputs"] = old.fingerprint.get("inputs", about["inputs"])
    same = about.get("sha256_weights") == old.fingerprint.get("sha256_weights")
    if same and "seed" in old.fingerprint:
        about["seed"] = old.fingerprint["seed"]
    return identified(replace(new, fingerprint=about)), lost


def compare(path: Path, old: Reference, new: Reference) -> Outcome:
    """Say what of a reference moved, in units of its noise, and whether it is out of date.

    It is where an answer moved beyond what the policy calls noise, where weights or inputs are
    others, or where the summary beside it is of another reference. Another machine, version or
    switch is shown, and no reason by itself.
    """
    stale = _other_weights(old, new) + _other_inputs(old, new)
    outputs, moved = _outputs(old, new)
    stale += moved
    if not summary.fits(old, path):
        stale.append(f"{summary.beside(path).name} is not the summary of {path.name}")
    state = "STALE" if stale else "the same" if old.id == new.id else "up to date"
    lines = [f"{path}: {state}", columns([["id", f"{old.id[:16]} → {new.id[:16]}"], *outputs])]
    rows = [*_inside(old, new), *_noises(old, new)]
    rows += _changed(summary.fingerprint(old), summary.fingerprint(new))
    if rows:
        lines.append(columns(rows))
    lines += [f"stale: {reason}" for reason in stale]
    return Outcome("\n".join(lines), tuple(stale))


def _other_weights(old: Reference, new: Reference) -> list[str]:
    pairs = [(old.fingerprint.get(key), new.fingerprint.get(key)) for key in WEIGHTS]
    return [
        f"recorded with weights {was[:12]}, the model has {now[:12]}"
        for was, now in pairs
        if was and now and was != now
    ]


def _other_inputs(old: Reference, new: Reference) -> list[str]:
    was, now = (r.fingerprint.get("sha256_inputs") for r in (old, new))
    if was is None or was == now:
        return []
    return [f"recorded on inputs {was[:12]}, these are {str(now)[:12]}"]


def _outputs(old: Reference, new: Reference) -> tuple[list[list[str]], list[str]]:
    """Return a row for each output, and those that moved beyond noise."""
    were, are = list(old.outputs[0]), list(new.outputs[0])
    if set(were) != set(are):
        return [], [f"the outputs are {', '.join(are)}; recorded are {', '.join(were)}"]
    if _other_inputs(old, new):
        return [["outputs", "not compared: they answer other inputs"]], []
    floor = {n: largest(old.floor[n], new.floor[n]) for n in were}
    ties = max((2 * f.max_abs for f in floor.values()), default=0.0)
    bar = Policy().noise(floor)
    rows, stale = [], []
    for found in differences(old.outputs, new.outputs, ties):
        faults = bar.faults([found])
        rows.append([f"output {found.output}", _moved(found, floor[found.output])])
        stale += [f"output {fault}" for fault in faults]
    return rows, stale


def _inside(old: Reference, new: Reference) -> list[list[str]]:
    """Say which intermediates are no longer recorded, and which are new."""
    were, are = (set(r.intermediates[0]) if r.intermediates else set() for r in (old, new))
    found = (("dropped", were - are), ("added", are - were))
    return [[f"intermediates {how}", ", ".join(sorted(n))] for how, n in found if n]


def _noises(old: Reference, new: Reference) -> list[list[str]]:
    pairs = [(n, old.floor[n].max_abs, f.max_abs) for n, f in new.floor.items() if n in old.floor]
    return [
        [f"noise {name}", f"{was:.2e} → {now:.2e}"]
        for name, was, now in pairs
        if f"{was:.2e}" != f"{now:.2e}"
    ]


def _moved(found: Difference, floor: Floor) -> str:
    if found.fault:
        return found.fault
    if found.max_abs == 0:
        return "did not move"
    if found.integer:
        return (
            f"{1 - (found.agreement or 0):.2%} of its values changed, by {found.max_abs:g} at most"
        )
    unit = max(floor.max_abs, float(np.finfo(np.float32).eps) * floor.peak)
    times = f"{found.max_abs / unit:.3g} times its noise, " if unit else ""
    agree = f", agreement {found.agreement:.2%}" if found.agreement is not None else ""
    return f"moved by {found.max_abs:.3g}: {times}SQNR {found.sqnr_db:.1f} dB{agree}"


def _changed(old: Mapping[str, str], new: Mapping[str, str]) -> list[list[str]]:
    """Return fingerprint entries that differ; long hashes are cut."""
    keys = sorted({*old, *new})
    pairs = [(key, old.get(key, "-"), new.get(key, "-")) for key in keys]
    return [[key, f"{_cut(key, was)} → {_cut(key, now)}"] for key, was, now in pairs if was != now]


def _cut(key: str, value: str) -> str:
    return value[:16] if key.startswith("sha256") else value
