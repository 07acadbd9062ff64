"""The edge between npuc and a terminal: output that cannot be cut silently, signals, exit codes."""

import atexit
import contextlib
import errno
import io
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from types import FrameType
from typing import TYPE_CHECKING, Any, NoReturn

from npuc.errors import NpucError, OutputError
from npuc.text import harmless

if TYPE_CHECKING:
    from npuc.progress import Progress

INTERRUPTED = 130
PIPE_CLOSED = 141  # what a shell reports for a program that SIGPIPE ended


def out(text: str) -> None:
    """Write a result to stdout; raises `OutputError` where it cannot be written."""
    try:
        sys.stdout.write(harmless(text.rstrip("\n")) + "\n")
        sys.stdout.flush()
    except OSError as error:
        if error.errno == errno.EPIPE:
            raise
        _discard_stdout()
        raise OutputError(f"cannot write to standard output: {error.strerror}") from error


def json_out(data: Any) -> None:
    """Write a result to stdout as JSON; a non-finite number becomes its name."""
    import json

    from npuc.jsonable import plain

    out(json.dumps(plain(data), indent=2, allow_nan=False))


def complain(text: str) -> None:
    """Write an error to stderr."""
    print(harmless(f"npuc: {text}"), file=sys.stderr)


@contextlib.contextmanager
def progress(quiet: bool) -> Iterator["Progress"]:
    """Report progress on stderr, and leave the terminal clean whatever happens."""
    from npuc.progress import reporter

    shown = reporter(quiet)
    try:
        yield shown
    finally:
        shown.close()


def guarded(verb: Callable[[], int]) -> int:
    """Run a verb and turn what can go wrong into a message on stderr and an exit code."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a terminal without "→" still gets the text
            stream.reconfigure(errors="replace")
    try:
        with _ended_like_ctrl_c():
            return verb()
    except NpucError as error:
        complain(str(error))
        return error.exit_code
    except KeyboardInterrupt as stopped:
        kept = getattr(stopped, "__notes__", [])
        complain("; ".join(["interrupted", *kept]))
        return INTERRUPTED
    except BrokenPipeError:
        _discard_stdout()
        return PIPE_CLOSED


def ended(code: int) -> NoReturn:
    """End this process: what waits for its end is done, memory is left to the system.

    Python would take a million objects of torch, sympy and tvm apart first, for 1.7 s after a
    compile of ResNet-50.
    """
    others = [thread for thread in threading.enumerate() if not thread.daemon]
    if others == [threading.main_thread()]:
        atexit._run_exitfuncs()
        with contextlib.suppress(OSError, ValueError):  # Python says what could not be written
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)
    sys.exit(code)


@contextlib.contextmanager
def _ended_like_ctrl_c() -> Iterator[None]:
    """Let SIGTERM and SIGHUP unwind as Ctrl-C does, so that temporary files are removed."""

    def stop(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    if threading.current_thread() is not threading.main_thread():
        yield  # only the main thread may set handlers
        return
    wanted = (signal.SIGTERM, signal.SIGHUP)
    # A signal that the caller ignores (nohup) or handles stays as it is.
    taken = [number for number in wanted if signal.getsignal(number) is signal.SIG_DFL]
    for number in taken:
        signal.signal(number, stop)
    try:
        yield
    finally:
        for number in taken:
            signal.signal(number, signal.SIG_DFL)


def _discard_stdout() -> None:
    """Keep Python from failing once more when it flushes what is left at exit."""
    with contextlib.suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
