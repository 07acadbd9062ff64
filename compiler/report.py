"""What was compared with what, by how much it differs, and whether that is good enough."""

import math
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from npuc.errors import UNDECIDED, ParityError
from npuc.estimate import Estimate
from npuc.held import Held
from npuc.metrics import Difference
from npuc.mixed.outcome import Mixed
from npuc.partition import HOST, Crossing
from npuc.policy import Bar
from npuc.text import size

if TYPE_CHECKING:
    from npuc.layers.measure import Layers

SCHEMA = "npuc-report-2"

LOWERED = "against its program: "
"""How a fault begins that lowering is to blame for, not what came before it."""


@dataclass(frozen=True, slots=True)
class Row:
    """One stage: its distance from the original, and the comparison it was held to.

    `original` is against the original's answers, `step` against the stage before (empty where
    that is the original). `held` is "original", "step" or "both": the artifact is held to `bar`
    against the original, and against its program to what lowering may do (`Policy.lowering`).
    `faults` are the ways it misses the bar; `state` is "ok", "failed", "rolled back", or "shown"
    where no bar applies.
    """

    stage: str
    state: str
    original: tuple[Difference, ...]
    step: tuple[Difference, ...] = ()
    held: str = "original"
    bar: Bar | None = None
    faults: tuple[str, ...] = ()
    calls: int = 0
    sizes: int = 1
    changes: int | None = None
    note: str = ""


