"""What every operator function of `torch_operators.py` is given, beside its tensors."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch


class Unsupported(Exception):
    """A node that cannot be written in torch, with the reason."""


@dataclass
class Call:
    """What a function sees of its node; `fixed` are the inputs that are constants, else None."""

    op: str
    name: str
    attributes: dict[str, Any]
    opset: int
    fixed: "list[np.ndarray[Any, Any] | None]"
    real: torch.dtype
    outputs: int = 1

    def get(self, key: str, default: Any = None) -> Any:
        """Return an attribute."""
        return self.attributes.get(key, default)

    def ints(self, index: int) -> "list[int] | None":
        """Return a constant input as integers, or None where it is absent."""
        array = self.fixed[index] if index < len(self.fixed) else None
        return None if array is None else [int(v) for v in np.asarray(array).reshape(-1)]

    def number(self, index: int) -> "float | None":
        """Return a constant input of one element as a number, or None where it is absent."""
        array = self.fixed[index] if index < len(self.fixed) else None
        return None if array is None else np.asarray(array).reshape(()).item()

    def axes(self, index: int = 1) -> "list[int] | None":
        """Return axes, which older opsets have as an attribute."""
        return self.ints(index) if self.ints(index) is not None else self.get("axes")

    def refuse(self, reason: str) -> Unsupported:
        """Return the error that names this node."""
        return Unsupported(f"{self.op} {self.name}: {reason}")

    def text(self, key: str, default: str = "") -> str:
        """Return an attribute that is a word."""
        value = self.attributes.get(key, default)
        return value.decode() if isinstance(value, bytes) else str(value)


Operator = Callable[..., Any]
