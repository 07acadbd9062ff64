"""Run one command so that it cannot outlive the process that asked for it.

Started as a session leader with a pipe as its standard input. When the pipe closes, because the
other end is done or was killed, everything in the session's process group is killed. A signal
that ends the command ends the guard too, so the caller sees the command's own status.
"""

import os
import resource
import signal
import subprocess
import sys
import threading


def _watch() -> None:
    sys.stdin.buffer.read()
    os.killpg(0, signal.SIGKILL)


def main() -> int:
    """Run `sys.argv[1:]` and return its exit status; 127 where it cannot be started."""
    threading.Thread(target=_watch, daemon=True).start()
    try:
        child = subprocess.Popen(sys.argv[1:], stdin=subprocess.DEVNULL)
    except OSError as error:
        print(f"cannot start {sys.argv[1]}: {error.strerror}", file=sys.stderr)
        return 127
    status = child.wait()
    if status < 0:
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # the command has dumped its own
        if -status not in (signal.SIGKILL, signal.SIGSTOP):
            signal.signal(-status, signal.SIG_DFL)
        os.kill(os.getpid(), -status)
    return status


if __name__ == "__main__":
    # Not sys.exit: it would wait for the thread that holds the standard input.
    os._exit(main())
