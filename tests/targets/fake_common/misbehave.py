"""What vendors' compilers do wrong, for the stand-ins of the tests.

FAKE_MODE chooses: at start ``import``, ``exit``, ``exit0``, ``kill``, ``segv``, ``hang``; in the
call ``raise``, ``disk``, ``noise``; with the result ``nothing``, ``empty``, ``garbage``.
FAKE_CHILD names a file for the process ids of ``hang`` and of the child it leaves running.
"""

import errno
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

MODE = os.environ.get("FAKE_MODE", "")


def at_start() -> None:
    """Fail as a package does when it is imported, or a command before it reads its arguments."""
    if MODE == "import":
        raise ImportError("libvendor.so: cannot open shared object file")
    if MODE == "exit":
        sys.exit("fail to find the compiler library")
    if MODE == "exit0":
        sys.exit(0)
    if MODE in ("kill", "segv"):
        os.kill(os.getpid(), signal.SIGKILL if MODE == "kill" else signal.SIGSEGV)
    if MODE == "hang":
        child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
        Path(os.environ["FAKE_CHILD"]).write_text(f"{os.getpid()} {child.pid}")
        time.sleep(600)


def in_call() -> None:
    """Fail as a compiler does at work, or only look as if."""
    if MODE == "raise":
        raise RuntimeError("NotSupportError: no such operator")
    if MODE == "disk":
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    if MODE == "noise":
        print("E compiler: unknown op target: 0\n" * 1000, file=sys.stderr)


def write(path: Path, magic: bytes, **seen: Any) -> None:
    """Write the result: what was handed over, after `magic`; or not quite."""
    if MODE != "nothing":
        seen |= {"home": os.environ.get("HOME", ""), "cache": os.environ.get("FC_CACHE_ENABLED")}
        content = {"empty": b"", "garbage": b"\0not a binary"}
        path.write_bytes(content.get(MODE, magic + json.dumps(seen, default=str).encode()))
