"""Retrain a reference model: `python -m npuc.models.train NAME`.

Rewrites weights/NAME.safetensors and weights/NAME.json. One thread and a fixed seed, so the same
torch on the same kind of processor gives the same weights.
"""

import json
import math
import sys
import time

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from npuc.errors import UsageError
from npuc.models import scoring
from npuc.models.data import FOLDER, Split
from npuc.models.recipes import RECIPES, Recipe


def fit(recipe: Recipe, steps: int | None = None) -> tuple[nn.Module, list[float]]:
    """Train from scratch and return the module, in eval mode, and the loss of every step.

    AdamW under a cosine schedule with a short warm-up. `steps` ends the run early.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(recipe.seed)
        module, train = recipe.build(), recipe.split(False)
        per_epoch = len(train) // recipe.batch
        total = recipe.epochs * per_epoch
        optimizer = torch.optim.AdamW(
            module.parameters(), lr=recipe.rate, weight_decay=recipe.decay
        )
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda i: _pace(i, total))
        losses: list[float] = []
        order = torch.empty(0, dtype=torch.long)
        module.train()
        while len(losses) < (total if steps is None else min(steps, total)):
            if len(losses) % per_epoch == 0:
                order = torch.randperm(len(train))
            at = len(losses) % per_epoch * recipe.batch
            loss = _loss(module, recipe, train, order[at : at + recipe.batch])
            optimizer.zero_grad()
            torch.autograd.backward(loss)
            nn.utils.clip_grad_norm_(module.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            losses.append(float(loss.detach()))
    return module.eval(), losses


def _pace(step: int, total: int) -> float:
    warm = max(1, total // 20)
    if step < warm:
        return (step + 1) / warm
    return 0.5 * (1 + math.cos(math.pi * min(1.0, (step - warm) / max(1, total - warm)))) + 1e-3


def _loss(module: nn.Module, recipe: Recipe, split: Split, rows: Tensor) -> Tensor:
    inputs = tuple(part[rows] for part in split.inputs)
    if recipe.augment is not None:
        inputs = recipe.augment(inputs)
    return recipe.loss(scoring.tuples(module(*inputs)), split.truth[rows])


def evaluate(module: nn.Module, recipe: Recipe, split: Split) -> float:
    """Return the recipe's metric of a module over a split, in batches."""
    parts = []
    with torch.no_grad():
        for at in range(0, len(split), 100):
            inputs = (part[at : at + 100] for part in split.inputs)
            parts.append(scoring.tuples(module(*inputs)))
    return recipe.score(scoring.stack(parts), split.truth)


def train(name: str) -> dict[str, object]:
    """Retrain one model, write its weights and its record, and return the record."""
    if name not in RECIPES:
        known = ", ".join(RECIPES)
        raise UsageError(f"no training recipe is named {name!r}", hint=f"there are: {known}")
    recipe = RECIPES[name]
    started = time.perf_counter()
    module, losses = fit(recipe)
    seconds = time.perf_counter() - started
    record: dict[str, object] = {
        "model": name,
        "metric": recipe.metric,
        "held_out": evaluate(module, recipe, recipe.split(True)),
        "train_loss": sum(losses[-20:]) / len(losses[-20:]),
        "data": recipe.source,
        "parameters": sum(p.numel() for p in module.parameters()),
        "epochs": recipe.epochs,
        "seed": recipe.seed,
        "seconds": round(seconds, 1),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
    }
    state = {key: value.contiguous() for key, value in module.state_dict().items()}
    path = FOLDER / f"{name}.safetensors"
    save_file(state, path)
    path.chmod(0o644)  # safetensors writes files that only their owner may read
    (FOLDER / f"{name}.json").write_text(json.dumps(record, indent=2) + "\n")
    return record


if __name__ == "__main__":
    torch.set_num_threads(1)
    for wanted in sys.argv[1:] or RECIPES:
        print(json.dumps(train(wanted)))
