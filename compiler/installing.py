"""Build one virtual environment from pinned requirements, whole or not at all."""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path

from npuc import atomic
from npuc.errors import ToolchainError
from npuc.targets import vendor
from npuc.targets.environments import MARKER, Environment, python

INSTALL_SECONDS = 3600.0
"""What fetching and unpacking may take: some compilers bring gigabytes."""

LOG = "install.log"
Say = Callable[[str], None]

_VERSIONS = """
import importlib.metadata as m, json
print(json.dumps({d.metadata["Name"]: d.version for d in m.distributions()}))
"""


def interpreter(environment: Environment) -> str:
    """Return a Python of a version that the packages exist for; raises `ToolchainError`."""
    from packaging.specifiers import SpecifierSet

    wanted = SpecifierSet(environment.python)
    here = ".".join(map(str, sys.version_info[:3]))
    if wanted.contains(here):
        return sys.executable
    for minor in range(20, 5, -1):
        found = shutil.which(f"python3.{minor}")
        if found and wanted.contains(f"3.{minor}"):
            return found
    raise ToolchainError(
        f"{environment.name} needs Python {environment.python}; here are {here} and none that fits",
        hint=f"install such a Python as python3.N on PATH, then: {environment.remedy}",
    )


def create(environment: Environment, interpreter: str, say: Say) -> None:
    """Build the environment with `interpreter`, and write its marker last.

    Raises `ToolchainError` where pip fails; then nothing is left of it but the log.
    """
    path = environment.path
    if path.exists():
        say(f"removing what is in {path}: it is incomplete or has other pins")
        (path / MARKER).unlink(missing_ok=True)
        shutil.rmtree(path)
    say(f"creating {path}")
    log = _log(environment.name)
    try:
        _run([interpreter, "-m", "venv", str(path)], log, say)
        pip = [str(python(path)), "-m", "pip", "install", "--no-input", "--progress-bar=off"]
        _run([*pip, *environment.requirements], log, say)
        packages = _packages(path)
    except BaseException:
        shutil.rmtree(path, ignore_errors=True)
        raise
    os.replace(log, path / LOG)
    about = {
        "requirements": list(environment.requirements),
        "packages": packages,
        "bytes": sum(f.lstat().st_size for f in path.rglob("*") if not f.is_dir()),
    }
    with atomic.atomic_write(path / MARKER) as part:
        part.write_text(json.dumps(about, indent=1, sort_keys=True) + "\n")


def _log(name: str) -> Path:
    folder = vendor.logs()
    folder.mkdir(parents=True, exist_ok=True)
    handle, path = tempfile.mkstemp(".log", f"toolchain-{name}-", folder)
    os.close(handle)
    return Path(path)


def _run(command: list[str], log: Path, say: Say) -> None:
    """Run a step, its output in `log`; it ends when npuc ends, in whatever way."""
    guard = [sys.executable, "-I", str(Path(vendor.__file__).with_name("guard.py"))]
    with log.open("ab") as out:
        process = subprocess.Popen(
            [*guard, *command], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT, start_new_session=True,
        )  # fmt: skip
        assert process.stdout is not None
        watchdog = threading.Timer(INSTALL_SECONDS, _end, [process])
        watchdog.start()
        try:
            for line in process.stdout:
                out.write(line)
                text = line.decode(errors="replace").strip()
                if text.startswith(("Collecting", "Downloading", "Installing", "Building")):
                    say(text[:100])
            status = process.wait()
        finally:
            watchdog.cancel()
            _end(process)
    if status:
        words = log.read_text(errors="replace").strip().splitlines()[-8:]
        raise ToolchainError(
            f"{' '.join(command[1:4])} failed with exit status {status}\n  " + "\n  ".join(words),
            hint=f"read its whole log: {log}",
        )


def _end(process: "subprocess.Popen[bytes]") -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    for pipe in (process.stdin, process.stdout):
        if pipe is not None:
            pipe.close()


def _packages(path: Path) -> dict[str, str]:
    """Return the versions of what was installed, as its own Python sees them."""
    done = subprocess.run(
        [str(python(path)), "-c", _VERSIONS], capture_output=True, text=True, timeout=120
    )
    try:
        return dict(json.loads(done.stdout))
    except ValueError as error:
        raise ToolchainError(f"{python(path)} does not run: {done.stderr[-300:]}") from error
