"""The keys of parity.toml that say how a model is compiled, and what its answers are held to."""

import math
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

from npuc.errors import UsageError
from npuc.facts.schema import near
from npuc.gate import tables
from npuc.gate.pairs import Hold, Metric
from npuc.gate.tables import Table, Value
from npuc.profile import Profile
from npuc.tasks.catalogue import TASKS

BARS: Mapping[str, Value] = {
    "sqnr-db": tables.number(-math.inf, math.inf),
    "max-noise": tables.number(0, math.inf, "so many noise floors", above=True),
    "cosine": tables.number(-1, 1),
    "agreement": tables.number(0, 1, "a share of samples, such as 0.99", above=True),
    "confidence": tables.number(0.5, 1 - 1e-6, "such as 0.95", above=True),
}
"""What `[hold]` takes, and `[models.NAME.hold]` and `[models.NAME.outputs.NAME]`."""

_WORDS: Mapping[str, tuple[str, Value]] = {
    "precision": ("precision", tables.text),
    "dims": ("dims", tables.sizes),
    "skip": ("skip", tables.texts),
    "rounding": ("rounding", tables.text),
    "observer": ("observer", tables.text),
    "factory": ("model", tables.text),
    "inputs": ("inputs", tables.texts),
    "opset": ("opset", tables.count),
    "eval": ("eval_mode", tables.flag),
    "trust-pickle": ("trust_pickle", tables.flag),
    "equalize": ("equalize", tables.flag),
    "correct-bias": ("correct_bias", tables.flag),
    "cpu": ("cpu", tables.text),
    "fallback": ("fallback", tables.one_of("ort")),
    "host": ("host", tables.flag),
    "on-target": ("on_target", tables.texts),
    "vendor": ("vendor", tables.one_of("use", "require", "skip")),
    "budget": ("budget", tables.number(0, math.inf, "seconds", above=True)),
    "timeout": ("timeout", tables.number(0, math.inf, "seconds", above=True)),
}
"""Key → the argument of `npuc.compile` that it is, and what it takes."""

_PATHS: Mapping[str, tuple[str, bool | None]] = {
    "samples": ("samples", None),
    "calibration": ("calibration", None),
    "reference": ("reference", None),
    "calibration-table": ("calibration_table", False),
    "model-path": ("model_path", True),
}
"""The same of paths: whether it must be a directory, a file, or either."""

FILES = tuple(argument for argument, _ in _PATHS.values())
"""The arguments that are paths: what they hold decides what comes out, not what they are called."""


def hold(table: Table) -> Hold:
    """Read a table of bars, in which nothing else may be."""
    found = {key: table.take(key, value) for key, value in BARS.items()}
    table.done()
    return Hold(**{key.replace("-", "_"): value for key, value in found.items()})


def options(table: Table, folder: Path) -> dict[str, Any]:
    """Read a model's arguments for `npuc.compile`; only those that are stated."""
    found = {a: table.take(key, value) for key, (a, value) in _WORDS.items()}
    for key, (argument, directory) in _PATHS.items():
        found[argument] = table.take(key, tables.path(folder, directory=directory))
    if found["model"] is not None:
        _factory(table, found["model"])
        found["model_path"] = found["model_path"] or folder
    return {argument: value for argument, value in found.items() if value is not None}


def _factory(table: Table, name: str) -> None:
    module, _, attribute = name.partition(":")
    if not module or not attribute:
        table.fault("factory", f"is {name!r}, not module:function")


def precisions(table: Table, precision: str | None, targets: Sequence[str]) -> None:
    """Note targets that do not have a precision, as far as their profiles are npuc's own."""
    for target in targets if precision else ():
        known = _precisions(target)
        if known and precision not in known:
            guess = near(str(precision), known)
            has = f"{target} has {', '.join(known)}"
            table.fault("precision", f"{precision!r} is not available: {has}{guess}")


def _precisions(target: str) -> tuple[str, ...]:
    """Return what a target takes; () for an adapter of someone else's, which says it itself."""
    if not (resources.files("npuc.targets") / "profiles" / f"{target}.toml").is_file():
        return ()
    known = Profile.load(target).precisions
    return (*known, "auto") if "int8" in known else known


def metric(name: str, table: Table, folder: Path, base: Hold) -> Metric | None:
    """Read a score that may not drop; None where something is wrong with it."""
    before = len(table.faults.found)
    most = table.need("max-drop", tables.number(0, math.inf), "how much the score may fall")
    function = table.take("function", tables.text, "")
    task = table.take("task", tables.one_of(*TASKS), "")
    labels = table.take("labels", tables.path(folder))
    sure = table.take("confidence", BARS["confidence"], base.sure)
    if {"function", "task"} <= set(table.data):
        table.faults.add(table.key, "has both function and task: it needs one of them")
    elif not {"function", "task"} & set(table.data):
        table.faults.add(table.key, "has neither function nor task: it needs one of them")
    corpus, span = False, (0.0, 1.0)
    settings: tuple[tuple[str, Any], ...] = ()
    if task:
        settings = _settings(table, task)
    else:
        corpus = table.take("corpus", tables.flag, False)
        span = table.take("span", tables.span, (0.0, 1.0))
    if function:
        _function(table, function, folder)
    table.done()
    if len(table.faults.found) > before:
        return None
    return Metric(name, most, function, task, labels, corpus, span, sure, settings)


def _settings(table: Table, task: str) -> tuple[tuple[str, Any], ...]:
    """Read what a task takes: names of outputs, and numbers of the kind of their defaults."""
    kinds: dict[str, Value] = {name: tables.text for name in TASKS[task].outputs}
    for name, default in TASKS[task].options.items():
        if name != "ties":  # the original's noise says what is a tie
            kinds[name] = tables.like(default)
    found = {name: table.take(name, value) for name, value in kinds.items()}
    return tuple((name, value) for name, value in found.items() if value is not None)


def _function(table: Table, function: str, folder: Path) -> None:
    from npuc.gate import functions

    try:
        functions.locate(function, folder)
    except UsageError as error:
        table.fault("function", error.message)
