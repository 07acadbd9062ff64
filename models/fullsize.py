"""Full-size models with seeded random weights, for benchmarks of speed and memory.

Freshly initialised deep networks answer with (nearly) the same numbers whatever the input, on
which every comparison of outputs would pass. So normalisation statistics are measured on real
activations and every scale and offset is then moved by a seeded amount.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from npuc.models.bert import bert_base
from npuc.models.mobilenet import mobilenet_v2
from npuc.models.resnet import resnet18, resnet50
from npuc.models.vit import vit_base

BUILD: dict[str, Callable[[], nn.Module]] = {
    "resnet18": resnet18,
    "resnet50": resnet50,
    "mobilenet-v2": mobilenet_v2,
    "bert-base": bert_base,
    "vit-base": vit_base,
}

_TOKENS, _VOCABULARY = 128, 30522


def module(name: str) -> nn.Module:
    """Build a model in eval mode; the same weights every time, but for rounding."""
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(0)
        built = BUILD[name]()
        for part in built.modules():
            if isinstance(part, nn.Conv2d):
                nn.init.kaiming_normal_(part.weight, mode="fan_out")
        norms = [part for part in built.modules() if isinstance(part, nn.BatchNorm2d)]
        if norms:
            _settle(built, norms)
        for parameter in built.parameters():
            if parameter.ndim == 1:
                parameter.add_(0.1 * torch.randn_like(parameter))
    return built.eval()


def _settle(built: nn.Module, norms: list[nn.BatchNorm2d]) -> None:
    """Set running statistics to those of two synthetic images."""
    for norm in norms:
        norm.momentum = 1.0
    built.train()(torch.cat([_image(-1), _image(-2)]))
    for norm in norms:
        norm.momentum = 0.1


def inputs(name: str, index: int) -> tuple[Tensor, ...]:
    """Return synthetic inputs at batch 1, another for each index.

    Images (1, 3, 224, 224) are soft blobs with some grain; texts are 128 ids, the last ones
    masked.
    """
    return _text(index) if name == "bert-base" else (_image(index),)


def _image(index: int) -> Tensor:
    generator = torch.Generator().manual_seed(1000 + index)
    blobs = torch.randn(1, 3, 7, 7, generator=generator)
    soft = F.interpolate(blobs, size=(224, 224), mode="bicubic", align_corners=False)
    return soft + 0.1 * torch.randn(1, 3, 224, 224, generator=generator)


def _text(index: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1000 + index)
    ids = torch.randint(1, _VOCABULARY, (1, _TOKENS), generator=generator)
    length = int(torch.randint(_TOKENS // 2, _TOKENS + 1, (1,), generator=generator))
    mask = (torch.arange(_TOKENS) < length).long()[None]
    return ids * mask, mask
