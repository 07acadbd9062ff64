"""npuc's own virtual environments for vendors' compilers, whose pins fight those of npuc.

Each lives in ``<folder()>/<name>``. What counts as installed has the marker file, which
`npuc.toolchains` writes last: an installation that was killed leaves none.
"""

import json
import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from npuc.profile import Profile
from npuc.targets import foreign
from npuc.targets.base import Toolchain
from npuc.targets.foreign import Found, Package

MARKER = "npuc-toolchain.json"


@dataclass(frozen=True, slots=True)
class Environment:
    """An environment as a profile's ``compiler.*`` facts describe it.

    `fault` says why npuc may not install it; empty where it may.
    """

    name: str
    requirements: tuple[str, ...]
    python: str = ""
    licence: str = ""
    commands: tuple[str, ...] = ()
    debian: tuple[str, ...] = ()
    fault: str = ""

    @property
    def path(self) -> Path:
        """Where it is, or would be."""
        return folder() / self.name

    @property
    def variable(self) -> str:
        """The environment variable that names another Python to use in its place."""
        return f"NPUC_{self.name.upper().replace('-', '_')}_PYTHON"

    @property
    def remedy(self) -> str:
        """The command that installs it."""
        return f"npuc toolchain install {self.name}"

    def installed(self) -> dict[str, str] | None:
        """Return the versions installed, by package; None where it is not, or with other pins."""
        noted = marker(self.path)
        if noted is None or tuple(noted["requirements"]) != self.requirements:
            return None
        return dict(noted["packages"])

    def lacking(self) -> tuple[str, str]:
        """Return (which commands are not on PATH, how to get them), or two empty strings."""
        absent = [command for command in self.commands if shutil.which(command) is None]
        if not absent:
            return "", ""
        return f"{', '.join(absent)} not on PATH", f"apt-get install {' '.join(self.debian)}"


def folder() -> Path:
    """Return where environments are: ``$NPUC_TOOLCHAINS``, or ``npuc/toolchains`` in the cache."""
    if chosen := os.environ.get("NPUC_TOOLCHAINS"):
        return Path(chosen)
    cache = os.environ.get("XDG_CACHE_HOME")
    return (Path(cache) if cache else Path.home() / ".cache") / "npuc" / "toolchains"


def of(profile: Profile) -> Environment | None:
    """Return the environment that a profile describes, or None where it describes none."""
    name = profile.get("compiler.environment")
    if not name:
        return None
    requirements = tuple(profile.get("compiler.requirements", ()))
    fault = "" if requirements else "its profile pins no packages that npuc may install"
    return Environment(
        name=str(name),
        requirements=requirements,
        python=str(profile.get("compiler.python", "")),
        licence=str(profile.get("compiler.licence", "")),
        commands=tuple(profile.get("compiler.commands", ())),
        debian=tuple(profile.get("compiler.debian", ())),
        fault=fault,
    )


def python(path: Path) -> Path:
    """Return the interpreter of the environment at `path`."""
    return path / "bin" / "python"


def marker(path: Path) -> dict[str, Any] | None:
    """Read the marker of the environment at `path`; None where there is none that is whole."""
    try:
        noted = json.loads((path / MARKER).read_text())
    except (OSError, ValueError):
        return None
    whole = (
        isinstance(noted, dict)
        and isinstance(noted.get("requirements"), list)
        and isinstance(noted.get("packages"), dict)
        and python(path).exists()
    )
    return noted if whole else None


def find(name: str, profile: Profile, packages: Sequence[Package]) -> Found:
    """Find the Python for a tool: that of the variable, else npuc's environment, else this one.

    Everything that is missing is named at once, commands on PATH among it; never raises.
    """
    environment = of(profile)
    if environment is None:
        return Found(Toolchain(name, "", f"the profile of {profile.name} names no environment"))
    found = _python(name, environment, packages)
    absent, remedy = environment.lacking()
    if not absent:
        return found
    faults = [found.toolchain.missing, absent]
    remedies = [found.toolchain.remedy, remedy]
    toolchain = replace(
        found.toolchain,
        missing="; ".join(filter(None, faults)),
        remedy=" && ".join(filter(None, remedies)),
    )
    return Found(toolchain)


def _python(name: str, environment: Environment, packages: Sequence[Package]) -> Found:
    installed = environment.installed()
    if os.environ.get(environment.variable) or installed is None:
        return foreign.python(name, environment.variable, packages, environment.remedy)
    version = next((installed[p.distribution] for p in packages if p.distribution in installed), "")
    command = (str(python(environment.path)),)
    return Found(Toolchain(name, version or foreign.UNKNOWN), command)
