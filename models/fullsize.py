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
from npuc.models.efficientnet import efficientnet_b0
from npuc.models.llama import CONTEXT, DEPTH, KV_HEADS, SIZE, VOCABULARY, llama, llama_decode
from npuc.models.lstm import speech_lstm
from npuc.models.mobilenet import mobilenet_v2
from npuc.models.resnet import resnet18, resnet50
from npuc.models.unet import unet
from npuc.models.vit import vit_base

BUILD: dict[str, Callable[[], nn.Module]] = {
    "resnet18": resnet18,
    "resnet50": resnet50,
    "mobilenet-v2": mobilenet_v2,
    "efficientnet-b0": efficientnet_b0,
    "unet": unet,
    "bert-base": bert_base,
    "vit-base": vit_base,
    "llama": llama,
    "llama-decode": llama_decode,
    "lstm": speech_lstm,
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

    Images (1, 3, 224, 224), for the U-Net 256x256, are soft blobs with some grain; texts are 128
    ids, BERT's with the last ones masked; frames of speech are noise that drifts.
    """
    return _INPUTS.get(name, _images)(index)


def _images(index: int) -> tuple[Tensor, ...]:
    return (_image(index),)


def _image(index: int, side: int = 224) -> Tensor:
    generator = torch.Generator().manual_seed(1000 + index)
    blobs = torch.randn(1, 3, 7, 7, generator=generator)
    soft = F.interpolate(blobs, size=(side, side), mode="bicubic", align_corners=False)
    return soft + 0.1 * torch.randn(1, 3, side, side, generator=generator)


def _text(index: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1000 + index)
    ids = torch.randint(1, _VOCABULARY, (1, _TOKENS), generator=generator)
    length = int(torch.randint(_TOKENS // 2, _TOKENS + 1, (1,), generator=generator))
    mask = (torch.arange(_TOKENS) < length).long()[None]
    return ids * mask, mask


def _prompt(index: int) -> tuple[Tensor, ...]:
    generator = torch.Generator().manual_seed(1000 + index)
    return (torch.randint(VOCABULARY, (1, CONTEXT), generator=generator),)


def _step(index: int) -> tuple[Tensor, ...]:
    """One token and a cache as wide as freshly initialised projections of normed tokens are."""
    generator = torch.Generator().manual_seed(1000 + index)
    token = torch.randint(VOCABULARY, (1, 1), generator=generator)
    shape = (1, KV_HEADS, CONTEXT, SIZE)
    return token, *(0.58 * torch.randn(shape, generator=generator) for _ in range(2 * DEPTH))


def _frames(index: int) -> tuple[Tensor, ...]:
    generator = torch.Generator().manual_seed(1000 + index)
    slow = F.interpolate(torch.randn(1, 80, 9, generator=generator), size=64, mode="linear")
    return (3 * slow.mT + 0.3 * torch.randn(1, 64, 80, generator=generator),)


_INPUTS: dict[str, Callable[[int], tuple[Tensor, ...]]] = {
    "unet": lambda index: (_image(index, 256),),
    "bert-base": _text,
    "llama": _prompt,
    "llama-decode": _step,
    "lstm": _frames,
}
