"""Full-size models: published parameter counts, and answers that depend on the input."""

import pytest
import torch

from npuc import models
from npuc.models import fullsize

# Parameters in units: torchvision's resnet18, resnet50, mobilenet_v2 and vit_b_16, and the
# published bert-base-uncased with its pooler; efficientnet_b0; a U-Net of width 32 with one class.
# Of the decoder: two tables of words, and four layers of attention, gated products and norms.
_DECODER = 2 * 32000 * 768 + 4 * (2 * 768**2 + 2 * 768 * 256 + 3 * 768 * 2048 + 2 * 768) + 768
COUNTS = {
    "resnet18": 11_689_512,
    "resnet50": 25_557_032,
    "mobilenet-v2": 3_504_872,
    "bert-base": 109_482_240,
    "vit-base": 86_567_656,
    "efficientnet-b0": 5_288_548,
    "unet": 7_763_041,
    "llama": _DECODER,
    "llama-decode": _DECODER,
    # Four gates, each with a weight per input and per own output, and two offsets.
    "lstm": 4 * 512 * (80 + 512 + 2) + 4 * 512 * (512 + 512 + 2) + 513 * 32,
}


@pytest.mark.parametrize("name", COUNTS)
def test_parameter_counts_are_the_published_ones(name: str) -> None:
    with torch.device("meta"):
        module = fullsize.BUILD[name]()
    assert sum(p.numel() for p in module.parameters()) == COUNTS[name]


def test_the_counts_cover_all_full_size_models() -> None:
    names = {name for name in models.names() if not models.get(name).trained}
    assert names == COUNTS.keys() == fullsize.BUILD.keys()


@pytest.mark.parametrize("name", ["resnet18", "mobilenet-v2"])
def test_answers_are_not_degenerate(name: str) -> None:
    model = models.get(name)
    module = model.module()
    with torch.no_grad():
        answers = [module(*inputs) for inputs in model.samples(2)]
    for answer in answers:
        assert answer.shape == (1, 1000)
        assert 0.1 < float(answer.std()) < 10
    assert float((answers[0] - answers[1]).std()) > 0.05
    variances = [
        float(layer.running_var.max() / layer.running_var.min())
        for layer in module.modules()
        if isinstance(layer, torch.nn.BatchNorm2d) and layer.running_var is not None
    ]
    assert max(variances) > 2, "the statistics were never measured"


def test_weights_are_the_same_each_time() -> None:
    first, second = (models.get("mobilenet-v2").module().state_dict() for _ in range(2))
    assert first.keys() == second.keys()
    assert all(torch.equal(first[key], second[key]) for key in first)
