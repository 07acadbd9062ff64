"""The benchmarks run and refuse what would store wrong figures; nothing is timed here."""

import subprocess
import sys
from pathlib import Path

import pytest

RUN = Path(__file__).with_name("run.py")


def _run(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, str(RUN), *words], capture_output=True, text=True)


def test_a_quick_run_prints_a_row_per_quantity() -> None:
    done = _run("start", "--quick")
    assert done.returncode == 0, done.stderr
    rows = [line for line in done.stdout.splitlines() if "`python -c pass`" in line]
    assert [row.split("`")[1] for row in rows] == ["npuc --help", "npuc targets"]
    assert all(row.count("|") == 7 for row in rows)


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (("nothing",), "unknown: nothing; there are start, mobilenet, resnet18, resnet50, cache"),
        (("start", "--quick", "--write"), "--quick measures too little to be written"),
    ],
)
def test_it_says_what_it_cannot_do(words: tuple[str, ...], why: str) -> None:
    done = _run(*words)
    assert done.returncode == 2
    assert why in done.stderr
