"""The verb: a report, an artifact or a model goes in; text or JSON and an exit code come out."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from npuc import artifact, pipeline, stored
from npuc.blame import sources
from npuc.cli import main
from npuc.errors import UsageError
from npuc.members import REFERENCE
from npuc.passes.quantize import Quantize


def saturated(model: ir.Model) -> None:
    """Stop the codes of the first convolution's weight at 10."""
    node = next(n for n in model.graph if n.op_type == "Conv")
    decoder = node.inputs[1].producer() if node.inputs[1] is not None else None
    held = None if decoder is None else decoder.inputs[0]
    assert held is not None and held.const_value is not None
    held.const_value = ir.tensor(np.clip(held.const_value.numpy(), -10, 10), name=held.name)


def test_a_failing_report_leads_to_the_cause(
    blocks: Path, tmp_path: Path, broken: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    report = tmp_path / "report.json"
    bundle = tmp_path / "fault.zip"
    with broken(Quantize, saturated):
        made = ["compile", str(blocks), "-t", "cpu", "-q", "--precision", "int8"]
        assert main([*made, "-o", str(tmp_path / "m.npuc"), "--json"]) == 6
        report.write_text(capsys.readouterr().out)
        assert main(["blame", str(report), "-q", "-o", str(bundle)]) == 6
    said = capsys.readouterr().out
    assert "BLAME: quantization step 'quantize'" in said and "stem.weight" in said
    assert f"python {bundle}" in said and bundle.exists()


def test_a_model_and_its_json(blocks: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["blame", str(blocks), "-t", "cpu", "--precision", "float", "-q", "--json"]) == 0
    data = json.loads(capsys.readouterr().out)
    assert data["schema"] == "npuc-blame-1" and data["found"] is False and data["runs"] > 2


def test_an_artifact_tells_its_program_from_its_payload(
    blocks: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (made,) = pipeline.compile(blocks, target="cpu", precision="float", output=tmp_path)
    assert main(["blame", str(made.artifact_path), "-q"]) == 0
    capsys.readouterr()
    opened = artifact.read(made.artifact_path)
    members = dict(opened)
    reference = stored.decode(members[REFERENCE])
    wrong = tuple({k: v + np.float32(1) for k, v in a.items()} for a in reference.outputs)
    path = tmp_path / "stale.npuc"
    stale = {**members, REFERENCE: stored.encode(replace(reference, outputs=wrong))}
    artifact.write(path, opened.manifest, stale)
    assert main(["blame", str(path), "-q"]) == 6
    said = capsys.readouterr().out
    assert sources.STORED in said and "--against MODEL" in said
    assert main(["blame", str(path), "-q", "--against", str(blocks)]) == 0


def test_what_a_report_cannot_tell_is_asked_for(tmp_path: Path) -> None:
    path = tmp_path / "report.json"
    row = {"target": "cpu", "rows": [], "passed": False}
    for data, match in (
        ({"compiled": [row]}, "does not say which model"),
        ({"compiled": [{**row, "call": {"source": "given in memory"}}]}, "given in memory"),
        ({"compiled": [], "failed": {"cpu": {}}}, "ended with an error"),
        ([], "holds no report"),
    ):
        path.write_text(json.dumps(data))
        with pytest.raises(UsageError, match=match):
            sources.from_report(path)


@pytest.mark.parametrize(
    ("words", "match"),
    [
        (["model.pt"], "which target"),
        (["a.pt", "b.pt"], "several sources"),
    ],
)
def test_usage(words: list[str], match: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["blame", *words]) == 2
    assert match in capsys.readouterr().err


def test_a_search_is_not_done_again_but_what_it_found(
    blocks: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["blame", str(blocks), "-t", "cpu", "--precision", "auto"]) == 2
    assert "searches anew" in capsys.readouterr().err
    kept = [{"layer": {"node": "no such node"}}]
    call = {"source": str(blocks), "precision": "auto", "budget": 3.0}
    report = {"target": "cpu", "rows": [], "passed": False, "call": call, "mixed": {"kept": kept}}
    path = tmp_path / "report.json"
    path.write_text(json.dumps(report))
    with pytest.raises(UsageError, match="--skip: there is no node 'no such node'"):
        sources.from_report(path)
