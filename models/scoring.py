"""Held-out metrics of the trained models. Each takes a model's outputs and the truth."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

Outputs = tuple[Tensor, ...]


def accuracy(outputs: Outputs, truth: Tensor) -> float:
    """Return the share of rows of logits (N, classes) whose largest entry is the true class."""
    return float((outputs[0].argmax(1) == truth).double().mean())


def mean_iou(outputs: Outputs, truth: Tensor) -> float:
    """Return intersection over union of predicted and true pixels, averaged over the classes."""
    predicted = outputs[0].argmax(1)
    shares = []
    for label in range(outputs[0].shape[1]):
        a, b = predicted == label, truth == label
        shares.append(float((a & b).sum() / (a | b).sum()))
    return sum(shares) / len(shares)


def bits(outputs: Outputs, truth: Tensor) -> float:
    """Return the mean cost in bits of the true next token, from logits (N, tokens, vocabulary)."""
    return float(F.cross_entropy(outputs[0].flatten(0, 1), truth.flatten())) / math.log(2)


def recall_at_1(outputs: Outputs, truth: Tensor) -> float:
    """Return the share of embeddings (N, width) whose nearest other one is of the same class."""
    alike = outputs[0] @ outputs[0].T
    alike.fill_diagonal_(-torch.inf)
    return float((truth[alike.argmax(1)] == truth).double().mean())


def tuples(outputs: Tensor | Outputs) -> Outputs:
    """Return a module's outputs as a tuple, whatever their number."""
    return (outputs,) if isinstance(outputs, Tensor) else outputs


def stack(parts: list[Outputs]) -> Outputs:
    """Join the outputs of several calls along the batch."""
    return tuple(torch.cat(column) for column in zip(*parts, strict=True))
