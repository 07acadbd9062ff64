"""Follow findings from pass to pass: which one mends them, and which brings new ones."""

from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from npuc.legality import Finding

REFUSED = ("host", "blocked")
"""Verdicts that keep a model, or a part of it, from the device."""


@dataclass(frozen=True, slots=True)
class Fixed:
    """A finding that one of npuc's own passes makes disappear.

    `matched` is "node" where it is sure that this one is gone: its node has it no more, and no
    other node got one of its kind. It is "count" where passes renamed nodes, and only the number
    of such findings went down.
    """

    finding: Finding
    step: str
    matched: Literal["node", "count"]


@dataclass(frozen=True, slots=True)
class Open:
    """A finding that still holds. `came` names the pass that brought it; "" for the original."""

    finding: Finding
    came: str = ""


@dataclass(frozen=True, slots=True)
class Ledger:
    """What is open and what was fixed, so far. `own` names the original's nodes."""

    open: tuple[Open, ...]
    own: frozenset[str] = frozenset()
    fixed: tuple[Fixed, ...] = ()

    @classmethod
    def of(cls, findings: Iterable[Finding], own: Iterable[str] = ()) -> "Ledger":
        """Start with what is said of the original."""
        return cls(tuple(Open(found) for found in findings), frozenset(own))

    def after(self, step: str, findings: Sequence[Finding]) -> "Ledger":
        """Return the ledger after a pass, given what is said of its result.

        A finding goes on where the same node has it; one whose node is gone goes on as one of the
        same operator, measure and bound that no node had before. What is new on a node of the
        original did not come with the pass: it was hidden behind unknown shapes.
        """
        gone, went_on, new = _pair(self.open, findings, _node)
        gone, moved, new = _pair(gone, new, _kind)
        renamed = {_kind(now.finding) for now in moved}
        fixed = [
            Fixed(old.finding, step, "count" if _kind(old.finding) in renamed else "node")
            for old in gone
            if old.finding.verdict in REFUSED and not old.came
        ]
        came = [Open(found, "" if found.node in self.own else step) for found in new]
        return Ledger((*went_on, *moved, *came), self.own, (*self.fixed, *fixed))


def _node(finding: Finding) -> Hashable:
    # Findings on the whole model: one opset, whatever it is, but each dimension is its own.
    own = str(finding.value) if finding.measure == "dimension" else ""
    return finding.node, finding.op, finding.measure, finding.bound, own


def _kind(finding: Finding) -> Hashable:
    return finding.op, finding.measure, finding.bound, finding.verdict


def _pair(
    old: Iterable[Open], new: Iterable[Finding], key: Callable[[Finding], Hashable]
) -> tuple[list[Open], list[Open], list[Finding]]:
    """Match old to new by `key`; return what is gone, what goes on, and what is new."""
    waiting: dict[Hashable, list[Finding]] = {}
    for found in new:
        waiting.setdefault(key(found), []).append(found)
    gone, went_on = [], []
    for item in old:
        same = waiting.get(key(item.finding))
        if same:
            went_on.append(Open(same.pop(0), item.came))
        else:
            gone.append(item)
    return gone, went_on, [found for rest in waiting.values() for found in rest]
