"""Values as JSON: what has no exact JSON form is refused, and equal values give equal bytes."""

import json
import math
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from pathlib import PurePath
from typing import Any


def canonical(data: Mapping[str, Any]) -> bytes:
    """Return JSON with exactly one spelling: sorted keys, ASCII, one-space indent, newline."""
    text = json.dumps(data, sort_keys=True, indent=1, ensure_ascii=True, allow_nan=False)
    return text.encode("ascii") + b"\n"


def plain(value: object) -> Any:
    """Turn a value into JSON types; raises `TypeError` for what has no exact JSON form.

    Sets become sorted lists, dataclasses objects, numpy scalars numbers; a non-finite float
    becomes its name, since JSON has no number for it.
    """
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if value is None or type(value) in (bool, int, float, str):
        return value
    if is_dataclass(value) and not isinstance(value, type):
        return {f.name: plain(getattr(value, f.name)) for f in fields(value)}
    if isinstance(value, Mapping):
        return {_key(k): plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, set | frozenset):
        return sorted((plain(item) for item in value), key=lambda item: json.dumps(item))
    if isinstance(value, str | PurePath):
        return str(value)
    item = getattr(value, "item", None)
    if callable(item) and getattr(value, "ndim", None) == 0:
        return plain(item())
    raise TypeError(f"{type(value).__name__} {value!r} cannot be written as JSON")


def _key(key: object) -> str:
    if not isinstance(key, str):
        raise TypeError(f"key {key!r} cannot be written as JSON: it is not a string")
    return key
