"""One time step of each recurrent operator, written in primitive ONNX operators."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir

from npuc.passes.builder import Builder

Array = np.ndarray[Any, Any]
GATES = {"LSTM": 4, "GRU": 3, "RNN": 1}


@dataclass(frozen=True, slots=True)
class Cell:
    """The weights of one direction. States are [1, batch, hidden]; no state means zeros.

    Gates lie one after another along the first axis of `recurrent`, in the operator's order.
    """

    op_type: str
    activations: tuple[str, ...]
    hidden: int
    recurrent: Array
    reset_after: bool
    recurrent_bias: Array

    def input_bias(self, bias: Array) -> Array:
        """Return the bias that can be added before the steps: all of it, where possible."""
        both = bias + self.recurrent_bias
        if self.op_type == "GRU" and self.reset_after:
            both[2 * self.hidden :] = bias[2 * self.hidden :]
        return both


State = tuple[ir.Value | None, ir.Value | None]
"""h and, for LSTM, c."""


class Steps:
    """Emits time steps of one cell; its constants are made once and shared by all steps."""

    def __init__(self, cell: Cell, build: Builder) -> None:
        self.cell, self.build = cell, build
        weights, hidden = cell.recurrent.T, cell.hidden
        split_gru = cell.op_type == "GRU" and not cell.reset_after
        self.first = build.constant("R", weights[:, : 2 * hidden] if split_gru else weights)
        if split_gru:
            self.reset = build.constant("Rh", weights[:, 2 * hidden :])
        if cell.op_type == "GRU":
            self.one = build.constant("one", np.asarray(1, weights.dtype))
            self.bias = build.constant("Rbh", cell.recurrent_bias[2 * hidden :])

    def step(self, x: ir.Value, state: State) -> tuple[ir.Value, ir.Value | None]:
        """Append one step; `x` is the input's part of all gates, [1, batch, gates · hidden]."""
        if self.cell.op_type == "LSTM":
            return self._lstm(x, state)
        if self.cell.op_type == "GRU":
            return self._gru(x, state[0]), None
        return self._activate(0, self._add_recurrent(x, state[0])), None

    def _activate(self, index: int, value: ir.Value) -> ir.Value:
        return self.build.op(self.cell.activations[index], value)

    def _add_recurrent(self, x: ir.Value, h: ir.Value | None) -> ir.Value:
        if h is None:
            return x
        return self.build.op("Add", x, self.build.op("MatMul", h, self.first))

    def _lstm(self, x: ir.Value, state: State) -> tuple[ir.Value, ir.Value]:
        """i, o, f = sigmoid(…), g = tanh(…);  c' = f·c + i·g;  h' = o·tanh(c')."""
        op = self.build.op
        gates = self._add_recurrent(x, state[0])
        i, o, f, g = self.build.split(gates, 4, self.cell.hidden, axis=2)
        new = op("Mul", self._activate(0, i), self._activate(1, g))
        if state[1] is not None:
            new = op("Add", op("Mul", self._activate(0, f), state[1]), new)
        return op("Mul", self._activate(0, o), self._activate(2, new)), new

    def _gru(self, x: ir.Value, h: ir.Value | None) -> ir.Value:
        """z, r = sigmoid(…);  h' = (1-z)·n + z·h.

        n = tanh(x_n + r·(h·Rᵀ + b)) where reset_after, else tanh(x_n + (r·h)·Rᵀ).
        """
        op = self.build.op
        size, after = self.cell.hidden, self.cell.reset_after
        zx, rx, nx = self.build.split(x, 3, size, axis=2)
        if h is None:
            inner = op("Mul", self._activate(0, rx), self.bias) if after else None
            new = self._activate(1, nx if inner is None else op("Add", nx, inner))
            return op("Mul", op("Sub", self.one, self._activate(0, zx)), new)
        parts = self.build.split(op("MatMul", h, self.first), 3 if after else 2, size, axis=2)
        z, r = (
            self._activate(0, op("Add", a, b)) for a, b in zip((zx, rx), parts[:2], strict=True)
        )
        if after:
            inner = op("Mul", r, op("Add", parts[2], self.bias))
        else:
            inner = op("MatMul", op("Mul", r, h), self.reset)
        new = self._activate(1, op("Add", nx, inner))
        return op("Add", op("Mul", op("Sub", self.one, z), new), op("Mul", z, h))
