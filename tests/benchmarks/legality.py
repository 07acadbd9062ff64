"""Check every reference model against every target and print the README's tables.

    python tests/benchmarks/legality.py [MODEL…] [--write]

Nothing is compiled. --write puts the tables into README.md, between its markers.
"""

import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from npuc import check_text, models
from npuc.check import Outcome, check
from npuc.text import counts

README = Path(__file__).resolve().parents[2] / "README.md"
MARKS = ("<!-- check -->\n", "<!-- /check -->\n")

LEGEND = (
    "`all`: every operator runs on the target; `all*`: after npuc rewrote some; `?`: no operator "
    "list is public and nothing known speaks against it (`?*`: after npuc rewrote some); `3/28`: "
    "3 of 28 operators run on the host; `no`: it cannot be compiled as it is."
)


def main(words: Sequence[str]) -> int:
    """Print the tables, or write them; return 2 where README.md has no place for them."""
    names = [word for word in words if not word.startswith("-")] or models.names()
    found: dict[str, list[Outcome]] = {}
    for name in names:
        print(f"checking {name}", file=sys.stderr, flush=True)
        found[name] = check(f"zoo:{name}", target="all")
    text = "\n".join([*table(found), "", LEGEND, "", *gaps(found), ""])
    if "--write" not in words:
        print(text)
        return 0
    before, mark, rest = README.read_text().partition(MARKS[0])
    _, end, after = rest.partition(MARKS[1])
    if not (mark and end):
        print(f"{README.name} has no {MARKS[0].strip()} … {MARKS[1].strip()}", file=sys.stderr)
        return 2
    README.write_text(before + mark + text + end + after)
    return 0


def table(found: Mapping[str, Sequence[Outcome]]) -> Iterator[str]:
    """Yield one row per target, or per targets of which all is the same."""
    yield f"| target | {' | '.join(found)} |"
    yield "|---|" + "---|" * len(found)
    rows: dict[tuple[str, ...], list[str]] = {}
    for outcomes in zip(*found.values(), strict=True):
        cells = tuple(map(cell, outcomes))
        rows.setdefault(cells, []).append(f"`{outcomes[0].name}`")
    for cells, targets in rows.items():
        yield f"| {' '.join(targets)} | {' | '.join(cells)} |"


def cell(outcome: Outcome) -> str:
    """Spell an outcome as the legend says."""
    takes = check_text.takes(outcome)
    if takes == "no":
        return "no"
    if takes == "in part":
        return f"{len(outcome.host)}/{outcome.operators}"
    star = "*" if any(item.finding.node for item in outcome.fixed) else ""
    return ("all" if takes == "whole" else "?") + star


def gaps(found: Mapping[str, Iterable[Outcome]]) -> Iterator[str]:
    """Yield one row per operator and reason that a pass mends, with the first model as example."""
    yield "| operator | why the device does not take it | targets | before | after |"
    yield "|---|---|---|---|---|"
    rows: dict[tuple[str, str], tuple[set[str], str, str]] = {}
    for model, outcomes in found.items():
        for outcome in outcomes:
            for (op, why), names in _mended(outcome).items():
                example = f"`{model}`: {op} {len(names)}"
                after = counts(_sum(outcome.written[name] for name in names))
                row = rows.setdefault((op, why), (set(), example, after))
                row[0].add(f"`{outcome.name}`")
    for (op, why), (targets, example, after) in sorted(rows.items()):
        yield f"| {op} | {why} | {' '.join(sorted(targets))} | {example} | {after} |"


def _mended(outcome: Outcome) -> dict[tuple[str, str], list[tuple[str, str]]]:
    found: dict[tuple[str, str], list[tuple[str, str]]] = {}
    for item in outcome.fixed:
        one = item.finding
        why = one.bound if one.measure == "operator" else f"{one.measure}: {one.bound}"
        if (item.step, one.node) in outcome.written:
            found.setdefault((one.op, why), []).append((item.step, one.node))
    return found


def _sum(parts: Iterable[Mapping[str, int]]) -> dict[str, int]:
    total: dict[str, int] = {}
    for part in parts:
        for kind, count in part.items():
            total[kind] = total.get(kind, 0) + count
    return total


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
