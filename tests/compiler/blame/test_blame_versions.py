"""Versions: artifacts of several toolchains, and environments that compile."""

import stat
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from npuc import artifact, pipeline, stored
from npuc.blame import versions
from npuc.cli import main
from npuc.errors import ToolchainError, UsageError
from npuc.members import REFERENCE


@pytest.fixture(scope="module")
def series(blocks: Path, tmp_path_factory: pytest.TempPathFactory) -> Sequence[Path]:
    """Eight artifacts of one model by as many toolchains; those from the sixth on are wrong."""
    folder = tmp_path_factory.mktemp("series")
    (made,) = pipeline.compile(blocks, target="cpu", precision="float", output=folder)
    opened = artifact.read(made.artifact_path)
    members = dict(opened)
    reference = stored.decode(members[REFERENCE])
    wrong = tuple({k: v + np.float32(0.1) for k, v in a.items()} for a in reference.outputs)
    broken = {**members, REFERENCE: stored.encode(replace(reference, outputs=wrong))}
    paths = []
    for number in range(8):
        manifest = replace(
            opened.manifest, toolchain={**opened.manifest.toolchain, "sdk": f"2.{24 + number}"}
        )
        path = folder / f"sdk-{number}.npuc"
        artifact.write(path, manifest, broken if number >= 5 else members)
        paths.append(path)
    return paths


def test_artifacts_are_bisected_and_the_version_named(series: Sequence[Path]) -> None:
    found = versions.artifacts(series)
    assert found.good is not None and found.bad is not None
    assert (found.good.versions["sdk"], found.bad.versions["sdk"]) == ("2.28", "2.29")
    assert found.changed == ("sdk: 2.28 → 2.29",)
    assert len(found.tried) <= 5 and found.exit_code == 6
    assert "sdk: 2.28 → 2.29" in found.text()


def test_ends_are_told_apart(series: Sequence[Path]) -> None:
    assert versions.artifacts(series[:4]).exit_code == 0
    first = versions.artifacts(series[5:])
    assert first.good is None and "the first of the list" in first.text()
    with pytest.raises(UsageError, match="two versions or more"):
        versions.artifacts(series[:1])


def test_the_verb_bisects_artifacts(
    series: Sequence[Path], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["blame", *map(str, series), "--quiet"]) == 6
    assert "sdk: 2.28 → 2.29" in capsys.readouterr().out


def interpreter(path: Path, code: int, said: str) -> str:
    """Write what stands for an environment's Python: it says something and ends."""
    path.write_text(f"#!/bin/sh\necho '{said}'\necho HOME is $HOME\nexit {code}\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return str(path)


def test_environments_are_bisected_with_logs_and_a_home_of_their_own(tmp_path: Path) -> None:
    pythons = [interpreter(tmp_path / f"py{n}", 0 if n < 3 else 6, "FAILED: x") for n in range(6)]
    found = versions.environments(pythons, "m.pt", "cpu", logs=tmp_path / "logs")
    assert found.good is not None and found.bad is not None
    assert (found.good.name, found.bad.name) == (pythons[2], pythons[3])
    assert found.bad.why == "FAILED: x" and len(found.tried) <= 4
    said = Path(found.bad.log).read_text()
    assert "HOME is " in said and str(Path.home()) not in said.replace(str(tmp_path), "")


def test_an_environment_that_cannot_compile_says_nothing_of_the_answer(tmp_path: Path) -> None:
    pythons = [interpreter(tmp_path / f"py{n}", 3 * n, "no such module") for n in range(2)]
    with pytest.raises(ToolchainError, match=r"exit code 3(.|\n)*no such module"):
        versions.environments(pythons, "m.pt", "cpu", logs=tmp_path / "logs")
    with pytest.raises(ToolchainError, match="does not compile"):
        versions.environments(["/no/python"] * 2, "m.pt", "cpu", logs=tmp_path / "logs")


def test_a_real_environment_compiles(blocks: Path, tmp_path: Path) -> None:
    wrong = interpreter(tmp_path / "wrong", 6, "FAILED: exported")
    found = versions.environments(
        [sys.executable, wrong], str(blocks), "cpu", ["--precision", "float"], logs=tmp_path
    )
    assert found.good is not None and found.good.versions["npuc"]
