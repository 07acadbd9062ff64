"""The key of a verdict: all that decides what a compile gives and how it is judged."""

import hashlib
import mmap
import re
from dataclasses import asdict
from pathlib import Path
from typing import Any

from npuc.gate import functions, keys, machine
from npuc.gate.digests import Digests
from npuc.gate.machine import Machine
from npuc.gate.pairs import Metric, Model, Pair
from npuc.jsonable import canonical, plain

FORMAT = 1
"""Counts changes of what an entry of the cache holds that npuc's own files do not show."""

_LOCATION = re.compile(rb"\n\x08location\x12")
"""How ONNX spells the key of an external file (StringStringEntryProto), before its name."""


def key(pair: Pair, here: Machine, digests: Digests, findings: Path | None = None) -> str:
    """Return a pair's key; raises `NpucError` where what it depends on is not there."""
    return hashlib.sha256(canonical(parts(pair, here, digests, findings))).hexdigest()


def parts(
    pair: Pair, here: Machine, digests: Digests, findings: Path | None = None
) -> dict[str, Any]:
    """Return what the key is made of, in JSON types.

    Contents count, not where they lie: the same files in another folder have the same key. Waivers
    and dates are applied to a verdict, and are no part of it.
    """
    model = pair.of
    return {
        "format": FORMAT,
        "npuc": here.npuc,
        "python": here.python,
        "platform": here.platform,
        "versions": dict(here.versions),
        "cpu": here.cpu,
        "variables": dict(here.variables),
        "source": _source(model, digests),
        "options": {name: _option(name, value, digests) for name, value in model.options.items()},
        "strict": pair.strict,
        "hold": plain(asdict(model.hold)),
        "outputs": plain({name: asdict(bars) for name, bars in model.outputs.items()}),
        "order": list(model.outputs),
        "metrics": [_metric(score, digests) for score in model.metrics],
        "depends": [digests.of(path) for path in model.depends],
        "code": _code(model, here, digests),
        "target": {
            "name": pair.target,
            "adapter": machine.adapter(pair.target, digests),
            "finding": machine.finding(pair.target, here, digests, findings),
        },
    }


def _source(model: Model, digests: Digests) -> Any:
    if model.path is None:
        return model.source
    found: dict[str, Any] = {"suffix": model.path.suffix, "content": digests.of(model.path)}
    if model.path.suffix == ".onnx":
        names = digests.once(model.path, "externals", _externals).split("\0")
        files = [model.path.parent / name for name in names if name]
        found["externals"] = {
            name: digests.of(file) if file.is_file() else "missing"
            for name, file in zip(filter(None, names), files, strict=True)
        }
    return found


def _externals(path: Path) -> str:
    """Find the files that hold an ONNX model's weights, without a library that reads ONNX."""
    found: set[str] = set()
    with path.open("rb") as file:
        if not path.stat().st_size:
            return ""
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            for match in _LOCATION.finditer(data):
                size, at, shift = 0, match.end(), 0
                while at < len(data):
                    byte = data[at]
                    size, at, shift = size | (byte & 0x7F) << shift, at + 1, shift + 7
                    if byte < 0x80 or shift > 28:
                        break
                if 0 < size < 4096:  # the longest path there can be
                    found.add(data[at : at + size].decode("utf-8", "replace").replace("\0", ""))
    return "\0".join(sorted(found))


def _option(name: str, value: Any, digests: Digests) -> Any:
    if name == "model_path":  # `_code` has what is in it
        return None
    if name in keys.FILES:
        return [Path(value).suffix, digests.of(Path(value))]
    return plain(value)


def _metric(score: Metric, digests: Digests) -> dict[str, Any]:
    labels = None if score.labels is None else digests.of(score.labels)
    return {**plain(asdict(score)), "labels": labels}


def _code(model: Model, here: Machine, digests: Digests) -> list[str]:
    """Hash all Python that the user's code may import, where any of it runs; and all packages."""
    found: list[str] = []
    for score in model.metrics:
        if score.function:
            functions.locate(score.function, model.folder)
            found.append(digests.of(model.folder, ".py"))
    options = model.options
    if options.get("model") or options.get("trust_pickle"):
        found.append(digests.of(Path(options.get("model_path", model.folder)), ".py"))
    if factory := str(options.get("model", "")):
        found.append(machine.module(factory.partition(":")[0], digests))
    return [*found, here.packages] if found else []
