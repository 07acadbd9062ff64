"""What stands behind a ZooModel: reads weights, samples and truth. Needs torch."""

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from npuc.errors import UsageError
from npuc.models import fullsize
from npuc.models.data import FOLDER, Split
from npuc.models.recipes import RECIPES
from npuc.models.zoo import ZooModel


def module(model: ZooModel) -> nn.Module:
    """Build the module in eval mode with its weights."""
    if not model.trained:
        return fullsize.module(model.name)
    # Initialisation draws random numbers; the caller's stream must not notice.
    with torch.random.fork_rng(devices=[]):
        built = RECIPES[model.name].build()
    built.load_state_dict(load_file(FOLDER / f"{model.name}.safetensors"), strict=True)
    return built.eval()


def calls(model: ZooModel, n: int, *, held_out: bool) -> list[tuple[Tensor, ...]]:
    """Return the inputs of n calls at batch 1."""
    if n < 1:
        raise UsageError(f"{model.name} was asked for {n} samples", hint="ask for 1 or more")
    if not model.trained:
        # Held-out inputs have even indices, so that the two kinds never meet.
        return [fullsize.inputs(model.name, 2 * i + (not held_out)) for i in range(n)]
    split = _split(model, n, held_out=held_out)
    return [tuple(part[i : i + 1].clone() for part in split.inputs) for i in range(n)]


def labels(model: ZooModel, n: int) -> Tensor:
    """Return the truth of the first n held-out samples."""
    if not model.trained:
        raise UsageError(
            f"{model.name} has random weights and no labels",
            hint="use a trained model, such as zoo:digits-resnet",
        )
    return _split(model, n, held_out=True).truth[:n].clone()


def _split(model: ZooModel, n: int, *, held_out: bool) -> Split:
    split = RECIPES[model.name].split(held_out)
    if not 1 <= n <= len(split):
        kind = "held-out" if held_out else "calibration"
        raise UsageError(
            f"{model.name} was asked for {n} {kind} samples and has {len(split)}",
            hint=f"ask for 1 to {len(split)}",
        )
    return split
