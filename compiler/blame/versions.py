"""Find where in a list of versions an answer went bad: "good in 2.28, bad from 2.29"."""

import os
import shlex
import subprocess
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from npuc import artifact, recheck
from npuc.blame.cause import BLAMED
from npuc.blame.steps import first_bad
from npuc.errors import UNDECIDED, ArtifactError, ParityError, ToolchainError, UsageError
from npuc.jsonable import plain
from npuc.policy import Policy

SAID = 400
"""Characters of a log that an error shows."""


@dataclass(frozen=True, slots=True)
class Tried:
    """One version: its label, what it consists of, and whether it answers well; `why` if not."""

    name: str
    versions: Mapping[str, str]
    bad: bool
    why: str = ""
    log: str = ""


@dataclass(frozen=True, slots=True)
class Boundary:
    """The last good version and the first bad one, None where there is none.

    `changed` lists what differs between them. `tried` are those that were run, in the order of the
    list; `listed` is how many there were.
    """

    good: Tried | None
    bad: Tried | None
    changed: tuple[str, ...]
    listed: int
    tried: tuple[Tried, ...] = field(default=())

    @property
    def exit_code(self) -> int:
        """0 where no version is bad, else that of a parity failure."""
        return 0 if self.bad is None else BLAMED

    def text(self) -> str:
        """Return the finding as plain text."""
        lines = [f"{t.name}: {f'BAD: {t.why}' if t.bad else 'ok'}" for t in self.tried]
        lines.append("")
        if self.bad is None:
            lines.append(f"nothing to blame: the last of {self.listed} versions answers well")
        elif self.good is None:
            lines.append(f"BLAME: bad in {self.bad.name} already, the first of the list")
        else:
            lines.append(f"BLAME: good in {self.good.name}, bad from {self.bad.name}")
            lines += [f"  {text}" for text in self.changed] or [
                "  no version differs: see settings"
            ]
        lines.append(f"  found in {len(self.tried)} runs; there were {self.listed} versions")
        return "\n".join(lines)

    def to_json(self) -> dict[str, Any]:
        """Return all of it in JSON types."""
        data: dict[str, Any] = plain(self)
        return {"schema": "npuc-blame-versions-1", "found": self.bad is not None, **data}


def artifacts(
    paths: Sequence[Path], reference: Path | None = None, policy: Policy | None = None
) -> Boundary:
    """Bisect artifacts of one model, from the oldest version to the newest.

    Each answers the calls of `reference`, or those that it carries itself. Raises `UsageError`
    where they are of several targets, `ArtifactError` where one is damaged.
    """
    manifests = [artifact.read(path).manifest for path in paths]
    if len({m.target for m in manifests}) > 1:
        listed = ", ".join(f"{p} for {m.target}" for p, m in zip(paths, manifests, strict=True))
        raise UsageError(f"artifacts of several targets: {listed}")

    def run(index: int) -> Tried:
        made = manifests[index]
        versions = {"npuc": made.npuc, **made.toolchain}
        name = str(paths[index])
        try:
            report = recheck.verify(paths[index], reference=reference, policy=policy)
        except ParityError as error:
            return Tried(name, versions, True, error.message.splitlines()[0])
        why = [f"{r.stage}: {f}" for r in report.failures for f in r.faults]
        why += [held.text for held in report.missed]
        return Tried(name, versions, not report.passed, why[0] if why else "")

    return _bisected(len(paths), run)


def environments(
    pythons: Sequence[str],
    source: str,
    target: str,
    options: Sequence[str] = (),
    *,
    logs: Path,
    timeout: float = 3600.0,
) -> Boundary:
    """Bisect Python environments: each compiles the model with its own npuc and tools.

    A Python is a command that runs it. `options` are further ones of ``npuc compile``. Logs are
    kept in `logs`. A compile that misses a bar is bad; one that ends with another error ends the
    search with `ToolchainError`, since it says nothing of the answer.
    """

    def run(index: int) -> Tried:
        log = logs / f"{index:02}.log"
        return _compiled(pythons[index], source, target, options, log, timeout)

    logs.mkdir(parents=True, exist_ok=True)
    return _bisected(len(pythons), run)


def _compiled(
    python: str, source: str, target: str, options: Sequence[str], log: Path, timeout: float
) -> Tried:
    with tempfile.TemporaryDirectory(prefix="npuc-") as home:
        path = Path(home) / "made.npuc"
        command = [
            *shlex.split(python), "-m", "npuc", "compile", source, "-t", target, "-o", str(path),
            "--quiet", *options,
        ]  # fmt: skip
        try:
            with log.open("wb") as file:
                done = subprocess.run(
                    command, stdin=subprocess.DEVNULL, stdout=file, stderr=subprocess.STDOUT,
                    timeout=timeout, check=False, env={**os.environ, "HOME": home},
                )  # fmt: skip
        except (OSError, subprocess.TimeoutExpired) as error:
            raise ToolchainError(f"{python} does not compile {source}: {error}") from error
        said = log.read_text(encoding="utf-8", errors="replace").strip()
        if done.returncode not in (0, ParityError.exit_code, UNDECIDED):
            raise ToolchainError(
                f"{python} cannot compile {source} (exit code {done.returncode}):\n{said[-SAID:]}",
                hint=f"the whole log is {log}",
            )
        versions = _versions(path)
    bad = done.returncode != 0
    why = next((line for line in said.splitlines() if line.startswith(("FAILED", "failed"))), "")
    return Tried(python, versions, bad, why or said[-SAID:] if bad else "", str(log))


def _versions(path: Path) -> Mapping[str, str]:
    """Read what made an artifact; nothing where none was written, or by an npuc unknown here."""
    if not path.exists():
        return {}
    try:
        manifest = artifact.read(path).manifest
    except ArtifactError:
        return {}
    return {"npuc": manifest.npuc, **manifest.toolchain}


def _bisected(count: int, run: Callable[[int], Tried]) -> Boundary:
    if count < 2:
        raise UsageError("there is nothing to bisect: give two versions or more, oldest first")
    seen: dict[int, Tried] = {}

    def is_bad(index: int) -> bool:
        if index not in seen:
            seen[index] = run(index)
        return seen[index].bad

    def ordered() -> tuple[Tried, ...]:
        return tuple(seen[at] for at in sorted(seen))

    if not is_bad(count - 1):
        return Boundary(seen[count - 1], None, (), count, ordered())
    if is_bad(0):
        return Boundary(None, seen[0], (), count, ordered())
    at = first_bad(0, count - 1, is_bad)
    is_bad(at - 1)
    good, bad = seen[at - 1], seen[at]
    return Boundary(good, bad, tuple(_changed(good.versions, bad.versions)), count, ordered())


def _changed(old: Mapping[str, str], new: Mapping[str, str]) -> list[str]:
    names = sorted({*old, *new})
    return [
        f"{name}: {old.get(name, 'none')} → {new.get(name, 'none')}"
        for name in names
        if old.get(name) != new.get(name)
    ]
