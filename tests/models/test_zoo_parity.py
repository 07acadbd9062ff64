"""Every trained reference model compiles for every target and passes under the default policy."""

from pathlib import Path

import pytest

from npuc import models
from npuc.artifact import read
from npuc.pipeline import compile

TRAINED = [name for name in models.names() if models.get(name).trained]


@pytest.mark.parametrize("name", TRAINED)
def test_it_compiles_for_both_targets_and_answers_like_the_original(
    name: str, tmp_path: Path
) -> None:
    done = compile(f"zoo:{name}", target=("cpu", "atom"), output=tmp_path)
    assert [c.report.target for c in done] == ["cpu", "atom"]
    for compiled in done:
        report = compiled.report
        assert report.passed, report.table()
        stages = [row.stage for row in report.rows]
        assert stages[0] == "exported" and "artifact" in stages
        assert all(row.calls > 0 for row in report.rows if row.state == "ok")
        read(compiled.artifact_path).verify()
    cpu, atom = (c.report for c in done)
    assert (cpu.evidence, atom.evidence) == ("device", "twin")
    assert "was not run" in atom.vendor
    assert {"quantize", "round-floats"} <= {row.stage for row in atom.rows}
