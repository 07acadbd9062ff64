"""The calibration table: ranges by tensor, as a file that people read, edit and use again."""

import base64
import difflib
import hashlib
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from npuc.errors import ArtifactError, UsageError
from npuc.profile import IntScheme
from npuc.quantization.channel_stats import ChannelStatistics

Array = np.ndarray[Any, Any]
Range = tuple[float, float]
FORMAT = "npuc-calibration-1"
_FIELDS = ("low", "high", "mean", "square")


@dataclass(frozen=True)
class Ranges(Mapping[str, Range]):
    """Tensor name → the (low, high) its observer chose; also what was seen, and on how much.

    `seen` holds each tensor's true minimum and maximum. A tensor is listed in both or neither.
    """

    chosen: Mapping[str, Range]
    seen: Mapping[str, Range]
    samples: int
    observer: str

    def __getitem__(self, name: str) -> Range:
        return self.chosen[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.chosen)

    def __len__(self) -> int:
        return len(self.chosen)


def packed(ranges: Ranges) -> dict[str, Array]:
    """Return ranges as one array for each tensor, and what they rest on (see `unpacked`)."""
    rows = {n: np.array([*ranges.chosen[n], *ranges.seen[n]], np.float64) for n in ranges}
    about = np.array([str(ranges.samples), ranges.observer], np.str_)
    return {**{f"tensor {name}": row for name, row in rows.items()}, "about": about}


def unpacked(arrays: Mapping[str, Array]) -> Ranges:
    """Return the ranges that `packed` wrote, to the last bit."""
    samples, observer = map(str, arrays["about"])
    rows = {n.removeprefix("tensor "): a.tolist() for n, a in arrays.items() if n != "about"}
    chosen = {name: (row[0], row[1]) for name, row in rows.items()}
    seen = {name: (row[2], row[3]) for name, row in rows.items()}
    return Ranges(chosen, seen, int(samples), observer)


@dataclass(frozen=True)
class Table:
    """What calibration found of one program for one coding.

    `coding` is what the ranges were chosen for (`coding`), `program` the fingerprint of the
    program they belong to. `channels` is what preparing that program was based on; without it the
    same weights could be prepared in another way, and the ranges would not fit. `shifts` are what
    codes of these very ranges shift each product by (see `bias_shifts`), and `shifts_of` is the
    `digest` of the ranges they were measured with.
    """

    ranges: Ranges
    coding: str
    program: str
    channels: Mapping[str, ChannelStatistics] = field(default_factory=dict)
    shifts: Mapping[str, Array] = field(default_factory=dict)
    shifts_of: str = ""

    def to_json(self) -> str:
        """Return JSON with one line for each tensor; floats keep all their digits.

        `channels` are not for editing: float64 in base64, rows low, high, mean and mean square.
        """
        ranges = self.ranges
        tensors = {
            name: {"range": list(ranges.chosen[name]), "seen": list(ranges.seen[name])}
            for name in ranges
        }
        parts = {
            "format": json.dumps(FORMAT),
            "observer": json.dumps(ranges.observer),
            "samples": json.dumps(ranges.samples),
            "coding": json.dumps(self.coding),
            "program": json.dumps(self.program),
            "tensors": _lines(tensors),
            "channels": _lines({name: _packed(item) for name, item in self.channels.items()}),
            "shifts": _lines({name: _base64(array) for name, array in self.shifts.items()}),
            "shifts_of": json.dumps(self.shifts_of),
        }
        body = ",\n".join(f" {json.dumps(key)}: {text}" for key, text in parts.items())
        return f"{{\n{body}\n}}\n"

    @classmethod
    def from_json(cls, text: str, source: str = "the table") -> "Table":
        """Read what `to_json` wrote and people edited.

        Raises `ArtifactError` listing every fault: what is no JSON, a key given twice, a range
        whose ends are not finite numbers in order, an unknown or missing entry.
        """
        faults: list[str] = []
        try:
            data = json.loads(text, object_pairs_hook=lambda pairs: _unique(pairs, faults))
        except ValueError as error:
            raise ArtifactError(f"{source} is no JSON: {error}", hint="mend that place") from error
        if not isinstance(data, dict) or data.get("format") != FORMAT:
            found = data.get("format") if isinstance(data, dict) else None
            raise ArtifactError(f"{source} has format {found!r}, expected {FORMAT!r}")
        known = ("format", "observer", "samples", "coding", "program", "tensors", "channels",
                 "shifts", "shifts_of")  # fmt: skip
        faults += _unknown("the table", data, known)
        kinds = {"observer": str, "samples": int, "coding": str, "program": str, "tensors": dict}
        for key, kind in kinds.items():
            if not isinstance(data.get(key), kind):
                faults.append(f"{key!r} is {data.get(key)!r}, expected {kind.__name__}")
        tensors, channels, moved = (_dict(data.get(k)) for k in ("tensors", "channels", "shifts"))
        chosen = {n: _range(n, t, "range", faults) for n, t in tensors.items()}
        seen = {
            n: _range(n, t, "seen", faults) if isinstance(t, dict) and "seen" in t else chosen[n]
            for n, t in tensors.items()
        }
        for name, item in tensors.items():
            faults += _unknown(f"tensor {name!r}", _dict(item), ("range", "seen"))
        stats = {n: _unpacked(n, c, faults) for n, c in channels.items()}
        shifts = {n: _shift(n, text, faults) for n, text in moved.items()}
        if faults:
            raise ArtifactError(
                f"{source} is not sound:\n  " + "\n  ".join(faults),
                hint="mend these lines, or delete the file to calibrate anew",
            )
        ranges = Ranges(chosen, seen, data["samples"], data["observer"])
        return cls(
            ranges, data["coding"], data["program"], stats, shifts, str(data.get("shifts_of", ""))
        )

    def require(self, names: Sequence[str], path: Path) -> None:
        """Raise `UsageError` listing every tensor that lacks a range, and every unknown one."""
        faults = [f"no range for tensor {name!r}" for name in names if name not in self.ranges]
        for name in self.ranges:
            if name not in names:
                near = difflib.get_close_matches(name, names, 1)
                hint = f"; is it {near[0]!r}?" if near else ""
                faults.append(f"there is no tensor {name!r} to code{hint}")
        if faults:
            raise UsageError(
                f"{path} does not fit this program:\n  " + "\n  ".join(faults),
                hint=f"mend these lines, or calibrate anew: rm {path}",
            )


