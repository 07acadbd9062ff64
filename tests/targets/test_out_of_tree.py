"""A target of another package: found by its entry point, held to the same suite as npuc's own."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
TINYC = """#!/bin/sh
if [ "$1" = --version ]; then echo 1.0; exit; fi
head -c 4 "$1" > "$2" && echo done
"""


def run(*words: str, **env: str) -> "subprocess.CompletedProcess[str]":
    """Run Python where the example's folder is on the path, as if it were installed."""
    merged = {**os.environ, "PYTHONPATH": str(HERE / "out_of_tree"), **env}
    return subprocess.run([sys.executable, *words], capture_output=True, text=True, env=merged)


def test_it_is_listed_with_what_is_missing() -> None:
    done = run("-m", "npuc", "targets", "--json")
    listed = {t["name"]: t for t in json.loads(done.stdout)["targets"]}
    assert listed["tiny"]["distribution"] == "tinychip"
    assert listed["tiny"]["toolchain"]["remedy"] == "put tinyc on PATH"
    assert "cpu" in listed


def test_it_passes_the_conformance_suite() -> None:
    suite = str(HERE / "test_conformance.py")
    words = ("-m", "pytest", "-q", "-p", "no:cacheprovider", "--import-mode=importlib")
    done = run(*words, suite, "-k", "tiny")
    assert done.returncode == 0, done.stdout[-4000:]
    assert " passed" in done.stdout and "failed" not in done.stdout


@pytest.mark.parametrize("there", [False, True])
def test_its_compiler_runs_where_it_is(tmp_path: Path, there: bool) -> None:
    """Without the command the artifact is a twin with a kit, with it vendor-compiled."""
    if there:
        (tmp_path / "tinyc").write_text(TINYC)
        (tmp_path / "tinyc").chmod(0o755)
    out = tmp_path / "m.npuc"
    words = ("-m", "npuc", "compile", "zoo:digits-resnet", "-t", "tiny", "-o", str(out), "--json")
    done = run(*words, PATH=f"{tmp_path}:{os.environ['PATH']}")
    assert done.returncode == 0, done.stderr
    (report,) = json.loads(done.stdout)["compiled"]
    assert report["evidence"] == ("vendor-compiled" if there else "twin")
    assert report["vendor"].startswith("tinyc compiled" if there else "tinyc was not run")
