"""The tables of the latency benchmark say what is stored; nothing is timed here."""

import importlib
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

SCRIPT = Path(__file__).with_name("latency.py")


@pytest.fixture
def latency(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(SCRIPT.parent))
    return importlib.import_module("latency")


def row(own: float, *theirs: float, peak: int = 80) -> dict[str, Any]:
    def side(name: str, seconds: float, ratio: float | None, memory: int) -> dict[str, Any]:
        found = None if ratio is None else {"p50": ratio, "min": ratio}
        return {
            "name": name, "seconds": {"p50": seconds, "min": seconds}, "ratio": found,
            "peak_bytes": memory,
        }  # fmt: skip

    names = ("onnxruntime", "net.onnxruntime-int8.b1.onnx")
    peers = [side(n, t, own / t, 100) for n, t in zip(names, theirs, strict=False)]
    return {"sides": [side("npuc", own, None, peak), *peers], "reached": {"arithmetic": 0.5}}


ROWS = {
    "resnet18/float/batch 1/1 threads": row(0.01, 0.01),
    "resnet18/float/batch 1/2 threads": row(0.008, 0.002),
    "resnet18/int8/batch 1/1 threads": row(0.004, 0.020, 0.005),
    "lstm/int8/batch 8/2 threads": row(0.009, 0.010, peak=120),
}


def test_an_int8_row_is_held_against_the_faster_of_two(latency: Any) -> None:
    lines = list(latency.tables(ROWS))
    assert (
        "| float | 2 | 2.00 (2.00) | ≤ 1.0, MISSED | 4.00: resnet18, batch 1, 2 threads | "
        "≤ 1.15, MISSED |" in lines
    )
    # √(0.8 · 0.9) = 0.85
    (int8,) = [line for line in lines if line.startswith("| int8 | 2 | 0.85 (0.85)")]
    assert "0.90: lstm, batch 8, 2 threads | ≤ 1.15, held" in int8
    assert "| resnet18, float | 1.00 | 4.00 | - | - | 10 | 50% | 0.80 |" in lines
    assert "| resnet18, int8 | 0.80 | - | - | - | 4 | 50% | 0.80 |" in lines
    assert "| lstm, int8 | - | - | - | 0.90 | - | - | - |" in lines


def test_a_peer_that_did_not_run_is_no_ratio(latency: Any) -> None:
    failed = row(0.01)
    failed["sides"].append({"name": "onnxruntime", "why": "it cannot"})
    assert latency._ratio(failed) is None
    assert latency.line("x", failed) == "x: 10 ms, onnxruntime: it cannot"


def test_rows_are_stored_one_by_one(
    latency: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(latency, "STORE", tmp_path / "latency.json")
    assert latency.stored() == {}
    for key, value in ROWS.items():
        latency.keep(key, value)
    assert latency.stored() == ROWS == json.loads((tmp_path / "latency.json").read_text())


def test_it_lists_what_is_missing_and_refuses_unknown_models(latency: Any) -> None:
    def run(*words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run([sys.executable, str(SCRIPT), *words], capture_output=True, text=True)

    every = run("--list", "--again").stdout.splitlines()
    assert len(every) == len(latency.MODELS) * 2 * 2 * 2
    assert "unet/int8/batch 8/2 threads" in every
    done = run("resnet19")
    assert done.returncode == 2 and "unknown: resnet19" in done.stderr


def test_the_models_are_in_the_zoo(latency: Any) -> None:
    from npuc import models

    assert not set(latency.MODELS) - set(models.names())


def test_the_plain_export_keeps_the_recurrent_operator(latency: Any, tmp_path: Path) -> None:
    import onnxruntime as ort
    import torch

    class Tagger(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.gru = torch.nn.GRU(3, 5, batch_first=True)

        def forward(self, rows: torch.Tensor) -> torch.Tensor:
            steps: torch.Tensor = self.gru(rows)[0]
            return steps

    module, rows = Tagger().eval(), torch.randn(2, 4, 3)
    latency.write_export(module, (rows,), tmp_path / "plain.onnx")
    (written,) = tmp_path.iterdir()
    assert {node.op_type for node in onnx.load(written).graph.node} >= {"GRU"}
    session = ort.InferenceSession(written)
    (answer,) = session.run(None, {session.get_inputs()[0].name: rows.numpy()})
    np.testing.assert_allclose(np.asarray(answer), module(rows).detach().numpy(), atol=1e-6)


def test_a_recurrent_float_row_is_held_against_the_plain_export(latency: Any) -> None:
    recurrent = row(0.009, 0.012)
    peer = {**recurrent["sides"][1], "name": "lstm.exported.b1.onnx", "ratio": {"p50": 1.2}}
    recurrent["sides"].append(peer)
    assert latency._ratio(recurrent) == {"p50": 1.2}


def test_other_runtimes_have_a_table_of_their_own(latency: Any) -> None:
    measured = row(0.01, 0.01)
    measured["sides"].append({"name": "openvino", "ratio": {"p50": 1.25, "min": 1.2}})
    measured["sides"].append({"name": "torch", "why": "not installed"})
    lines = list(latency.tables({"bert-base/bf16/batch 1/1 threads": measured}))
    assert "| bf16 | 1 | 1.00 (1.00) | - | 1.00: bert-base, batch 1, 1 thread | ≤ 1.15, held |" in (
        lines
    )
    assert lines[-3:] == [
        "| npuc's time / that of | OpenVINO | torch.compile, float32 |",
        "|---|---:|---:|",
        "| bert-base, bf16, batch 1, 1 thread | 1.25 | - |",
    ]
    assert not any("OpenVINO" in line for line in latency.tables(ROWS))