def coding(scheme: IntScheme) -> str:
    """Say what ranges are chosen for: ``uint8 0..255 asymmetric``."""
    low, high = scheme.activation_range
    kind = "symmetric" if scheme.activation_symmetric else "asymmetric"
    return f"{scheme.activation_dtype} {low}..{high} {kind}"


def digest(ranges: Mapping[str, Range]) -> str:
    """Return the SHA-256 of ranges: it tells whether someone has edited them."""
    listed = [[name, *map(float, ranges[name])] for name in sorted(ranges)]
    return hashlib.sha256(json.dumps(listed).encode()).hexdigest()


def _lines(items: Mapping[str, Any]) -> str:
    """Return an object with one line for each entry."""
    if not items:
        return "{}"
    lines = (
        f"  {json.dumps(name, ensure_ascii=False)}: {json.dumps(item, allow_nan=False)}"
        for name, item in items.items()
    )
    return "{\n" + ",\n".join(lines) + "\n }"


def _unique(pairs: list[tuple[str, Any]], faults: list[str]) -> dict[str, Any]:
    keys = [key for key, _ in pairs]
    faults += [f"{key!r} is given twice" for key in dict.fromkeys(keys) if keys.count(key) > 1]
    return dict(pairs)


def _unknown(where: str, found: Mapping[str, Any], known: Sequence[str]) -> list[str]:
    faults = []
    for key in found:
        if key not in known:
            near = difflib.get_close_matches(key, known, 1)
            faults.append(f"{where} has {key!r}" + (f"; is it {near[0]!r}?" if near else ""))
    return faults


def _dict(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _range(name: str, item: Any, key: str, faults: list[str]) -> Range:
    pair = item.get(key) if isinstance(item, dict) else item
    if not isinstance(pair, list) or len(pair) != 2 or not all(map(_is_number, pair)):
        faults.append(f"tensor {name!r}: {key} is {pair!r}, expected two finite numbers")
    elif pair[0] > pair[1]:
        faults.append(f"tensor {name!r}: {key} is {pair!r}: the low end is above the high end")
    else:
        return float(pair[0]), float(pair[1])
    return 0.0, 0.0  # never used: a fault was noted


def _is_number(value: Any) -> bool:
    if not isinstance(value, int | float) or isinstance(value, bool):
        return False
    return math.isfinite(value) and abs(value) <= float(np.finfo(np.float32).max)


def _packed(item: ChannelStatistics) -> dict[str, Any]:
    rows = np.stack([getattr(item, name) for name in _FIELDS])
    return {"values": item.count, "rows": _base64(rows)}


def _base64(array: Array) -> str:
    return base64.b64encode(np.ascontiguousarray(array, "<f8").tobytes()).decode()


def _shift(name: str, text: Any, faults: list[str]) -> Array:
    try:
        array = np.frombuffer(base64.b64decode(text, validate=True), "<f8").astype(np.float64)
        if not np.isfinite(array).all():
            raise ValueError("values that are not finite")
        return array
    except (ValueError, TypeError) as error:
        faults.append(f"shifts of {name!r} are damaged: {error}")
        return np.zeros(0)


def _unpacked(name: str, item: Any, faults: list[str]) -> ChannelStatistics:
    try:
        data = base64.b64decode(item["rows"], validate=True)
        low, high, mean, square = np.frombuffer(data, "<f8").reshape(4, -1).astype(np.float64)
        count = int(item["values"])
        if count < 1 or not all(np.isfinite(row).all() for row in (low, high, mean, square)):
            raise ValueError("values that are not finite")
        return ChannelStatistics(low, high, mean, square, count)
    except (ValueError, KeyError, TypeError) as error:
        faults.append(f"channels of {name!r} are damaged: {error}")
        nothing = np.zeros(0)
        return ChannelStatistics(nothing, nothing, nothing, nothing, 0)
