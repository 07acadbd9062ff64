"""Training runs and learns; losses and metrics say what they claim on cases done by hand."""

import dataclasses
import json
from pathlib import Path

import pytest
import torch

from npuc.errors import UsageError
from npuc.models import detection, recipes, scoring, train


def test_a_few_steps_lower_the_loss_and_repeat_exactly() -> None:
    recipe = recipes.RECIPES["digits-lstm"]
    module, losses = train.fit(recipe, steps=200)
    again, same = train.fit(recipe, steps=200)
    assert sum(losses[-10:]) < 0.9 * sum(losses[:10])
    assert not module.training
    assert losses == same
    for a, b in zip(module.parameters(), again.parameters(), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("name", ["digits-detector", "text-bert", "digits-embed", "text-gpt"])
def test_the_other_losses_train_too(name: str) -> None:
    recipe = dataclasses.replace(recipes.RECIPES[name], batch=16)
    _, losses = train.fit(recipe, steps=12)
    assert losses[-1] < losses[0]


def test_train_writes_weights_and_record(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    short = dataclasses.replace(recipes.RECIPES["digits-lstm"], epochs=1)
    monkeypatch.setitem(recipes.RECIPES, "digits-lstm", short)
    monkeypatch.setattr(train, "FOLDER", tmp_path)
    record = train.train("digits-lstm")
    assert json.loads((tmp_path / "digits-lstm.json").read_text()) == record
    assert 0.0 < float(str(record["held_out"])) < 1.0
    assert (tmp_path / "digits-lstm.safetensors").stat().st_size > 90_000


def test_training_an_unknown_name_is_refused() -> None:
    with pytest.raises(UsageError, match="nonsense"):
        train.train("nonsense")


def test_overlap_of_boxes() -> None:
    a = torch.tensor([0.0, 0.0, 4.0, 4.0])
    b = torch.tensor([[0.0, 0.0, 4.0, 4.0], [2.0, 0.0, 6.0, 4.0], [9.0, 9.0, 10.0, 10.0]])
    assert detection.overlap(a, b).tolist() == pytest.approx([1.0, 8 / 24, 0.0])


def test_average_precision_of_known_detections() -> None:
    truth = torch.tensor([[[0, 0, 10, 10, 3], [20, 20, 30, 30, 3]]])
    boxes = torch.tensor([[[0.0, 0, 10, 10], [1.0, 0, 10, 10], [40, 40, 48, 48], [20, 20, 30, 30]]])
    scores = torch.zeros(1, 4, 10)
    scores[0, :, 3] = torch.tensor([0.9, 0.8, 0.7, 0.6])
    outputs = (scores, boxes, torch.ones(1, 4))
    (found,) = detection.suppress(outputs)
    assert [round(float(row[5]), 3) for row in found] == [0.9, 0.7, 0.6]  # the double is gone
    # Ranked: hit, miss, hit of two: precision 1 at recall 1/2, then 2/3.
    assert detection.average_precision(outputs, truth) == pytest.approx((1 + 2 / 3) / 2)
    wrong = (scores.roll(1, dims=2), boxes, torch.ones(1, 4))
    assert detection.average_precision(wrong, truth) == 0.0
    silent = (scores, boxes, torch.zeros(1, 4))
    assert detection.average_precision(silent, truth) == 0.0


def test_mean_iou_bits_and_recall_by_hand() -> None:
    logits = torch.tensor([[[[2.0, 0.0]], [[0.0, 2.0]]]])  # predicts classes 0, 1
    assert scoring.mean_iou((logits,), torch.tensor([[[0, 1]]])) == 1.0
    assert scoring.mean_iou((logits,), torch.tensor([[[0, 0]]])) == 0.25
    assert scoring.bits((torch.zeros(1, 3, 8),), torch.zeros(1, 3).long()) == pytest.approx(3.0)
    near = torch.tensor([[1.0, 0.0], [0.9, 0.1], [0.0, 1.0]])
    assert scoring.recall_at_1((near,), torch.tensor([1, 1, 2])) == pytest.approx(2 / 3)
