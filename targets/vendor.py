"""Run a vendor's tool: in its own process group, with a private HOME, a limit and a kept log."""

import contextlib
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from npuc.errors import OutputError, ToolchainError

LOG_LIMIT = 1 << 20
"""Bytes of a tool's output, counted from its end, that `run` returns."""

LAST_LINES = 12


def run(
    tool: str,
    command: Sequence[str],
    *,
    produces: Path,
    timeout: float,
    env: Mapping[str, str] | None = None,
    magic: bytes = b"",
) -> bytes:
    """Run `command` until it ends and return its output; `produces` is the file it must write.

    One of that name that is there before is removed; `magic` is how the new one must begin.

    `timeout` is in seconds. The tool gets an empty HOME and TMPDIR of its own: vendors' compilers
    cache failures there, and a killed one leaves files behind. Nothing it started in its process
    group survives this call, nor npuc itself being killed.

    Raises `ToolchainError` where it fails, hangs or writes nothing; the log then stays in
    `logs()`, named in the error.
    """
    log = _new_log(tool)
    produces.unlink(missing_ok=True)
    with tempfile.TemporaryDirectory(prefix="npuc-", ignore_cleanup_errors=True) as private:
        fault = _run(command, log, timeout, _environment(Path(private), env or {}))
    if not fault and not (produces.is_file() and produces.stat().st_size):
        fault = f"ended without an error and without writing {produces.name}"
    if not fault and not _begins(produces, magic):
        fault = f"wrote a {produces.name} that does not begin with {magic!r}"
    output = log.read_bytes()
    if fault:
        raise ToolchainError(
            f"{tool} {fault}{_last_words(output)}",
            hint=f"read its whole log: {log}",
        )
    log.unlink()
    return output[-LOG_LIMIT:]


def logs() -> Path:
    """Return the folder in which logs of failed tools stay: ``$XDG_CACHE_HOME/npuc/logs``."""
    cache = os.environ.get("XDG_CACHE_HOME")
    return (Path(cache) if cache else Path.home() / ".cache") / "npuc" / "logs"


def _begins(path: Path, magic: bytes) -> bool:
    with path.open("rb") as file:
        return file.read(len(magic)) == magic


def _new_log(tool: str) -> Path:
    folder, stamp = logs(), time.strftime("%Y%m%d-%H%M%S")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(".log", f"{tool}-{stamp}-", folder)
    except OSError as error:
        raise OutputError(
            f"no log can be kept in {folder}: {error.strerror}",
            hint="set XDG_CACHE_HOME to a folder that can be written",
        ) from error
    os.close(handle)
    return Path(name)


def _run(command: Sequence[str], log: Path, timeout: float, env: Mapping[str, str]) -> str:
    """Run to the end or to the limit; returns what went wrong, or nothing."""
    guard = [sys.executable, "-I", str(Path(__file__).with_name("guard.py"))]
    with log.open("wb") as out:
        process = subprocess.Popen(
            [*guard, *command],
            stdin=subprocess.PIPE,
            stdout=out,
            stderr=subprocess.STDOUT,
            env=env,
            start_new_session=True,
        )
        try:
            status = process.wait(timeout)
        except subprocess.TimeoutExpired:
            return f"gave no result in {timeout:g} s and was stopped"
        finally:
            _end(process)
    if status == 0:
        return ""
    if status < 0:
        return f"was killed by signal {-status} ({signal.Signals(-status).name})"
    return f"failed with exit status {status}"


def _end(process: "subprocess.Popen[bytes]") -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    if process.stdin is not None:
        process.stdin.close()


def _environment(private: Path, extra: Mapping[str, str]) -> dict[str, str]:
    home, temporary = private / "home", private / "tmp"
    home.mkdir()
    temporary.mkdir()
    # Packages of `pip install --user` are found through HOME, which is another one now.
    user_base = os.environ.get("PYTHONUSERBASE") or str(Path.home() / ".local")
    return {
        **os.environ,
        "HOME": str(home),
        "XDG_CACHE_HOME": str(home / ".cache"),
        "TMPDIR": str(temporary),
        "PYTHONUSERBASE": user_base,
        "PYTHONUNBUFFERED": "1",
        "PYTHONFAULTHANDLER": "1",
        **extra,
    }


def _last_words(output: bytes) -> str:
    text = output[-LOG_LIMIT:].decode(errors="replace")
    lines = [line.rstrip()[:300] for line in text.splitlines() if line.strip()]
    shown = ("".join(c for c in line if c.isprintable()) for line in lines[-LAST_LINES:])
    return "".join(f"\n  {line}" for line in shown)
