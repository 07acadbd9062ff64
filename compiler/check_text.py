"""What `npuc check` prints: as text, and as JSON."""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict
from typing import Any, TypeVar

from npuc.check import Outcome
from npuc.ledger import REFUSED, Fixed, Open
from npuc.legality import NOT_PUBLIC, Finding, spelled
from npuc.partition import Crossing
from npuc.remedies import edit
from npuc.text import columns, counts, size

SCHEMA = "npuc-check-1"

NAMED = 3
"""Nodes of a group that are named, and values that are shown; the rest is counted."""

SHOWN = 5
"""Operator kinds that are named of those a pass wrote."""

Item = TypeVar("Item", Open, Fixed)


def verdict(outcome: Outcome) -> str:
    """Return in one line whether the target takes the model."""
    blocked = sorted({item.finding.reason for item in outcome.of("blocked")})
    parts = [f"cannot be compiled as it is: {'; '.join(blocked)}"] if blocked else []
    if outcome.host:
        share = f"{len(outcome.host)} of {outcome.operators} operators on the host"
        parts.append(f"{share}: {counts(Counter(outcome.host.values()))}")
    after = f"after npuc's passes: {', '.join(outcome.steps)}" if outcome.steps else ""
    if not parts and _unlisted(outcome):
        return ", ".join(filter(None, [f"{NOT_PUBLIC}: nothing known against it", after]))
    if not parts:
        return f"runs {after}" if after else f"runs whole on {outcome.name}"
    return "; ".join([*parts, *filter(None, [after])])


def text(model: str, outcomes: Sequence[Outcome]) -> str:
    """Return a table over the targets where there are several, then each with its findings.

    Below a table, targets of which it says all have no block, and those that say the same share
    one.
    """
    several = len(outcomes) > 1
    blocks: dict[str, list[Outcome]] = {}
    for outcome in outcomes:
        if not several or _details(outcome):
            blocks.setdefault("\n".join(_block(outcome)), []).append(outcome)
    parts = [f"{model}, checked and not compiled", *([matrix(outcomes)] if several else [])]
    for body, same in blocks.items():
        titles = [f"{item.name}: {item.title}" for item in same]
        parts.append("\n".join([*titles, body]))
    return "\n\n".join(parts)


def _details(outcome: Outcome) -> bool:
    """Whether there is more to say than that shapes and opset get their numbers."""
    mended = any(item.finding.node for item in outcome.fixed)
    return (
        mended
        or bool(outcome.options)
        or any(item.finding.node for item in outcome.left)
        or (not outcome.passed)
    )


def matrix(outcomes: Sequence[Outcome]) -> str:
    """Return one line per target: whether it takes the model, what goes to the host, the passes."""
    rows = [[o.name, takes(o), _hosted(o) or "-", ", ".join(o.steps) or "-"] for o in outcomes]
    return columns([["target", "takes it", "on the host", "after npuc's passes"], *rows])


def takes(outcome: Outcome) -> str:
    """Return in a word how much of the model the target takes."""
    if outcome.of("blocked"):
        return "no"
    if outcome.host:
        return "in part"
    return "as far as public" if _unlisted(outcome) else "whole"


def _hosted(outcome: Outcome) -> str:
    if not outcome.host:
        return ""
    kinds = counts(Counter(outcome.host.values()))
    return f"{len(outcome.host)} of {outcome.operators}: {kinds}"


def _unlisted(outcome: Outcome) -> bool:
    return any(item.finding.measure == "operators" for item in outcome.of("unknown"))


def _block(outcome: Outcome) -> Iterator[str]:
    yield f"  {verdict(outcome)}"
    if outcome.options:
        yield f"  compile it with {' '.join(outcome.options)}"
    refused = outcome.of(*REFUSED)
    if refused:
        yield "  on the host, or to be changed:"
    for group in _groups(refused):
        yield from _refusal(group, outcome)
    found = {item.finding.node for item in refused}
    if between := len(outcome.host.keys() - found):
        yield f"    {between} more stand between those: their tensors would cross twice"
    if outcome.crossings:
        crossing = f"{_tensors(len(outcome.crossings))}, {_size(outcome.crossings)}"
        yield f"  {crossing} a call, cross to the host or back"
    if outcome.fixed:
        yield "  mended by npuc's passes:"
        yield columns((_mended(group, outcome) for group in _groups(outcome.fixed)), indent=4)
    unknown = [item for item in outcome.of("unknown") if item.finding.node]
    if unknown:
        yield "  nothing public or known here says:"
        yield columns(map(_plain, _groups(unknown)), indent=4)
    notes = outcome.of("note")
    for group in _groups(notes, lambda finding: (finding.measure, finding.bound)):
        kinds = counts(Counter(item.finding.op for item in group))
        yield f"  note: {_reason([item.finding for item in group])}: {len(group)} ({kinds})"