@dataclass(frozen=True, slots=True)
class Report:
    """Parity of one artifact, stage by stage. `evidence` grades what the last rows rest on.

    `held` is what the policy asked beside the stages' bars. `call` are the arguments of
    `npuc.compile` that differ from its defaults, in JSON types, to do the same again.
    """

    model: str
    target: str
    precision: str
    evidence: str
    vendor: str
    reference: str
    rows: tuple[Row, ...]
    assumed: Mapping[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    dims: Mapping[str, int] = field(default_factory=dict)
    placement: Mapping[str, str] = field(default_factory=dict)
    crossings: tuple[Crossing, ...] = ()
    estimate: Estimate | None = None
    mixed: Mixed | None = None
    layers: "Layers | None" = None
    fingerprint: Mapping[str, Any] = field(default_factory=dict)
    held: tuple[Held, ...] = ()
    call: Mapping[str, Any] = field(default_factory=dict)

    @property
    def failures(self) -> tuple[Row, ...]:
        """Rows that miss their bar; rolled back steps are no failure."""
        return tuple(row for row in self.rows if row.state == "failed")

    @property
    def passed(self) -> bool:
        """Whether something was compared and every bar and demand held."""
        compared = any(row.state == "ok" for row in self.rows)
        return compared and not self.failures and not self.missed

    @property
    def missed(self) -> tuple[Held, ...]:
        """Demands of the policy that do not hold, or that the samples cannot decide."""
        return tuple(held for held in self.held if held.state not in ("ok", "waived"))

    @property
    def undecided(self) -> bool:
        """Whether nothing failed, but there are too few samples to say that all holds."""
        states = {held.state for held in self.missed}
        return not self.failures and states == {"undecided"}

    @property
    def exit_code(self) -> int:
        """0, or the exit code of a parity failure or of an undecided gate."""
        return 0 if self.passed else UNDECIDED if self.undecided else ParityError.exit_code

    @property
    def timeless(self) -> "Report":
        """The same without what a clock said: artifacts do not differ between runs."""
        return self if self.mixed is None else replace(self, mixed=self.mixed.timeless)

    def to_json(self) -> dict[str, Any]:
        """Return the report in JSON types (`SCHEMA`); every number that the table rounds."""
        from npuc.jsonable import plain

        data = {n: getattr(self, n) for n in self.__dataclass_fields__ if n != "estimate"}
        bound = self.estimate.to_json() if self.estimate is not None else None
        return {
            "schema": SCHEMA,
            "passed": self.passed,
            "exit_code": self.exit_code,
            **{k: plain(v) for k, v in data.items()},
            "estimate": bound,
        }

    def table(self) -> str:
        """Return the report as plain text."""
        head = f"{self.model} → {self.target} ({self.precision})"
        evidence = f"evidence: {self.evidence}" + (f"; {self.vendor}" if self.vendor else "")
        lines = _aligned([_HEADER, *(_cells(row) for row in self.rows)])
        lines.insert(1, "-" * max(map(len, lines)))
        about = [head, f"reference: {self.reference}", *_dims(self.dims), evidence]
        about += [*(self.mixed.lines() if self.mixed else ()), *self._host(), "", *lines]
        about += [f"{h.state}: {h.text}{f' ({h.waiver})' if h.waiver else ''}" for h in self.held]
        about += ["", *(f"note: {note}" for note in self.notes)]
        about += _wrapped("not public: ", [f"{name} {text}" for name, text in self.assumed.items()])
        for row in self.rows:
            about += [
                f"{row.state}: {row.stage}: {text}" for text in (*row.faults, row.note) if text
            ]
        return "\n".join([*about, *self._verdict()])

    def _host(self) -> list[str]:
        """Say what does not run on the device, and what that moves."""
        kinds = [op for op, place in self.placement.items() if HOST in place.split("+")]
        if not kinds:
            return []
        total = sum(c.bytes for c in self.crossings)
        lines = [
            f"on the host: {', '.join(kinds)}; tensors that cross per call: "
            f"{len(self.crossings)}, {size(total)}"
        ]
        shown = sorted(self.crossings, key=lambda c: -c.bytes)[:5]
        lines += [f"  {c.tensor} {size(c.bytes)} to the {c.to}" for c in shown]
        more = len(self.crossings) - len(shown)
        return lines + ([f"  and {more} more"] if more else [])

    def _verdict(self) -> list[str]:
        if self.passed:
            what = f"evidence: {self.evidence}" + (f"; {self.vendor}" if self.vendor else "")
            if any(row.state == "not run" for row in self.rows):
                return [f"PASSED as far as it was run; the artifact was NOT ({what})"]
            states = [row.state for row in self.rows] + [held.state for held in self.held]
            if waived := states.count("waived"):
                return [f"PASSED with {waived} waived: all else is within its bar ({what})"]
            return [f"PASSED: every step answers like the original, within its bar ({what})"]
        if self.undecided:
            more = max(held.needed for held in self.missed)
            what = f"{more:,} more samples needed" if more else "no number of samples would decide"
            return [f"UNDECIDED: {what}"]
        missed = [row.stage for row in self.failures] + [held.check for held in self.missed]
        names = ", ".join(dict.fromkeys(missed)) or "nothing was compared"
        first = self.failures[0] if self.failures else None
        return [f"FAILED: {names}", *([f"→ {_remedy(first)}"] if first else [])]


def _wrapped(head: str, items: Sequence[str]) -> list[str]:
    """Run items on in lines of a terminal's width; nothing where there are none."""
    text = head + "; ".join(items)
    return textwrap.wrap(text, 100, subsequent_indent="  ") if items else []


def _remedy(row: Row) -> str:
    lowered = any(fault.startswith(LOWERED) for fault in row.faults)
    if not lowered and row.bar is not None and row.bar.sqnr_db is not None:
        return (
            "look with --layers; try --precision auto, --rounding gptq, more --calibration data, "
            "--skip NODE for the worst layers, or --precision float"
        )
    return "report this with the artifact: a step that should keep the answer did not"


_HEADER = ("step", "SQNR dB", "max abs", "cosine", "agree", "held to", "verdict")
_NUMBERS = range(1, 5)
_HELD = {"step": " of step before", "both": " and its program"}


def _aligned(cells: Sequence[tuple[str, ...]]) -> list[str]:
    """Pad columns; numbers are aligned to the right."""
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    return [
        "  ".join(
            cell.rjust(width) if at in _NUMBERS else cell.ljust(width)
            for at, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in cells
    ]


def _worst(values: Sequence[float]) -> float:
    """Return the largest; NaN, which stands for a fault, is worse than any number."""
    return max(values, key=lambda value: math.inf if math.isnan(value) else value)


def _cells(row: Row) -> tuple[str, ...]:
    bar = row.bar.text + _HELD.get(row.held, "") if row.bar else "-"
    if not row.original:
        return (row.stage, "-", "-", "-", "-", bar, row.state)
    worst = min(row.original, key=lambda d: -math.inf if math.isnan(d.sqnr_db) else d.sqnr_db)
    agreements = [d.agreement for d in row.original if d.agreement is not None]
    state = {"ok": "ok", "failed": "FAILED"}.get(row.state, row.state)
    if row.changes == 0 and row.state == "ok":
        state = "ok (no change)"
    return (
        row.stage,
        "exact" if worst.sqnr_db == math.inf else f"{worst.sqnr_db:.1f}",
        f"{_worst([d.max_abs for d in row.original]):.2e}",
        f"{-_worst([-d.cosine for d in row.original]):.6f}",
        f"{min(agreements):.1%}" if agreements else "-",
        bar,
        state,
    )  # fmt: skip


def _dims(dims: Mapping[str, int]) -> Sequence[str]:
    return [f"shapes: {', '.join(f'{k}={v}' for k, v in dims.items())}"] if dims else []


def describe(fingerprint: Mapping[str, Any]) -> str:
    """Say in one line what a reference is and how it was computed."""
    device = fingerprint.get("device", "unknown device")
    versions = [
        f"{k} {fingerprint[k]}" for k in ("torch", "onnxruntime", "cuda") if fingerprint.get(k)
    ]
    switches = [
        name
        for name, on in (
            ("TF32", device != "cpu" and fingerprint.get("tf32_matmul")),
            ("autocast", fingerprint.get("autocast")),
        )
        if on
    ]
    about = ", ".join([str(device), *versions, *(f"{s} on" for s in switches)])
    return f"{fingerprint.get('inputs', 'unknown inputs')} ({about})"


@dataclass(frozen=True, slots=True)
class Compiled:
    """One artifact and its parity report. A failed one is written too, to be looked into."""

    artifact_path: Path
    report: Report

    @property
    def passed(self) -> bool:
        """Whether every bar held."""
        return self.report.passed
