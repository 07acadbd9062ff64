"""Run one command in a fresh process and read what it cost from the kernel."""

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

_POLL = 0.005
"""Seconds between two looks at a child's anonymous memory; what lives shorter may be missed."""


@dataclass(frozen=True, slots=True)
class Cost:
    """One run. `wall` and `cpu` in seconds, `cpu` over all threads and waited-for descendants.

    `peak` is the kernel's high-water mark of resident memory in MiB, exact, but with the pages of
    shared libraries. `anonymous` is the largest anonymous resident memory that was seen in MiB.
    """

    wall: float
    cpu: float
    peak: float
    anonymous: float
    stdout: str


def run(command: Sequence[str], folder: Path) -> Cost:
    """Run a command in `folder` and wait for it; raises `SystemExit` with its stderr if it fails.

    The caller must be small: Linux hands a process's high-water mark on to its children at exec.
    """
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        start = time.perf_counter()
        child = subprocess.Popen(command, cwd=folder, stdout=out, stderr=err)
        anonymous = 0.0
        while True:
            # Look first, and do not reap: /proc is gone with the process.
            anonymous = max(anonymous, _anonymous(child.pid))
            if os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None:
                break
            time.sleep(_POLL)
        wall = time.perf_counter() - start
        _, status, usage = os.wait4(child.pid, 0)
        child.returncode = os.waitstatus_to_exitcode(status)
        err.seek(0)
        if child.returncode:
            text = err.read().decode(errors="replace")[-3000:]
            sys.exit(f"{' '.join(command)}: exit code {child.returncode}\n{text}")
        out.seek(0)
        stdout = out.read().decode()
    cpu = usage.ru_utime + usage.ru_stime
    return Cost(wall, cpu, usage.ru_maxrss / 1024, anonymous, stdout)


def blocking(command: Sequence[str], folder: Path) -> float:
    """Return the wall seconds of a short command, without the polling of `run`."""
    start = time.perf_counter()
    subprocess.run(command, cwd=folder, check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - start


def _anonymous(pid: int) -> float:
    """Return a process's anonymous resident memory in MiB; 0 once it has ended."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return 0.0
    for line in status.splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) / 1024
    return 0.0  # a zombie has no memory, and no such line
