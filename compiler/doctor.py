"""Check that this machine has what npuc needs, by trying it, and say how to get what is missing."""

import platform
import subprocess
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from importlib import metadata

from npuc import plugins
from npuc.errors import ToolchainError
from npuc.progress import Progress

_IMPORTS = {
    "torch": "torch",
    "onnx": "onnx",
    "onnx-ir": "onnx_ir",
    "onnxscript": "onnxscript",
    "onnxsim": "onnxsim",
    "onnxruntime": "onnxruntime",
    "apache-tvm": "tvm",
    "safetensors": "safetensors",
}
"""What is imported to see that it works, by distribution: binaries can be broken or mismatched."""

IMPORT_TIMEOUT = 300.0
"""Seconds one import may take; torch's first on a slow disk takes tens of seconds."""


@dataclass(frozen=True, slots=True)
class Check:
    """One thing looked at. `fault` is empty where it is as it should be; `remedy` is a command."""

    name: str
    found: str
    fault: str = ""
    remedy: str = ""
    required: bool = True

    @property
    def status(self) -> str:
        """Return "ok", "missing" for what npuc needs, or "absent" for what it can do without."""
        if not self.fault:
            return "ok"
        return "missing" if self.required else "absent"


def examine(progress: Progress, targets: Iterable[str] = ()) -> tuple[Check, ...]:
    """Check Python, every library npuc requires, the linker and the targets' own tools.

    The tools of the targets named are required; those of other targets are not, since npuc
    compiles for them without. Raises `UsageError` for an unknown target.
    """
    wanted = frozenset(targets)
    plugins.describe(sorted(wanted))  # an unknown name fails before the slow checks
    checks = [Check("python", platform.python_version())]
    for check in _libraries():
        progress.stage(f"checking {check.name}")
        checks.append(check if check.fault else _imported(check))
    progress.stage("checking the linker")
    checks.append(_linker())
    for info in plugins.describe():
        progress.stage(f"checking target {info.name}")
        checks.append(_target(info, info.name in wanted))
    return tuple(checks)


def _libraries() -> Iterator[Check]:
    """Compare what is installed with what npuc's own metadata asks for."""
    from packaging.requirements import Requirement

    for line in metadata.requires("npuc") or ():
        need = Requirement(line)
        if need.marker is not None and not need.marker.evaluate({"extra": ""}):
            continue
        spelled = f"{need.name}{need.specifier}"
        remedy = f'{sys.executable} -m pip install "{spelled}"'
        try:
            version = metadata.version(need.name)
        except metadata.PackageNotFoundError:
            yield Check(need.name, "", "not installed", remedy)
            continue
        fits = need.specifier.contains(version, prereleases=True)
        yield Check(need.name, version, "" if fits else f"npuc needs {spelled}", remedy)


def _imported(check: Check) -> Check:
    """Import a library in a process of its own, where a crash is an answer."""
    module = _IMPORTS.get(check.name)
    if module is None:
        return Check(check.name, check.found)
    command = [sys.executable, "-c", f"import {module}"]
    try:
        run = subprocess.run(command, capture_output=True, text=True, timeout=IMPORT_TIMEOUT)
    except subprocess.TimeoutExpired:
        fault = f"importing {module} takes more than {IMPORT_TIMEOUT:.0f} s"
        return Check(check.name, check.found, fault, check.remedy)
    if run.returncode == 0:
        return Check(check.name, check.found)
    last = (run.stderr.strip().splitlines() or [f"exit code {run.returncode}"])[-1]
    remedy = check.remedy.replace("pip install", "pip install --force-reinstall --no-deps")
    return Check(check.name, check.found, f"importing {module} fails: {last}", remedy)


def _linker() -> Check:
    from npuc.targets.tvm.linker import find_linker

    try:
        linker = find_linker()
    except ToolchainError as error:
        return Check("linker", "", error.message, error.hint)
    return Check("linker", f"{linker.name} {linker.version}")


def _target(info: plugins.TargetInfo, required: bool) -> Check:
    name = f"target {info.name}"
    if info.toolchain is None:
        return Check(name, info.distribution, info.fault, info.remedy, required)
    tool = info.toolchain
    found = f"{tool.name} {tool.version}".strip()
    return Check(name, found, tool.missing, tool.remedy, required)
