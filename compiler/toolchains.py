"""Install, list and remove the environments in which vendors' compilers run.

An environment is defined by the profiles of the targets that name it (facts ``compiler.*``). It
is built in place and counts as installed only once its marker is there, which is written last.
"""

import fcntl
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from npuc import installing, plugins
from npuc.errors import OutputError, ToolchainError, UsageError
from npuc.installing import Say
from npuc.profile import Profile
from npuc.targets import environments
from npuc.targets.environments import MARKER, Environment
from npuc.text import columns, size


@dataclass(frozen=True, slots=True)
class Known:
    """An environment and the targets it serves."""

    environment: Environment
    targets: tuple[str, ...]


def known() -> dict[str, Known]:
    """Return every environment that installed targets name, by name."""
    found: dict[str, Known] = {}
    for name in plugins.names():
        profile = _profile(name)
        environment = environments.of(profile) if profile else None
        if environment is not None:
            others = found[environment.name].targets if environment.name in found else ()
            found[environment.name] = Known(environment, (*others, name))
    return dict(sorted(found.items()))


def find(name: str) -> Known:
    """Return an environment by its own name or a target's; raises `UsageError`.

    For a compiler that npuc must not install, says so, with what is known of its licence.
    """
    listed = known()
    for item in listed.values():
        if name == item.environment.name or name in item.targets:
            return item
    for target in plugins.names():
        profile = _profile(target)
        package = str(profile.get("compiler.package", "")) if profile else ""
        if profile is None or not package or name not in (target, package):
            continue
        licence = profile.get("compiler.licence", "not public")
        raise UsageError(
            f"npuc does not install {package} (for {target}): licence: {licence}",
            hint=f"get it from the vendor and install it yourself; npuc doctor --target {target}",
        )
    hint = f"there are: {', '.join(listed) or 'none'} (see: npuc toolchain list)"
    raise UsageError(f"npuc knows no toolchain {name!r}", hint=hint)


def _profile(target: str) -> Profile | None:
    """Return a target's profile; None where it is broken, which `npuc targets` explains."""
    try:
        return plugins.find(target).profile
    except (ToolchainError, UsageError):
        return None


def install(name: str, say: Say) -> Known:
    """Create an environment from its pinned requirements; does nothing where it is there.

    `say` gets progress lines. Raises `ToolchainError` where npuc may not install it, no Python
    fits, or pip fails (its log is then kept and named); `OutputError` where nothing can be
    written.
    """
    item = find(name)
    environment = item.environment
    if environment.fault:
        raise ToolchainError(
            f"npuc does not install {environment.name}: {environment.fault}",
            hint=f"install it yourself and set {environment.variable} to its Python",
        )
    if environment.installed() is not None:
        say(f"{environment.name} is installed in {environment.path}")
        return item
    interpreter = installing.interpreter(environment)
    with _writing(environment.path), _locked(environment.path):
        if environment.installed() is None:  # another process may have been faster
            installing.create(environment, interpreter, say)
    say(f"{environment.name} is installed in {environment.path}")
    return item


def remove(name: str, say: Say) -> Known:
    """Delete an environment; raises `UsageError` where it is not there."""
    item = find(name)
    path = item.environment.path
    if not path.exists():
        raise UsageError(f"{item.environment.name} is not installed in {path.parent}")
    with _writing(path), _locked(path):
        (path / MARKER).unlink(missing_ok=True)  # first: half of it must not count
        shutil.rmtree(path)
    say(f"removed {path}")
    return item


def listing() -> dict[str, object]:
    """Return all environments as JSON types."""
    return {"folder": str(environments.folder()), "toolchains": [_row(k) for k in known().values()]}


def listing_text() -> str:
    """Return every environment: what it is for, whether it is here, how to get it."""
    rows: list[list[str]] = []
    for item in known().values():
        environment, row = item.environment, _row(item)
        state = str(row["state"])
        if isinstance(row["bytes"], int) and state == "installed":
            state += f", {size(row['bytes'])}"
        rows.append([environment.name, state])
        rows.append(["", f"for {', '.join(item.targets)}"])
        rows.append(["", f"pins: {', '.join(environment.requirements) or 'none'}"])
        rows.append(["", f"licence: {environment.licence or 'not stated'}"])
        if other := os.environ.get(environment.variable):
            rows.append(["", f"{environment.variable}={other} is used instead"])
        absent, remedy = environment.lacking()
        if absent:
            rows.append(["", f"{absent} → {remedy}"])
        if state.startswith("installed") and isinstance(row["packages"], dict):
            pinned = [r.partition("==")[0] for r in environment.requirements]
            versions = {k: v for k, v in row["packages"].items() if k in pinned}
            rows.append(["", ", ".join(f"{k} {v}" for k, v in versions.items())])
        else:
            rows.append(["", f"→ {environment.remedy}"])
    return columns(rows)


def _row(item: Known) -> dict[str, object]:
    environment = item.environment
    noted = environments.marker(environment.path)
    state = "missing"
    if environment.installed() is not None:
        state = "installed"
    elif noted is not None:
        state = "has other pins"
    elif environment.path.exists():
        state = "incomplete"
    return {
        "name": environment.name, "state": state, "path": str(environment.path),
        "targets": list(item.targets), "licence": environment.licence,
        "requirements": list(environment.requirements),
        "packages": noted["packages"] if noted else {}, "bytes": noted.get("bytes") if noted else 0,
    }  # fmt: skip


@contextmanager
def _writing(path: Path) -> Iterator[None]:
    """Make the folder of environments, and explain what the file system refuses."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield
    except OSError as error:
        raise OutputError(
            f"cannot write {path}: {error.strerror or error}",
            hint="set NPUC_TOOLCHAINS to a folder that can be written and has room",
        ) from error


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Let one process at a time change an environment; the lock goes with the process."""
    with path.with_name(f".{path.name}.lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
