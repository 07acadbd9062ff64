"""The zoo's depthwise CNN with ReLU for hard-swish, so that rescaling reaches all of its stages.

Twelve epochs from the zoo's weights, fixed seed, under half a minute. Not committed as weights:
the numbers of different processors may differ in the last digit.
"""

from dataclasses import replace

import torch
from torch import nn

from npuc.models import get
from npuc.models.recipes import RECIPES
from npuc.models.train import evaluate, fit

RELU_MOBILENET = "relu-mobilenet"
LEAST = 0.97
"""Held-out accuracy below which something went wrong: digits-mobilenet has 0.989."""


def _with_relu() -> nn.Module:
    module = get("digits-mobilenet").module()
    for parent in list(module.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, nn.Hardswish):
                setattr(parent, name, nn.ReLU())
    return module


def relu_mobilenet() -> nn.Module:
    """Train and return the module in eval mode."""
    torch.set_num_threads(1)
    recipe = replace(RECIPES["digits-mobilenet"], build=_with_relu, epochs=12, rate=5e-3)
    module, _ = fit(recipe)
    accuracy = evaluate(module, recipe, recipe.split(True))
    assert accuracy > LEAST, f"{RELU_MOBILENET} reached {accuracy:.3f} only"
    return module
