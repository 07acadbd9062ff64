"""What a caller asked of a function, so that a report can say how to do the same again."""

import inspect
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

IN_MEMORY = "given in memory"
"""What stands for arrays, modules and iterables, which no report can hold."""


def asked(
    function: Callable[..., Any], given: Mapping[str, Any], without: str = ""
) -> dict[str, Any]:
    """Return the arguments that differ from the function's defaults, in JSON types.

    `given` are all arguments by name; those named in `without` are left out.
    """
    parameters = inspect.signature(function).parameters.values()
    return {
        p.name: _plain(given[p.name])
        for p in parameters
        if p.name not in without.split() and not _same(given[p.name], p.default)
    }


def _same(value: Any, default: Any) -> bool:
    # By type first: comparing arrays or modules with a default has no single answer.
    if value is default or (type(value) is type(default) and bool(value == default)):
        return True
    return default is None and type(value) is dict and not value


def _plain(value: Any) -> Any:
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, Mapping) and all(isinstance(v, int | str) for v in value.values()):
        return dict(value)
    if isinstance(value, list | tuple) and all(isinstance(item, str) for item in value):
        return list(value)
    return value if isinstance(value, str | int | float | bool) else IN_MEMORY
