"""JSON Schemas (draft 2020-12) of what npuc prints as JSON, made from the dataclasses themselves.

The files beside this module are what others validate with; a test keeps the two the same.
"""

import inspect
import json
from collections.abc import Mapping, Sequence
from dataclasses import fields, is_dataclass
from importlib.resources import files
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from npuc.layers.found import Layers
from npuc.outlets.entry import State
from npuc.report import SCHEMA, Report

DIALECT = "https://json-schema.org/draft/2020-12/schema"
GATE, COMPILED = "npuc-gate-1", "npuc-compiled-1"

Json = dict[str, Any]

_NUMBER: Json = {
    "description": "A number; JSON has none for what is not finite, which stands as its name.",
    "anyOf": [{"type": "number"}, {"enum": ["nan", "inf", "-inf"]}],
}
_PLAIN: Mapping[Any, Json] = {
    str: {"type": "string"},
    bool: {"type": "boolean"},
    int: {"type": "integer"},
    float: {"$ref": "#/$defs/number"},
    NoneType: {"type": "null"},
    Any: {},
}


def read(name: str) -> Json:
    """Return the committed schema of a document: `report.SCHEMA`, `GATE` or `COMPILED`."""
    found: Json = json.loads(files("npuc.outlets").joinpath(f"{name}.json").read_text("utf-8"))
    return found


def made() -> dict[str, Json]:
    """Return the schema of every document by its name."""
    kinds = {SCHEMA: _report, GATE: _gate, COMPILED: _compiled}
    return {name: _document(name, make) for name, make in kinds.items()}


def hints(kind: type) -> dict[str, Any]:
    """Return the types of a dataclass's fields; a report names its layers for type checking."""
    found = get_type_hints(kind, localns={"Layers": Layers})
    return {item.name: found[item.name] for item in fields(kind)}


def _document(name: str, make: Any) -> Json:
    known: dict[str, Json] = {"number": _NUMBER}
    body = make(known)
    head = {"$schema": DIALECT, "$id": f"urn:npuc:{name}", "title": name}
    return {**head, **body, "$defs": dict(sorted(known.items()))}


def _gate(known: dict[str, Json]) -> Json:
    pair = {
        **{name: {"type": "string"} for name in ("name", "model", "target", "source", "error")},
        "state": {"enum": list(get_args(State))},
        "exit_code": {"type": "integer"},
        "cached": {"type": "boolean"},
        **{name: {"type": "array", "items": {"type": "string"}} for name in ("waivers", "notes")},
        "seconds": {"type": "number"},
        "report": {"anyOf": [_report(known), {"type": "null"}]},
    }
    return _object(
        {
            "schema": {"const": GATE},
            "passed": {"type": "boolean"},
            "exit_code": {"type": "integer"},
            "pairs": {"type": "array", "items": _object(pair)},
        },
        "What `npuc gate --json` prints: every pair of a model and a target.",
    )


def _compiled(known: dict[str, Json]) -> Json:
    report = _report(known)
    report["properties"] = {"artifact": {"type": "string"}, **report["properties"]}
    report["required"] = ["artifact", *report["required"]]
    error = _object({"exit_code": {"type": "integer"}, "error": {"type": "string"}})
    found = _object(
        {
            "schema": {"const": COMPILED},
            "compiled": {"type": "array", "items": report},
            "failed": {"type": "object", "additionalProperties": error},
        },
        "What `npuc compile --json` prints. `failed` has targets that ended with an error.",
    )
    return {**found, "required": ["schema", "compiled"]}


def _report(known: dict[str, Json]) -> Json:
    """Return the schema of `Report.to_json`: its fields, its name, and what it comes to."""
    of = _fields(Report, known)
    about = {"schema": {"const": SCHEMA}, "passed": {"type": "boolean"}}
    return _object({**about, "exit_code": {"type": "integer"}, **of}, _said(Report))


def _object(properties: Json, description: str = "") -> Json:
    about: Json = {"description": description} if description else {}
    return {
        **about, "type": "object", "properties": properties, "required": list(properties),
        "additionalProperties": False,
    }  # fmt: skip


def _fields(kind: type, known: dict[str, Json]) -> Json:
    return {name: _of(hint, known) for name, hint in hints(kind).items()}


def _of(hint: Any, known: dict[str, Json]) -> Json:
    """Return the schema of one type, and that of the dataclasses in it in `known`."""
    if hint in _PLAIN:
        return dict(_PLAIN[hint])
    origin, parts = get_origin(hint), get_args(hint)
    if origin in (Union, UnionType):
        return {"anyOf": [_of(part, known) for part in parts]}
    if origin is Literal:
        return {"enum": list(parts)}
    if origin is Mapping:
        return {"type": "object", "additionalProperties": _of(parts[1], known)}
    if origin is frozenset or (origin in (tuple, Sequence) and parts[1:] in ((), (...,))):
        return {"type": "array", "items": _of(parts[0], known)}
    if is_dataclass(hint) and isinstance(hint, type):
        return _named(hint, known)
    raise TypeError(f"{hint!r} has no schema: say in {__name__} how it is written")


def _named(kind: type, known: dict[str, Json]) -> Json:
    name = f"{kind.__module__.removeprefix('npuc.')}.{kind.__name__}"
    if name not in known:
        known[name] = {}  # a type that holds itself is a reference as well
        of = _fields(kind, known)
        of = {**of, **_ESTIMATE[name](known)} if name in _ESTIMATE else of
        known[name] = _object(of, _said(kind))
    return {"$ref": f"#/$defs/{name}"}


_ESTIMATE = {
    "estimate.Estimate": lambda known: {
        "schema": {"const": "npuc-estimate-1"},
        "bound_seconds": _of(float | None, known),
        "operations": {"type": "integer"},
        "bytes": {"type": "integer"},
        "assumptions": {"type": "array", "items": {"type": "string"}},
    },
    "estimate.Layer": lambda known: {
        "seconds": _of(float | None, known),
        "limit": {"enum": ["", "compute", "memory"]},
    },
}
"""What `Estimate.to_json` says beside its fields."""


def _said(kind: type) -> str:
    return " ".join((inspect.getdoc(kind) or "").split())
