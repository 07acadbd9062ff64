"""Read a report back from its JSON: what a cache, an artifact or another machine kept."""

import math
from collections.abc import Mapping
from dataclasses import is_dataclass
from functools import cache
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin

from npuc.errors import UsageError
from npuc.outlets.schema import hints
from npuc.report import SCHEMA, Report

_ODD = ("nan", "inf", "-inf")


def report(data: Any) -> Report:
    """Return the report that `Report.to_json` wrote, equal to it field by field.

    Raises `UsageError` where it is of another version, or not what the schema says.
    """
    version = data.get("schema") if isinstance(data, Mapping) else None
    if version != SCHEMA:
        raise UsageError(
            f"a report of this npuc says {SCHEMA!r}, this says {version!r}",
            hint="write it again with this npuc: npuc compile … --json, npuc verify … --json",
        )
    try:
        found = _build(Report, data)
    except (KeyError, TypeError, ValueError) as error:
        raise UsageError(f"not a report of npuc ({SCHEMA}): {error!r}") from error
    assert isinstance(found, Report)
    return found


@cache
def _fields(kind: type) -> Mapping[str, Any]:
    return hints(kind)


def _build(hint: Any, value: Any) -> Any:
    """Return a value of a type from its JSON; raises where it does not fit."""
    if hint is Any:
        return value
    if hint is float:
        return _number(value)
    if hint in (str, bool, int, NoneType):
        return _exactly(hint, value)
    origin, parts = get_origin(hint), get_args(hint)
    if origin in (Union, UnionType):
        return None if value is None and NoneType in parts else _first(parts, value)
    if origin is Literal:
        if value not in parts:
            raise ValueError(f"{value!r} is none of {parts}")
        return value
    if is_dataclass(hint) and isinstance(hint, type):
        return hint(**{name: _build(of, value[name]) for name, of in _fields(hint).items()})
    if origin is Mapping:
        return {str(key): _build(parts[1], item) for key, item in value.items()}
    found = [_build(parts[0], item) for item in _exactly(list, value)]
    return frozenset(found) if origin is frozenset else tuple(found)


def _number(value: Any) -> float:
    if isinstance(value, str) and value in _ODD:
        return float(value)
    if isinstance(value, bool) or not isinstance(value, int | float) or math.isnan(value):
        raise TypeError(f"{value!r} is no number")
    return float(value)


def _exactly(kind: Any, value: Any) -> Any:
    if type(value) is not kind:
        raise TypeError(f"{value!r} is no {kind.__name__}")
    return value


def _first(parts: tuple[Any, ...], value: Any) -> Any:
    """Return the value as the first type that takes it."""
    for part in parts[:-1]:
        try:
            return _build(part, value)
        except (KeyError, TypeError, ValueError):  # the next one may
            continue
    return _build(parts[-1], value)
