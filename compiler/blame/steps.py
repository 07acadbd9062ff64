"""Find the step that broke the answer: O(log n) programs are run, each over all samples."""

from collections.abc import Callable
from dataclasses import dataclass, field

from npuc import floors
from npuc.blame.judge import Coded, Faults, Judge
from npuc.blame.trail import EXPORTED, LOWERING, Kind, Lowered, Trail, kind_at
from npuc.errors import NpucError

REFERENCE = "reference"
"""The step before export: what was recorded is not what the model answers here."""


@dataclass
class Found:
    """The step to blame: `index` of its program in the trail, None for the artifact, and -1 for
    the reference. `masked` says that the end of the chain answers well all the same; `coded` are
    codes that are known to cost too much, the worst first."""

    step: str
    kind: Kind
    faults: Faults
    index: int | None = None
    masked: bool = False
    optional: bool = False
    coded: tuple[Coded, ...] = ()
    evidence: list[str] = field(default_factory=list)


def first_bad(good: int, bad: int, is_bad: Callable[[int], bool]) -> int:
    """Return an index that is bad while the one before is not, by bisection.

    `bad` is known to be bad; what lies at `good` and before counts as good. Where badness is not
    monotone this is one such place of several.
    """
    while bad - good > 1:
        middle = (good + bad) // 2
        good, bad = (good, middle) if is_bad(middle) else (middle, bad)
    return bad


def search(trail: Trail, judge: Judge) -> Found | None:
    """Return the first step to blame, or None where every program answers within its bar.

    Programs fall into sections that are held to different bars or inputs: while dimensions are
    dynamic, exact, rounded. The last of each is run first, since an error of an earlier section may
    lie below the bar of a later one. An exact section with a bad end is bisected; of the rounded
    programs there are few, and each is held to its own part of the loss.
    """
    evidence: list[str] = []
    if faults := judge.recorded():
        evidence.append(f"the original, run here: {faults[0]}")
        why = (*_other_weights(trail), *faults)
        return Found(REFERENCE, "reference", why, -1, evidence=evidence)
    done = -1
    for end in _ends(trail):
        faults = judge.made(end)
        evidence.append(_line(trail, end, faults))
        if trail.made[end].lossy:
            if found := _rounded(trail, judge, end, faults, evidence):
                return found
        elif faults:
            bad = first_bad(done, end, lambda index: bool(judge.made(index)))
            return _blamed(trail, judge, bad, evidence)
        done = end
    if trail.error is not None:
        step = trail.ended or "compile"
        why = (_first(trail.error),)
        return Found(step, kind_at(step), why, len(trail.made), evidence=evidence)
    if trail.lowered is not None and (found := _lowered(trail.lowered, judge, evidence)):
        return found
    return _masked(trail, judge, evidence)


def _rounded(
    trail: Trail, judge: Judge, end: int, whole: Faults, evidence: list[str]
) -> Found | None:
    """Return the rounding step that costs more than it should, or the one that costs most."""
    first = next(at for at, item in enumerate(trail.made) if item.lossy)
    faults, coded = judge.coding()
    if faults:
        at = _miscoding(trail, judge, first, end)
        evidence.append(f"{trail.made[at].step}: {faults[0]}")
        found = _of(trail, at, faults, evidence)
        found.coded = coded
        return found
    for at in range(first, end + 1):
        if (own := judge.own(at)) or (at == end and whole):
            evidence.append(f"{trail.made[at].step}: {(own or whole)[0]}")
            at = at if own else _heaviest(trail, judge, first, end)
            return _of(trail, at, own or whole, evidence)
    return None


def _miscoding(trail: Trail, judge: Judge, first: int, end: int) -> int:
    """Return the first of the coding steps after which codes cost too much."""
    steps = [at for at in range(first, end + 1) if trail.made[at].kind == "quantization"]
    for at in steps[:-1]:
        if judge.coding(trail.made[at].program)[0]:
            return at
    return steps[-1]


def _heaviest(trail: Trail, judge: Judge, first: int, end: int) -> int:
    """Return the rounding step that adds most error power to what there was before it."""
    power = [judge.power(at) for at in range(first, end + 1)]
    added = [now - before for before, now in zip([0.0, *power], power, strict=False)]
    return first + added.index(max(added))


def _lowered(item: Lowered, judge: Judge, evidence: list[str]) -> Found | None:
    own, rest = judge.lowered(item)
    faults = (*own, *rest)
    evidence.append(f"{LOWERING}: {faults[0] if faults else 'ok'}")
    if not faults:
        return None
    return Found(LOWERING, item.kind, faults, None, evidence=evidence)


def _ends(trail: Trail) -> list[int]:
    """Return the last program of every section."""
    kinds = [(bool(item.program.symbols), item.lossy) for item in trail.made]
    return [at for at, kind in enumerate(kinds) if at + 1 == len(kinds) or kinds[at + 1] != kind]


def _blamed(trail: Trail, judge: Judge, bad: int, evidence: list[str]) -> Found:
    """Confirm a step with the comparison that a compile makes, and go back where it is not it."""
    if bad == 0:
        return _at_export(trail, judge, evidence)
    evidence.append(_line(trail, bad - 1, judge.made(bad - 1)))
    evidence.append(_line(trail, bad, judge.made(bad)))
    faults = judge.step(bad)
    if not faults:
        # Each step stays within its bar, but together they do not: the worst is not one of them.
        faults = judge.made(bad)
        evidence.append(
            f"{trail.made[bad].step}: against the step before it is within its bar: the error "
            "is the sum of several steps"
        )
    return _of(trail, bad, faults, evidence)


def _at_export(trail: Trail, judge: Judge, evidence: list[str]) -> Found:
    """Tell a wrong export from a wrong reference: ask the original here."""
    faults = judge.original()
    if not faults:
        return Found(EXPORTED, "export", judge.made(0), 0, evidence=evidence)
    evidence.append(f"the original, run here: {faults[0]}")
    why = (*_other_weights(trail), *faults)
    return Found(REFERENCE, "reference", why, -1, evidence=evidence)


def _other_weights(trail: Trail) -> Faults:
    """Say where the recorded hash of the weights is not that of the model."""
    recorded = (trail.reference.fingerprint if trail.reference else {}).get("sha256_weights")
    if trail.loaded is None or trail.loaded.program is not None or recorded is None:
        return ()
    found = floors.digest(trail.loaded.captured.native.state_dict())
    if found == recorded:
        return ()
    return (f"recorded with other weights: SHA-256 {recorded[:12]}…, the model's is {found[:12]}…",)


def _masked(trail: Trail, judge: Judge, evidence: list[str]) -> Found | None:
    """Compare every step with the one before, as a compile does: later steps may hide an error."""
    for at in range(1, len(trail.made)):
        if not trail.made[at].lossy and (faults := judge.step(at)):
            found = _of(trail, at, faults, evidence)
            found.masked = True
            return found
    return None


def _of(trail: Trail, at: int, faults: Faults, evidence: list[str]) -> Found:
    made = trail.made[at]
    optional = made.item is not None and made.item.optional
    return Found(made.step, made.kind, faults, at, optional=optional, evidence=evidence)


def _line(trail: Trail, at: int, faults: Faults) -> str:
    what = f"{at}/{len(trail.made) - 1} {trail.made[at].step}"
    return f"{what}: {faults[0] if faults else 'ok'}"


def _first(error: Exception) -> str:
    text = error.message if isinstance(error, NpucError) else f"{type(error).__name__}: {error}"
    return (text.strip().splitlines() or [type(error).__name__])[0]
