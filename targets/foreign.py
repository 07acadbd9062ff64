"""Find a vendor's tool that npuc does not install: a package in some Python, or a command."""

import importlib.util
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import metadata

from packaging.specifiers import SpecifierSet
from packaging.version import Version

from npuc.targets.base import Toolchain

UNKNOWN = "of unknown version"
PROBE_SECONDS = 60
"""What a tool may take to say its version; some import a framework first."""

_PROBE = """
import importlib.metadata as m, importlib.util as u, json, sys
def version(name):
    try: return m.version(name)
    except m.PackageNotFoundError: return ""
def there(module):
    try: return u.find_spec(module) is not None
    except ImportError: return False
pairs = json.loads(sys.argv[1])
print(json.dumps([[there(module), version(name)] for name, module in pairs]))
"""


@dataclass(frozen=True, slots=True)
class Package:
    """A distribution and the module it brings; `versions` is what npuc's calls are written for."""

    distribution: str
    module: str
    versions: str = ""


@dataclass(frozen=True, slots=True)
class Found:
    """A tool as found: `command` starts it (or its Python) and is empty where it is missing."""

    toolchain: Toolchain
    command: tuple[str, ...] = ()


def python(name: str, variable: str, packages: Sequence[Package], remedy: str) -> Found:
    """Find a Python that has one of `packages`; never raises, imports nothing here.

    Looks in the Python whose command the environment variable `variable` holds, else in this one.
    The first package that is there in a documented version counts.
    """
    configured = os.environ.get(variable, "")
    if not configured:
        listed = [(_here(p.module), _version(p.distribution)) for p in packages]
        return _choose(name, packages, listed, (sys.executable,), "here", remedy)
    try:
        command = tuple(shlex.split(configured))
        pairs = json.dumps([[p.distribution, p.module] for p in packages])
        text = _output([*command, "-c", _PROBE, pairs]).strip().splitlines()[-1]
        listed = [(found, str(version)) for found, version in json.loads(text)]
        if len(listed) != len(packages) or not all(isinstance(f, bool) for f, _ in listed):
            raise ValueError(f"it answered {text[:100]!r}")
    except (OSError, ValueError, TypeError, IndexError, subprocess.SubprocessError) as error:
        missing = f"{variable}={configured!r} is no Python that runs: {_reason(error)}"
        return Found(Toolchain(name, "", missing, remedy))
    return _choose(name, packages, listed, command, f"in {variable}={configured!r}", remedy)


def program(
    name: str, variable: str, default: str, remedy: str, versions: str = "", ask: str = "--version"
) -> Found:
    """Find a command: the one in the environment variable `variable`, else `default` on PATH.

    Its version is the first number with a dot in what it prints for `ask`. Never raises.
    """
    configured = os.environ.get(variable, "")
    try:
        command = tuple(shlex.split(configured or default))
        where = shutil.which(command[0])
    except (ValueError, IndexError) as error:
        return Found(Toolchain(name, "", f"{variable}={configured!r}: {error}", remedy))
    if where is None:
        missing = f"{variable}={configured!r} is not there" if configured else "not installed here"
        return Found(Toolchain(name, "", missing, remedy))
    command = (where, *command[1:])
    try:
        text = _output([*command, ask])
    except (OSError, ValueError, subprocess.SubprocessError) as error:
        return Found(
            Toolchain(name, "", f"{where} {ask} does not answer: {_reason(error)}", remedy)
        )
    match = re.search(r"\d+(\.\d+)+", text)
    version = match.group() if match else ""
    if versions and not version:
        # Any command may have that name: one that cannot say its version is not the tool.
        return Found(Toolchain(name, "", f"{where} {ask} states no version", remedy))
    if fault := _wrong(version, versions):
        return Found(Toolchain(name, version, f"{where} is {fault}", remedy))
    return Found(Toolchain(name, version or UNKNOWN), command)


def _choose(
    name: str,
    packages: Sequence[Package],
    listed: Sequence[tuple[bool, str]],
    command: tuple[str, ...],
    where: str,
    remedy: str,
) -> Found:
    faults = []
    for package, (found, version) in zip(packages, listed, strict=True):
        fault = _wrong(version, package.versions)
        if found and not fault:
            return Found(Toolchain(name, version or UNKNOWN), command)
        if found:
            faults.append(f"{package.distribution} {where} is {fault}")
    return Found(Toolchain(name, "", "; ".join(faults) or f"not installed {where}", remedy))


def _wrong(version: str, versions: str) -> str:
    """Say that a version lies outside the documented range; a version nobody states passes."""
    match = re.match(r"\d+(\.\d+)*", version)
    if not versions or match is None:
        return ""
    if SpecifierSet(versions, prereleases=True).contains(Version(match.group())):
        return ""
    return f"version {version}; npuc's calls are written for {versions}"


def _here(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except (ImportError, ValueError):
        return False


def _version(distribution: str) -> str:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return ""


def _output(command: Sequence[str]) -> str:
    done = subprocess.run(
        command,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        errors="replace",
        timeout=PROBE_SECONDS,
        check=True,
    )
    return done.stdout or done.stderr


def _reason(error: Exception) -> str:
    text = getattr(error, "stderr", None) or str(error)
    return str(text).strip().splitlines()[-1][:200] if str(text).strip() else type(error).__name__
