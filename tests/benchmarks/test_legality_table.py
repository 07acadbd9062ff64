"""The README's table of what every target takes is made as it says."""

import subprocess
import sys
from pathlib import Path

import pytest

from npuc import plugins

SCRIPT = Path(__file__).with_name("legality.py")


@pytest.mark.slow
def test_every_target_has_a_cell_and_each_gap_is_shown_before_and_after() -> None:
    done = subprocess.run(
        [sys.executable, str(SCRIPT), "digits-lstm"], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    rows = [line.split(" | ") for line in done.stdout.splitlines() if line.startswith("| `")]
    named = {name.strip("|` ") for row in rows for name in row[0].split()} - {""}
    assert named == set(plugins.names())
    (lstm,) = [line for line in done.stdout.splitlines() if line.startswith("| LSTM")]
    assert "`digits-lstm`: LSTM 1" in lstm
    assert "Sigmoid" in lstm.split("|")[5]
