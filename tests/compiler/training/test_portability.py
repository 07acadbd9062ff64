"""The reading is what a compile would say, of the weights as they are, in seconds."""

import copy
import gc
import json
import math
import weakref
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import npuc
from npuc import models
from npuc.errors import ExportError, NpucError, UnsupportedError, UsageError
from npuc.metrics import Difference
from npuc.simulation import structure
from npuc.training import programs
from npuc.training.result import EXACT_DB, Portability, Row


@pytest.fixture
def exports(monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """Count the exports of a model."""
    found: list[object] = []
    real = structure.exported

    def counted(*args: Any) -> structure.Structure:
        found.append(args)
        return real(*args)

    monkeypatch.setattr(structure, "exported", counted)
    return found


def sqnr(model: nn.Module, x: Tensor, **options: Any) -> float:
    return npuc.portability(model, x, ["warboy"], layers=0, **options).rows[0].sqnr_db


def test_it_says_what_a_compile_says(tmp_path: Path) -> None:
    """Half a decibel: lowering flips roundings that lie on a tie, and adds no error."""
    zoo, target = models.get("digits-resnet"), "atom"
    model, calls, samples = zoo.module(), zoo.calibration(16), zoo.samples(8)
    seen = npuc.portability(
        model.train(), samples[0], target, calibration=calls, samples=samples
    ).rows[0]
    path = tmp_path / "model.pt"
    npuc.save(model.eval(), samples[0], path, calibration=calls, samples=samples)
    (made,) = npuc.compile(path, target=target, output=tmp_path / "model.npuc")
    (row,) = [row for row in made.report.rows if row.stage == "artifact"]
    assert abs(seen.sqnr_db - min(d.sqnr_db for d in row.original)) < 0.5
    assert seen.layers and seen.layers[0].title in seen.finding


def test_a_shape_is_exported_once_and_weights_are_those_of_the_moment(
    task: Any, exports: list[object]
) -> None:
    model, x = task.model(), task.images[:8]
    first = sqnr(model, x)
    assert sqnr(model, x) == first
    # A power of two scales the answer and its error alike, but for bias correction's float sums.
    with torch.no_grad():
        model.get_parameter("5.weight").mul_(4.0)
        model.get_parameter("5.bias").mul_(4.0)
    assert sqnr(model, x) == pytest.approx(first, abs=1e-3)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.3 * torch.randn(parameter.shape)
    assert len(exports) == 1
    moved = sqnr(model, x)
    assert len(exports) == 1
    assert moved != first and moved == sqnr(copy.deepcopy(model), x)
    exports.clear()
    sqnr(model, task.images[:4])
    sqnr(model, x)
    assert len(exports) == 1


def test_it_judges_the_model_in_eval_mode(task: Any) -> None:
    """Running statistics are part of the weights, wherever training has moved them."""
    model, x = task.model().train(), task.images[:8]
    statistics = model.get_buffer("1.running_mean")
    model(3 * x + 1)
    own = npuc.portability(model, x, "cpu", precision="float", metric=lambda out, _: out[0].sum())
    assert own.rows[0].sqnr_db > 100 and own.rows[0].drop == pytest.approx(0, abs=1e-3)
    before = sqnr(model, x)
    statistics += 1.0
    moved = npuc.portability(model, x, "cpu", precision="float", metric=lambda out, _: out[0].sum())
    assert moved.rows[0].sqnr_db > 100
    assert sqnr(model, x) != before
    assert model.training and all(module.training for module in model.modules())


class Set(nn.Module):
    """A number that the script sets, and a buffer that a method moves."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(6, 6)
        self.pace = 1.0
        self.register_buffer("shift", torch.zeros(6))

    def forward(self, x: Tensor) -> Tensor:
        shift = self.get_buffer("shift")
        return torch.tanh(self.layer(x) * self.pace) + shift


def test_what_an_export_took_for_constant_may_change(exports: list[object]) -> None:
    torch.manual_seed(0)
    model, x = Set(), torch.randn(8, 6)
    sqnr(model, x)
    model.pace = 5.0
    again = sqnr(model, x)
    assert len(exports) == 2
    model.get_buffer("shift").add_(2.0)
    assert sqnr(model, x) > again + 3  # the same error beside a larger answer
    assert len(exports) == 3


def test_without_a_way_to_fill_weights_in_it_exports_again(
    task: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, x = task.model(), task.images[:8]
    usual = npuc.portability(model, x, "warboy", layers=0)
    programs.of(model).forget()

    def refused(*args: object) -> structure.Structure:
        raise UnsupportedError("gradients cannot follow w")

    monkeypatch.setattr(structure, "exported", refused)
    for _ in range(2):
        seen = npuc.portability(model, x, "warboy", layers=0)
        assert seen.rows == usual.rows
        assert "exported anew at every call: gradients cannot follow w" in seen.notes


def test_exports_go_with_their_model(task: Any) -> None:
    model = task.model()
    npuc.portability(model, task.images[:4], "atom", layers=0)
    known = weakref.ref(programs.of(model))
    del model
    gc.collect()
    assert known() is None


def test_batches_with_labels_and_a_metric(task: Any) -> None:
    model = task.model()
    batches = [(task.images[at : at + 10], task.labels[at : at + 10]) for at in range(0, 64, 10)]

    def right(outputs: list[Any], samples: list[Any]) -> float:
        hits = [o.argmax(1) == label for o, (_, label) in zip(outputs, samples, strict=True)]
        return float(torch.cat(hits).double().mean())

    seen = npuc.portability(
        model, batches[0], "atom,warboy", calibration=batches[:3], samples=batches, metric=right
    )
    assert [row.target for row in seen.rows] == ["atom", "warboy"]
    assert (seen.samples, seen.calibration) == (6, 3)
    assert seen.notes == ("samples: 1 of 7 calls have another shape than inputs: left out",)
    model.eval()
    with torch.no_grad():
        real = [model(x) for x, _ in batches[:6]]
    for row in seen.rows:
        assert row.drop is not None and row.agreement is not None
        assert abs(row.drop) <= 1 - row.agreement + 1e-9
    assert right(real, batches[:6]) > 0  # the metric takes what the model itself returns
    worse = npuc.portability(
        model, batches[0], "warboy", samples=batches, metric=lambda out, _: -float(out[0].std())
    ).rows[0]
    assert worse.drop is not None and worse.drop != 0


class Keyed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Linear(4, 3)

    def forward(self, x: Tensor, labels: Tensor | None = None) -> dict[str, Tensor]:
        y = self.a(x)
        found = {"y": y}
        if labels is not None:
            found["loss"] = nn.functional.cross_entropy(y, labels)
        return found


def test_labels_that_forward_takes_are_left_out_by_name() -> None:
    torch.manual_seed(0)
    batch = {"x": torch.randn(5, 4), "labels": torch.tensor([0, 1, 2, 0, 1])}
    seen = npuc.portability(
        Keyed(), batch, "atom", labels=["labels"], samples=[batch],
        metric=lambda outputs, samples: float(len(samples[0]["labels"]) - len(outputs[0])),
    )  # fmt: skip
    assert [d.output for d in seen.rows[0].outputs] == ["y"]
    assert seen.rows[0].drop == 0


def test_faults_are_raised_or_handed_over(task: Any) -> None:
    model, x = task.model(), task.images[:4]
    with pytest.raises(UsageError, match="unknown target 'atomm'"):
        npuc.portability(model, x, ["atomm"])
    with pytest.raises(UsageError, match="no target"):
        npuc.portability(model, x, [])
    with pytest.raises(UsageError, match="precision 'int3' is not available: atom has"):
        npuc.portability(model, x, ["atom"], precision="int3")
    with pytest.raises(UsageError, match="samples: it is empty"):
        npuc.portability(model, x, ["atom"], samples=[])
    with pytest.raises(UsageError, match="calibration: none of 1 calls has the shapes"):
        npuc.portability(model, x, ["atom"], calibration=[x[:3]])
    with pytest.raises(UnsupportedError, match="dx-m1 takes batch 1 only"):
        npuc.portability(model, x, ["dx-m1", "atom"])
    failed: list[tuple[str, NpucError]] = []
    seen = npuc.portability(
        model, x, ["dx-m1", "atom"], failed=lambda target, error: failed.append((target, error))
    )
    assert [row.target for row in seen.rows] == ["atom"]
    assert [target for target, _ in failed] == ["dx-m1"]

    class Branch(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x if x.sum() > 0 else -x

    with pytest.raises(ExportError, match="branches on the value"):
        npuc.portability(Branch(), x, ["atom"])


def difference(output: str, db: float, **more: Any) -> Difference:
    base: dict[str, Any] = {
        "max_abs": 0.1, "max_rel": 0.1, "rms": 0.1, "peak": 1.0, "cosine": 0.5, "agreement": 0.25,
        "rows": 4,
    }  # fmt: skip
    return Difference(output=output, sqnr_db=db, **{**base, **more})


def test_a_reading_as_text_numbers_and_json() -> None:
    exact = Row("cpu", "float", (difference("y", math.inf, cosine=1.0, agreement=None),))
    two = difference("a", 30.0, cosine=0.9), difference("b", 12.0, cosine=0.8, agreement=0.75)
    low = Row("atom", "int8", two, ("b: SQNR 12.0 dB < 20.0 dB",), finding="w costs most", drop=0.5)
    broken = Row(
        "x330", "int8", (difference("y", math.nan, fault="1 value is NaN", rows=0),), ("y",)
    )
    seen = Portability("Net", (exact, low), 2, 1, "SQNR >= 20 dB", 0.5, ("one call",))
    assert seen.worst is low and seen.below == (low,) and not seen.passed
    assert (low.sqnr_db, low.cosine, low.agreement, low.worst.output) == (12.0, 0.8, 0.25, "b")
    assert seen.scalars() == {
        "npuc/cpu/sqnr_db": EXACT_DB, "npuc/cpu/cosine": 1.0,
        "npuc/atom/sqnr_db": 12.0, "npuc/atom/cosine": 0.8, "npuc/atom/agreement": 0.25,
        "npuc/atom/metric_drop": 0.5,
    }  # fmt: skip
    assert seen.table().splitlines() == [
        "target  precision  SQNR dB   cosine  agree  drop  bar    costs most",
        "cpu     float        exact  1.00000      -     -  ok     -",
        "atom    int8          12.0  0.80000  25.0%   0.5  BELOW  -",
        "atom: b: SQNR 12.0 dB < 20.0 dB",
        "atom: w costs most",
        "note: one call",
    ]
    data = json.loads(json.dumps(seen.to_json(), allow_nan=False))
    assert data["schema"] == "npuc-portability-1" and not data["passed"]
    assert [(r["target"], r["below"], r["output"]) for r in data["rows"]] == [
        ("cpu", False, "y"), ("atom", True, "b"),
    ]  # fmt: skip
    assert Portability("Net", (low, broken), 2, 1, "", 0.5).worst is broken
    assert not Portability("Net", (), 2, 1, "", 0.5).passed
