"""The command as a process: how it ends, and what signals, pipes and terminals do to it."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Run a test in an empty folder."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


ENDING = """
import atexit, sys, threading
from npuc import cli
class Kept:
    def __del__(self): print("taken apart")
kept = Kept()
atexit.register(print, "at exit")
sys.argv[1:] = ["inspect", "nothing.npuc"]
def go(): print("late", end=" ")
threading.Timer(0.5, go).start() if LATE else None
print("unflushed")
cli.program()
"""


@pytest.mark.parametrize(
    ("late", "text"),
    [(False, "unflushed\nat exit\n"), (True, "unflushed\nlate at exit\ntaken apart\n")],
)
def test_a_process_ends_at_once_unless_a_thread_is_at_work(
    folder: Path, late: bool, text: str
) -> None:
    code = ENDING.replace("LATE", str(late))
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.stdout, done.returncode) == (text, 3)
    assert len(done.stderr.splitlines()) < 4


SLEEPER = """
import sys, time, types
from npuc.atomic import atomic_write
def compile(*args, progress, **kwargs):
    with atomic_write("m.cpu.npuc"):
        progress.stage("writing")
        time.sleep(60)
sys.modules["npuc.pipeline"] = types.SimpleNamespace(compile=compile)
from npuc.cli import main
from npuc.errors import ToolchainError
sys.exit(main(["compile", "m.onnx", "-t", "cpu"]))
"""


@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT", "SIGHUP"])
def test_signals_leave_no_temporary_files(name: str, folder: Path) -> None:
    run = subprocess.Popen([sys.executable, "-c", SLEEPER], stderr=subprocess.PIPE, text=True)
    with run:
        assert run.stderr is not None
        assert run.stderr.readline() == "npuc: writing\n"
        assert len(list(folder.iterdir())) == 1
        run.send_signal(signal.Signals[name])
        assert run.stderr.read() == "npuc: interrupted\n"
    assert run.returncode == 130
    assert list(folder.iterdir()) == []


COMMAND = [sys.executable, "-m", "npuc"]


def test_a_reader_that_goes_away_is_no_error() -> None:
    run = subprocess.Popen(
        [*COMMAND, "passes"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert run.stdout is not None and run.stderr is not None
    run.stdout.close()
    with run.stderr:
        assert run.stderr.read() == ""
    assert run.wait() == 141


def test_results_that_cannot_be_written_are_an_error() -> None:
    with open("/dev/full", "w") as full:
        run = subprocess.run([*COMMAND, "passes"], stdout=full, stderr=subprocess.PIPE, text=True)
    assert run.returncode == 8
    assert run.stderr == "npuc: cannot write to standard output: No space left on device\n"


def test_terminals_without_unicode_get_the_text() -> None:
    environment = {**os.environ, "PYTHONIOENCODING": "ascii"}
    run = subprocess.run([*COMMAND, "passes"], capture_output=True, text=True, env=environment)
    assert run.returncode == 0 and "fold-constants" in run.stdout