def _groups(
    items: Iterable[Item], key: Callable[[Finding], object] | None = None
) -> list[list[Item]]:
    """Put together what is said alike of one operator kind, and mended by the same pass."""
    found: dict[object, list[Item]] = {}
    for item in items:
        one = item.finding
        same = key(one) if key else (one.op, one.measure, one.bound, one.verdict)
        found.setdefault((same, getattr(item, "step", "")), []).append(item)
    return sorted(found.values(), key=len, reverse=True)


def _refusal(group: Sequence[Open], outcome: Outcome) -> Iterator[str]:
    first, nodes = group[0].finding, [item.finding for item in group]
    came = sorted({item.came for item in group if item.came})
    by = f" [{first.grade}, {first.source}]" if first.source else ""
    since = f" (came with {', '.join(came)})" if came else ""
    yield f"    {_what(group)}  {_reason(nodes)}{by}{since}"
    if places := _places(nodes):
        yield f"        {places}"
    yield f"        → {'; or '.join(fixes(group, outcome))}"


def fixes(group: Sequence[Open], outcome: Outcome) -> list[str]:
    """Say what can be done about findings of one kind: leave them to the host, or an edit."""
    found = []
    if group[0].finding.verdict == "host":
        names = {item.finding.node for item in group}
        touched = frozenset().union(*(outcome.touched.get(name, frozenset()) for name in names))
        sent = _size([c for c in outcome.crossings if c.tensor in touched])
        cost = f": {_tensors(len(touched))}, {sent} cross per call" if touched else ""
        found.append(f"left as it is, it runs on the host{cost}")
    return [*found, edit(group[0].finding)]


def _mended(group: Sequence[Fixed], outcome: Outcome) -> list[str]:
    by = f"→ {group[0].step}"
    written = sum((_counter(item, outcome) for item in group), Counter[str]())
    if written:
        kinds = counts(written).split(", ")
        by += f": {', '.join(kinds[:SHOWN])}{', …' if len(kinds) > SHOWN else ''}"
    if any(item.matched == "count" for item in group):
        by += " (by their number: passes renamed nodes)"
    return [_what(group), _reason([item.finding for item in group]), by]


def _counter(item: Fixed, outcome: Outcome) -> Counter[str]:
    return Counter(outcome.written.get((item.step, item.finding.node), {}))


def _plain(group: Sequence[Open]) -> list[str]:
    return [_what(group), _reason([item.finding for item in group])]


def _what(group: Sequence[Open] | Sequence[Fixed]) -> str:
    op = group[0].finding.op
    return f"{len(group)} x {op}" if op else "the model"


def _reason(findings: Sequence[Finding]) -> str:
    """Spell what is said, with the values of all: ``kernel 31, 33: at most 15``."""
    first = findings[0]
    if first.measure == "operator":
        return first.bound
    values = list(dict.fromkeys(spelled(finding.value) for finding in findings))
    shown = ", ".join(values[:NAMED]) + (", …" if len(values) > NAMED else "")
    return f"{first.measure} {shown}: {first.bound}"


def _places(findings: Sequence[Finding]) -> str:
    named = [f for f in findings if f.node]
    shown = []
    for finding in named[:NAMED]:
        where = " in ".join(filter(None, [finding.line, finding.module]))
        shown.append(f"{finding.node} ({where})" if where else finding.node)
    more = len(named) - NAMED
    return ", ".join([*shown, *([f"{more} more"] if more > 0 else [])])


def _size(crossings: Sequence[Crossing]) -> str:
    """Spell their bytes; a tensor without a fixed size counts none."""
    total = size(sum(crossing.bytes for crossing in crossings))
    return total if all(crossing.bytes for crossing in crossings) else f"{total} or more"


def _tensors(count: int) -> str:
    return f"{count} tensor{'' if count == 1 else 's'}"


def to_json(model: str, outcomes: Sequence[Outcome]) -> dict[str, Any]:
    """Return the whole of it as JSON types."""
    return {
        "schema": SCHEMA,
        "model": model,
        "passed": all(outcome.passed for outcome in outcomes),
        "targets": [_outcome(outcome) for outcome in outcomes],
    }


def _outcome(outcome: Outcome) -> dict[str, Any]:
    return {
        "target": outcome.name,
        "title": outcome.title,
        "passed": outcome.passed,
        "verdict": verdict(outcome),
        "operators": outcome.operators,
        "operators_public": not _unlisted(outcome),
        "takes": takes(outcome),
        "passes": list(outcome.steps),
        "options": list(outcome.options),
        "host": dict(outcome.host),
        "crossings": [asdict(crossing) for crossing in outcome.crossings],
        "findings": [
            {**asdict(item.finding), "came": item.came, "fix": fixes([item], outcome)}
            for item in outcome.left
        ],
        "fixed": [
            {
                **asdict(item.finding),
                "pass": item.step,
                "matched": item.matched,
                "written": dict(_counter(item, outcome)),
            }
            for item in outcome.fixed
        ],
    }
