"""What stands behind a ZooModel: reads weights, samples and truth. Needs torch."""

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from npuc.errors import UsageError
from npuc.models import fullsize
from npuc.models.data import FOLDER, Split
from npuc.models.recipes import RECIPES


def module(name: str) -> nn.Module:
    """Build the module in eval mode with its weights."""
    if name not in RECIPES:
        return fullsize.module(name)
    # Initialisation draws random numbers; the caller's stream must not notice.
    with torch.random.fork_rng(devices=[]):
        built = RECIPES[name].build()
    built.load_state_dict(load_file(FOLDER / f"{name}.safetensors"), strict=True)
    return built.eval()


def calls(name: str, n: int, *, held_out: bool) -> list[tuple[Tensor, ...]]:
    """Return the inputs of n calls at batch 1."""
    if n < 1:
        raise UsageError(f"{name} was asked for {n} samples", hint="ask for 1 or more")
    if name not in RECIPES:
        # Held-out inputs have even indices, so that the two kinds never meet.
        return [fullsize.inputs(name, 2 * i + (not held_out)) for i in range(n)]
    split = _split(name, n, held_out=held_out)
    return [tuple(part[i : i + 1].clone() for part in split.inputs) for i in range(n)]


def labels(name: str, n: int) -> Tensor:
    """Return the truth of the first n held-out samples."""
    if name not in RECIPES:
        raise UsageError(
            f"{name} has random weights and no labels",
            hint="use a trained model, such as zoo:digits-resnet",
        )
    return _split(name, n, held_out=True).truth[:n].clone()


def _split(name: str, n: int, *, held_out: bool) -> Split:
    split = RECIPES[name].split(held_out)
    if not 1 <= n <= len(split):
        kind = "held-out" if held_out else "calibration"
        raise UsageError(
            f"{name} was asked for {n} {kind} samples and has {len(split)}",
            hint=f"ask for 1 to {len(split)}",
        )
    return split
