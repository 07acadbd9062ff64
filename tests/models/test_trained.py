"""The committed weights are as good as their records say, and as small as promised."""

import itertools
import json
import math
from collections import Counter

import numpy as np
import pytest
import torch
from torch import nn

from npuc import models
from npuc.models import train
from npuc.models.data import FOLDER, topic_texts
from npuc.models.recipes import RECIPES

# What each model has to reach to stand for a trained one.
BARS = {
    "digits-resnet": 0.95,
    "digits-mobilenet": 0.95,
    "digits-vit": 0.95,
    "digits-lstm": 0.95,
    "digits-embed": 0.95,
    "digits-unet": 0.8,
    "digits-detector": 0.7,
    "text-bert": 0.85,
    "chirp-keyword": 0.95,
}


@pytest.mark.parametrize("name", RECIPES)
def test_the_recorded_metric_is_met_again(name: str) -> None:
    recipe = RECIPES[name]
    record = json.loads((FOLDER / f"{name}.json").read_text())
    module = models.get(name).module()
    value = train.evaluate(module, recipe, recipe.split(True))
    # Rounding differs between processors and may turn one borderline sample of some hundreds.
    assert value == pytest.approx(record["held_out"], abs=0.005)
    assert record["metric"] == recipe.metric
    assert record["parameters"] == sum(p.numel() for p in module.parameters())
    assert 20_000 <= record["parameters"] <= 400_000
    assert record["seconds"] < 120
    if name in BARS:
        assert value >= BARS[name]


def test_the_language_model_knows_more_than_letter_counts() -> None:
    counts = Counter("".join(topic_texts()))
    total = counts.total()
    unigram = -sum(n / total * math.log2(n / total) for n in counts.values())
    record = json.loads((FOLDER / "text-gpt.json").read_text())
    assert record["held_out"] < 0.6 * unigram


def test_every_trained_model_has_a_recipe_and_a_bar() -> None:
    trained = {name for name in models.names() if models.get(name).trained}
    assert trained == set(RECIPES) == BARS.keys() | {"text-gpt"}


def test_all_committed_weights_and_data_stay_small() -> None:
    files = [*FOLDER.iterdir()]
    assert sum(file.stat().st_size for file in files) < 5_000_000
    expected = {f"{name}{suffix}" for name in RECIPES for suffix in (".safetensors", ".json")}
    assert {file.name for file in files} == expected | {
        "data-digits.safetensors",
        "data-topics.safetensors",
    }


def test_the_committed_digits_are_those_of_scikit_learn() -> None:
    from sklearn.datasets import load_digits

    from npuc.models.data import digit_arrays

    images, labels = digit_arrays()
    pixels, classes = load_digits(return_X_y=True)
    assert np.array_equal(images.reshape(-1, 64), pixels) and np.array_equal(labels, classes)


def test_channel_ranges_of_the_mobilenet_are_wide() -> None:
    # What per-channel weight quantization is for: with one scale for all channels, int8 would
    # leave the median channel of such a layer four of its eight bits.
    layers = [*models.get("digits-mobilenet").module().modules()]
    widest = 0.0
    for conv, norm in itertools.pairwise(layers):
        if isinstance(conv, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d) and conv.groups > 1:
            assert norm.running_var is not None
            scale = norm.weight / torch.sqrt(norm.running_var + norm.eps)  # as folding does
            peaks = conv.weight.detach().abs().amax((1, 2, 3)) * scale.detach().abs()
            widest = max(widest, float(peaks.max() / peaks.median()))
    assert widest > 8


def test_image_and_text_samples_hold_what_they_say() -> None:
    (image,) = models.get("digits-unet").example()
    assert float(image.min()) >= 0 and float(image.max()) <= 1
    ids, mask = models.get("text-bert").example()
    assert ids.dtype == mask.dtype == torch.int64
    assert torch.equal(mask, (ids != 0).long()) and 0 < int(mask.sum()) < mask.numel()
    (passage,), following = models.get("text-gpt").example(), models.get("text-gpt").labels(1)
    assert torch.equal(passage[:, 1:], following[:, :-1])
