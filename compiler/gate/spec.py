"""Read a parity.toml, or make the same of a model on the command line.

::

    version = 1
    strict = false                      # refuse references that are in doubt

    [hold]                              # bars for all; what is not stated has npuc's default
    sqnr-db = 20

    [models.digits]                     # most files hold this alone
    file = "model.pt"                   # or zoo:NAME; relative to this file
    targets = ["cpu", "atom"]           # or "all"

    [models.digits.outputs.logits]      # bars for one output
    agreement = 0.99

    [models.digits.metrics.accuracy]    # a score that may not drop
    function = "evaluate:accuracy"      # or task = "classification"
    labels = "labels.npz"
    max-drop = 0.01

    [[waivers]]                         # what is known to fail, and until when
    model = "digits"
    target = "atom"
    check = "agreement"
    reason = "fixed in the compiler's next release"
    expires = 2027-01-31
"""

import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path

from npuc import plugins
from npuc.errors import UsageError
from npuc.facts.schema import near
from npuc.gate import places, tables
from npuc.gate.keys import BARS, hold, metric, options, precisions
from npuc.gate.pairs import Hold, Model, Pair, Spec, Waiver
from npuc.gate.tables import Faults, Table

__all__ = ["FILE", "Pair", "Spec", "read", "single"]

FILE = "parity.toml"
VERSION = 1
ZOO = "zoo:"


def read(path: Path) -> Spec:
    """Read a parity.toml; raises `UsageError` with every fault there is and its line."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
        raise UsageError(f"cannot read {path}: {why}", hint=_START) from error
    try:
        data = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise UsageError(f"{path} is not valid TOML: {error}") from error
    faults = Faults(places.lines(text))
    found = _spec(path, Table(data, "", faults))
    if listed := faults.listed():
        raise UsageError(f"{path} cannot be used:\n  " + "\n  ".join(listed))
    return found


_START = (
    'write it: [models.NAME] with file = "model.pt" and targets = ["cpu"]; or without one: '
    "npuc gate model.pt --target cpu"
)


def single(sources: Sequence[str], targets: Sequence[str]) -> Spec:
    """Return the gate of some models with npuc's defaults, for no parity.toml at all.

    Raises `UsageError` where a file or a target is not there.
    """
    models, faults = [], []
    for source in sources:
        if not source.startswith(ZOO) and not Path(source).is_file():
            faults.append(f"there is no file {source}")
        name = source.removeprefix(ZOO) if source.startswith(ZOO) else Path(source).stem
        models.append(Model(name, source, tuple(targets), Path()))
    names = [model.name for model in models]
    faults += [f"{name} names two models" for name in dict.fromkeys(names) if names.count(name) > 1]
    faults += [f"unknown target {t!r}{near(t, plugins.names())}" for t in targets if not _there(t)]
    if faults:
        raise UsageError("\n".join(faults), hint="npuc gate MODEL --target NAME[,NAME]")
    return Spec(None, tuple(models))


def _there(target: str) -> bool:
    return target in plugins.names()


def _spec(path: Path, top: Table) -> Spec:
    folder = path.parent
    version = top.need("version", tables.count, f"version = {VERSION}")
    if version not in (None, VERSION):
        top.fault("version", f"is {version}; this npuc reads {VERSION}")
    strict = top.take("strict", tables.flag, False)
    base = hold(top.table("hold"))
    found = [_model(name, table, folder, base) for name, table in top.tables("models").items()]
    if not found:
        top.faults.add("", "needs a model: [models.NAME]")
    waivers = _waivers(top, found)
    top.done()
    return Spec(path, tuple(found), waivers, bool(strict))


def _model(name: str, table: Table, folder: Path, base: Hold) -> Model:
    if not name or "::" in name or not name.isprintable():
        table.faults.add(table.key, f"{name!r} cannot name a model")
    source = table.need("file", tables.path(folder, within=[ZOO]))
    targets = _targets(table)
    given = options(table, folder)
    precisions(table, given.get("precision"), targets)
    own = hold(table.table("hold")).over(base)
    outputs = {key: hold(inner) for key, inner in table.tables("outputs").items()}
    scores = [metric(key, t, folder, own) for key, t in table.tables("metrics").items()]
    depends = table.take("depends", tables.paths(folder), ())
    table.done()
    return Model(
        name, str(source or ""), targets, folder, given, own, outputs,
        tuple(score for score in scores if score is not None), depends,
    )  # fmt: skip


def _targets(table: Table) -> tuple[str, ...]:
    known = plugins.names()
    named = table.need("targets", tables.texts, f'such as ["cpu"]; there are {", ".join(known)}')
    if named is None:
        return ()
    if named == ("all",):
        return known
    if not named:
        table.fault("targets", "is empty")
    for target in named:
        if target not in known:
            table.fault("targets", f"unknown target {target!r}{near(target, known)}")
    return tuple(named)


def _waivers(top: Table, models: Sequence[Model]) -> tuple[Waiver, ...]:
    top.known.append("waivers")
    listed = top.data.get("waivers", [])
    if not isinstance(listed, list):
        top.fault("waivers", "is no array of tables: write [[waivers]]")
        return ()
    known = {model.name: model for model in models}
    found = [_waiver(Table(d, f"waivers.{n}", top.faults), known) for n, d in enumerate(listed, 1)]
    kept = [waiver for waiver in found if waiver is not None]
    seen: set[tuple[str, str, str, str]] = set()
    for number, waiver in enumerate(kept, 1):
        key = (waiver.model, waiver.target, waiver.check, waiver.output)
        if key in seen:
            top.faults.add(f"waivers.{number}", f"waives {', '.join(filter(None, key))} again")
        seen.add(key)
    return tuple(kept)


def _waiver(table: Table, models: Mapping[str, Model]) -> Waiver | None:
    names = ("model", "target", "check")
    model, target, check = (table.need(name, tables.text) for name in names)
    reason = table.need("reason", tables.text, "why this failure is to be borne")
    expires = table.need("expires", tables.day, "the last day that it holds, such as 2027-01-31")
    output = table.take("output", tables.text, "")
    table.done()
    if model is not None and model not in models:
        table.fault("model", f"stale waiver: there is no model {model!r}{near(model, models)}")
    elif model is not None and target is not None and target not in models[model].targets:
        listed = ", ".join(models[model].targets)
        table.fault("target", f"stale waiver: {model} is not held on {target!r}, but on {listed}")
    elif model is not None and check is not None and (why := _unasked(check, models[model])):
        table.fault("check", f"stale waiver: {why}")
    if model is None or target is None or check is None or reason is None or expires is None:
        return None
    return Waiver(model, target, check, reason, expires, output)


def _unasked(check: str, model: Model) -> str:
    """Say that a demand is not made; stages of the report are known only once there is one."""
    every = [key for key in BARS if key != "confidence"]
    stated = (model.hold, *model.outputs.values())
    asked = [k for k in every if any(getattr(b, k.replace("-", "_")) is not None for b in stated)]
    asked += [f"metric.{score.name}" for score in model.metrics]
    if check in asked or not (check in every or check.startswith("metric.")):
        return ""
    return f"{model.name} is not held to {check}; it is held to {', '.join(asked) or 'defaults'}"
