"""Held-out metrics of the trained models."""

import torch
from torch import Tensor


def accuracy(outputs: tuple[Tensor, ...], truth: Tensor) -> float:
    """Return the share of rows of logits (N, classes) whose largest entry is the true class."""
    return float((outputs[0].argmax(1) == truth).double().mean())


def tuples(outputs: Tensor | tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """Return a module's outputs as a tuple, whatever their number."""
    return (outputs,) if isinstance(outputs, Tensor) else outputs


def stack(parts: list[tuple[Tensor, ...]]) -> tuple[Tensor, ...]:
    """Join the outputs of several calls along the batch."""
    return tuple(torch.cat(column) for column in zip(*parts, strict=True))
