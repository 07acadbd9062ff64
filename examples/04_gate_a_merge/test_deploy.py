"""A test for your own repository: no merge unless the model still answers the same when compiled.

Set MODEL to a file that npuc.save wrote (examples/01_train_and_save.py): pytest test_deploy.py
"""

import os
from pathlib import Path

import pytest

import npuc

MODEL = os.environ.get("MODEL", "zoo:digits-resnet")


@pytest.mark.parametrize("target", ["cpu", "atom"])
def test_the_compiled_model_answers_like_the_original(target: str, tmp_path: Path) -> None:
    (compiled,) = npuc.compile(
        MODEL, target=target, precision="int8", output=tmp_path / "model.npuc"
    )
    report = compiled.report
    assert report.passed, report.table()
    # Tighter than npuc's own bars: what this product needs.
    (last,) = [row for row in report.rows if row.stage == "artifact"]
    for output in last.original:
        assert output.sqnr_db > 22, report.table()
    # The file on disk is what will be shipped: check every byte of it, and what it answers.
    assert npuc.verify(compiled.artifact_path).passed
