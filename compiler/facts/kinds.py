"""Kinds of values that a profile's facts have: what each is in words, and how it is recognised."""

import re
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any

from npuc.facts.onnx_kinds import KINDS


@dataclass(frozen=True, slots=True)
class Kind:
    """A kind of value: what it is, in words, and whether a value is one."""

    words: str
    holds: Callable[[Any], bool]


def _whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def is_number(value: Any) -> bool:
    return isinstance(value, float) or _whole(value)


def _text(value: Any) -> bool:
    return isinstance(value, str) and value.strip() == value != ""


def is_list(value: Any, entry: Callable[[Any], bool]) -> bool:
    """Whether a value is a list, not empty, of different entries."""
    if not isinstance(value, list) or not value or not all(map(entry, value)):
        return False
    return len({str(item) for item in value}) == len(value)


def named(names: Collection[str]) -> Kind:
    return Kind(f"one of {', '.join(sorted(names))}", lambda v: isinstance(v, str) and v in names)


def some_of(names: Collection[str]) -> Kind:
    return Kind(
        f"a list of different names among {', '.join(sorted(names))}",
        lambda v: is_list(v, lambda name: isinstance(name, str) and name in names),
    )


def between(low: int, high: int) -> Kind:
    return Kind(
        f"a whole number from {low} to {high}", lambda v: _whole(v) and bool(low <= v <= high)
    )


def _float_format(value: Any) -> bool:
    """Exponents that NumPy's float32 can hold, so that the twin can round to the format."""
    if not is_list([value], lambda v: isinstance(v, list) and len(v) == 2 and all(map(_whole, v))):
        return False
    exponent, mantissa = value
    return bool(2 <= exponent <= 8 and 1 <= mantissa <= 23)


def _scales(value: Any) -> bool:
    if not isinstance(value, dict) or not value or not set(value) <= KINDS:
        return False
    return all(is_number(scale) and 0 < scale < float("inf") for scale in value.values())


def _watts(value: Any) -> bool:
    pair = isinstance(value, list) and len(value) == 2
    low: Any
    high: Any
    low, high = value if pair else (value, value)
    return is_number(low) and is_number(high) and bool(0 < low <= high < float("inf"))


def _pin(value: Any) -> bool:
    return (
        _text(value) and re.fullmatch(r"[A-Za-z0-9._-]+(\[[a-z,]+\])?==[^=\s*]+", value) is not None
    )


def _python(value: Any) -> bool:
    bound = r"(>=|<=|==|<|>|!=)3(\.\d+)*"
    return _text(value) and re.fullmatch(f"{bound}(,{bound})*", value) is not None


FLAG = Kind("true or false", lambda v: isinstance(v, bool))
TEXT = Kind("a text without blanks around it", _text)
TEXTS = Kind("a list of different texts", lambda v: is_list(v, _text))
POSITIVE = Kind("a number above 0", lambda v: is_number(v) and bool(0 < v < float("inf")))
COUNT = Kind("a whole number above 0", lambda v: _whole(v) and bool(v > 0))
OPERATORS = Kind(
    "a list of different ONNX operators",
    lambda v: is_list(v, lambda name: isinstance(name, str) and name in KINDS),
)
SCALES = Kind("a table from ONNX operator to a scale above 0", _scales)
CODE_RANGE = Kind(
    "[low, high], two whole numbers with low < high",
    lambda v: isinstance(v, list) and len(v) == 2 and all(map(_whole, v)) and bool(v[0] < v[1]),
)
FORMATS = Kind(
    "a list of [exponent bits 2 to 8, mantissa bits 1 to 23]", lambda v: is_list(v, _float_format)
)
WATTS = Kind("a number above 0, or [low, high] of them", _watts)
TOLERANCE = Kind(
    "a table with atol and rtol",
    lambda v: (
        isinstance(v, dict) and set(v) == {"atol", "rtol"} and all(map(is_number, v.values()))
    ),
)
NAMED_FILES = Kind("a text, or a list of different texts", lambda v: _text(v) or is_list(v, _text))
SHARE = Kind("from 0 to 1", lambda v: is_number(v) and bool(0 <= v <= 1))
PERCENT = Kind("above 50 and at most 100", lambda v: is_number(v) and bool(50 < v <= 100))
PINS = Kind("a list of different pins, each NAME==VERSION", lambda v: is_list(v, _pin))
PYTHON = Kind('bounds like ">=3.10,<3.14"', _python)
