"""What an artifact says about itself: `manifest.json`, written canonically and read strictly."""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from typing import Any, TypeVar

from npuc.errors import ArtifactError
from npuc.jsonable import canonical, plain
from npuc.program import Port, Refusal, Step

FORMAT = 1
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Member:
    """One file in an artifact: its SHA-256 (hex) and size in bytes."""

    sha256: str
    size: int


@dataclass(frozen=True, slots=True)
class Manifest:
    """All an artifact says about itself. Steps carry no times, which would differ between runs.

    `evidence` is one of `npuc.targets.base.Evidence`; `vendor` says in one line what the vendor's
    compiler did; `placement` maps operator kinds to where they run; `settings` is the target's own.
    """

    target: str
    precision: str
    evidence: str
    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]
    vendor: str = ""
    toolchain: Mapping[str, str] = field(default_factory=dict)
    steps: tuple[Step, ...] = ()
    placement: Mapping[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    settings: Mapping[str, Any] = field(default_factory=dict)
    members: Mapping[str, Member] = field(default_factory=dict)
    npuc: str = ""
    format: int = FORMAT

    def encode(self) -> bytes:
        """Return the canonical JSON: keys sorted, ASCII, one spelling for one content."""
        data = {f.name: plain(getattr(self, f.name)) for f in fields(self)}
        for step in data["steps"]:
            del step["seconds"]
        return canonical(data)

    @classmethod
    def decode(cls, raw: bytes) -> "Manifest":
        """Read `encode`'s bytes; raises `ArtifactError` with every fault where they are not."""
        data = _parse(raw)
        number = data.get("format")
        if number != FORMAT:
            raise ArtifactError(
                f"unknown artifact format {number!r}; this npuc reads format {FORMAT}",
                hint=f"use npuc {data.get('npuc', '')}, which wrote it, or compile again",
            )
        faults = [f"unknown key {k!r}" for k in data if k not in _CHECKS]
        values: dict[str, Any] = {}
        for key, check in _CHECKS.items():
            try:
                values[key] = check(data[key])
            except KeyError as error:
                faults.append(f"{key}: {error} is missing")
            except (TypeError, ValueError) as error:
                faults.append(f"{key}: {error}")
        if faults:
            raise ArtifactError("manifest.json is malformed:\n  " + "\n  ".join(faults))
        if canonical(data) != raw:
            raise ArtifactError("manifest.json is not in canonical form (repeated keys, spacing)")
        return cls(**values)


def _parse(raw: bytes) -> dict[str, Any]:
    try:
        data = json.loads(raw)
    except (ValueError, RecursionError) as error:
        raise ArtifactError(f"manifest.json is not JSON: {error}") from error
    if not isinstance(data, dict):
        raise ArtifactError(f"manifest.json holds a {type(data).__name__}, not an object")
    return data


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{value!r} is not a string")
    return value


def _count(value: Any) -> int:
    if type(value) is not int or value < 0:
        raise TypeError(f"{value!r} is not a count")
    return value


def _object(value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise TypeError(f"{value!r} is not an object")
    return value


def _texts(value: Any) -> dict[str, str]:
    return {k: _text(v) for k, v in _object(value).items()}


def _each(check: Callable[[Any], T]) -> Callable[[Any], tuple[T, ...]]:
    def checked(value: Any) -> tuple[T, ...]:
        if not isinstance(value, list):
            raise TypeError(f"{value!r} is not a list")
        return tuple(check(item) for item in value)

    return checked


def _exactly(value: Any, *keys: str) -> dict[str, Any]:
    if set(_object(value)) != set(keys):
        raise ValueError(f"needs exactly {', '.join(keys)}; has {', '.join(value)}")
    return _object(value)


def _port(value: Any) -> Port:
    data = _exactly(value, "name", "dtype", "shape")
    shape = _each(lambda dim: dim if isinstance(dim, str) else _count(dim))(data["shape"])
    return Port(_text(data["name"]), _text(data["dtype"]), shape)


def _refusal(value: Any) -> Refusal:
    data = _exactly(value, "node", "reason")
    return Refusal(_text(data["node"]), _text(data["reason"]))


def _step(value: Any) -> Step:
    data = _exactly(value, "name", "options", "changes", "refusals", "rolled_back")
    refusals = _each(_refusal)(data["refusals"])
    name, options, changes = _text(data["name"]), _object(data["options"]), _count(data["changes"])
    return Step(name, options, changes, refusals, rolled_back=_text(data["rolled_back"]))


def _members(value: Any) -> dict[str, Member]:
    members = {}
    for path, raw in _object(value).items():
        data = _exactly(raw, "sha256", "size")
        digest = _text(data["sha256"])
        if len(digest) != 64 or set(digest) - set("0123456789abcdef"):
            raise ValueError(f"{path}: {digest!r} is not a SHA-256")
        members[path] = Member(digest, _count(data["size"]))
    return members


_CHECKS: Mapping[str, Callable[[Any], Any]] = {
    "format": _count,
    "npuc": _text,
    "target": _text,
    "precision": _text,
    "evidence": _text,
    "vendor": _text,
    "toolchain": _texts,
    "inputs": _each(_port),
    "outputs": _each(_port),
    "steps": _each(_step),
    "placement": _texts,
    "notes": _each(_text),
    "settings": _object,
    "members": _members,
}
