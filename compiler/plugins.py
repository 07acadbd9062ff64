"""Find target adapters by entry point: ours like anyone's, loaded when they are named."""

import difflib
from collections.abc import Iterable
from dataclasses import dataclass
from importlib.metadata import EntryPoint, entry_points

from npuc.errors import NpucError, ToolchainError, UsageError
from npuc.targets.base import Target, Toolchain

GROUP = "npuc.targets"
"""Entry points of this group name a class that takes no arguments and is a `Target`."""

_MEMBERS = ("name", "profile", "toolchain", "evidence", "legalise", "numerics", "lower", "runner")


@dataclass(frozen=True, slots=True)
class TargetInfo:
    """One target as `npuc targets` lists it; `fault` says why an adapter cannot be used at all.

    `evidence` is the grade that a compile on this machine would have.
    """

    name: str
    title: str = ""
    distribution: str = ""
    precisions: tuple[str, ...] = ()
    toolchain: Toolchain | None = None
    evidence: str = ""
    fault: str = ""
    remedy: str = ""


def names() -> tuple[str, ...]:
    """Return the names of all installed targets, sorted; loads no adapter."""
    return tuple(sorted({point.name for point in _points()}))


def find(name: str) -> Target:
    """Load the adapter with this name.

    Raises `UsageError` where there is none or more than one, `ToolchainError` where it is broken.
    """
    found = [point for point in _points() if point.name == name]
    if not found:
        near = difflib.get_close_matches(name.lower(), names(), n=1, cutoff=0.5)
        guess = f"; did you mean {near[0]!r}?" if near else ""
        raise UsageError(
            f"unknown target {name!r}{guess}",
            hint=f"installed targets: {', '.join(names()) or 'none'} (see: npuc targets)",
        )
    if len(found) > 1:
        owners = sorted(_owner(point) for point in found)
        raise UsageError(
            f"target {name!r} is installed more than once: by {' and by '.join(owners)}",
            hint=f"remove one of them: pip uninstall {owners[-1]}",
        )
    return _load(found[0])


def describe(wanted: Iterable[str] = ()) -> tuple[TargetInfo, ...]:
    """Describe installed targets (all, or those named); a broken adapter is listed with why."""
    return tuple(_describe(name) for name in (tuple(wanted) or names()))


def _describe(name: str) -> TargetInfo:
    owner = ", ".join(sorted(_owner(point) for point in _points() if point.name == name))
    try:
        target = find(name)
        toolchain, evidence = _asked(target)
    except ToolchainError as error:
        return TargetInfo(name, distribution=owner, fault=error.message, remedy=error.hint)
    except UsageError as error:
        if not owner:
            raise  # an unknown name is the caller's mistake; a duplicate one is the machine's
        return TargetInfo(name, distribution=owner, fault=error.message, remedy=error.hint)
    profile = target.profile
    return TargetInfo(name, profile.title, owner, profile.precisions, toolchain, evidence)


def _asked(target: Target) -> tuple[Toolchain, str]:
    try:
        return target.toolchain(), target.evidence()
    except Exception as error:  # the contract forbids it, but this is anyone's code
        raise ToolchainError(
            f"target {target.name!r} cannot say whether its toolchain is here: {_what(error)}"
        ) from error


def _load(point: EntryPoint) -> Target:
    hint = f"update or remove it: pip install --upgrade {_owner(point)}"
    try:
        target: Target = point.load()()
    except NpucError:
        raise
    except Exception as error:  # anyone's code: whatever it raises, say whose it is
        raise ToolchainError(
            f"target {point.name!r} ({point.value}, from {_owner(point)}) cannot be loaded: "
            f"{_what(error)}",
            hint=hint,
        ) from error
    missing = [member for member in _MEMBERS if not hasattr(target, member)]
    if missing:
        raise ToolchainError(
            f"target {point.name!r} ({point.value}, from {_owner(point)}) is not a target: "
            f"it has no {', '.join(missing)}",
            hint=hint,
        )
    return target


def _points() -> tuple[EntryPoint, ...]:
    return tuple(entry_points(group=GROUP))


def _owner(point: EntryPoint) -> str:
    return point.dist.name if point.dist else "an unknown distribution"


def _what(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"
