"""Write LSTM, GRU and RNN out step by step, for toolchains that do not know them."""

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import onnx_ir as ir

from npuc.errors import PassError
from npuc.passes.base import Pass, Result
from npuc.passes.builder import Builder
from npuc.passes.forms.recurrent import GATES, Cell, Steps
from npuc.passes.graphs import Names, constant, infer_shapes, label
from npuc.profile import Profile
from npuc.program import Refusal

Array = np.ndarray[Any, Any]
DEFAULTS = {"LSTM": ("Sigmoid", "Tanh", "Tanh"), "GRU": ("Sigmoid", "Tanh"), "RNN": ("Tanh",)}
PLAIN = frozenset({"Sigmoid", "Tanh", "Relu", "Softsign", "Softplus"})
"""Activations that are an ONNX operator of the same name without parameters."""


@dataclass(frozen=True)
class DecomposeRnn(Pass):
    """X → LSTM(W, R, B) → Y  ⇒  X → MatMul(Wᵀ) → Split → step₀ → step₁ → … → Concat → Y

    h_t, c_t = cell(x_t·Wᵀ + h_{t-1}·Rᵀ + b), unrolled over a static sequence; the input's part of
    all steps is one MatMul. The cells are those of the ONNX operators LSTM, GRU (both
    linear_before_reset) and RNN, in any direction, with or without initial states, in both
    layouts. Where there is no initial state the zeros are left out, so the batch may be dynamic.

    Refuses: a sequence whose length is not a number, or above `longest`; sequence lengths that
    are not all the full length; weights that are not constants; peepholes, clip, input_forget;
    activations other than Sigmoid, Tanh, Relu, Softsign and Softplus. Raises `PassError` below
    opset 13.
    """

    name: ClassVar[str] = "decompose-rnn"

    longest: int = 1024

    def apply(self, model: ir.Model, profile: Profile) -> Result:
        """Unroll in place; `changes` counts the recurrent operators that went."""
        names, changes, refusals = Names(model), 0, []
        for node in list(model.graph):
            if node.domain != "" or node.op_type not in GATES:
                continue
            reason = _refusal(node, self.longest)
            if reason:
                refusals.append(Refusal(label(node), reason))
                continue
            if model.opset_imports.get("", 0) < 13:
                raise PassError("decompose-rnn needs opset 13: Split takes its sizes as an input")
            _unroll(node, names)
            changes += 1
        if changes:
            infer_shapes(model)
        return Result(changes, tuple(refusals))


def _input(node: ir.Node, index: int) -> ir.Value | None:
    return node.inputs[index] if index < len(node.inputs) else None


def _steps(node: ir.Node) -> int | None:
    x = node.inputs[0]
    axis = node.attributes.get_int("layout", 0)
    length = None if x is None or x.shape is None else x.shape[axis]
    return length if isinstance(length, int) else None


def _refusal(node: ir.Node, longest: int) -> str:
    length = _steps(node)
    if length is None:
        return "the sequence length is not a number: bind it with --dim"
    if not 1 <= length <= longest:
        return f"the sequence has {length} steps, the limit is {longest}"
    for index, kind in ((1, "W"), (2, "R"), (3, "B")):
        value = _input(node, index)
        if value is not None and constant(value) is None:
            return f"weight {kind} ({value.name!r}) is not a constant"
    lengths = _input(node, 4)
    if lengths is not None:
        array = constant(lengths)
        if array is None or (array != length).any():
            return f"sequence_lens are not all the full {length} steps"
    peepholes = _input(node, 7)
    if peepholes is not None:
        array = constant(peepholes)
        if array is None or array.any():
            return "it has peepholes"
    for attribute in ("clip", "activation_alpha", "activation_beta"):
        if attribute in node.attributes:
            return f"it has the attribute {attribute}"
    if node.attributes.get_int("input_forget", 0):
        return "it couples the input and forget gates"
    odd = sorted(set(_activations(node)) - PLAIN)
    return f"activation {', '.join(odd)} is not written out" if odd else ""


def _activations(node: ir.Node) -> tuple[str, ...]:
    """Return the activations of all directions, one direction after another."""
    default = DEFAULTS[node.op_type] * _directions(node)
    return tuple(node.attributes.get_strings("activations", default))


def _directions(node: ir.Node) -> int:
    return 2 if node.attributes.get_string("direction", "forward") == "bidirectional" else 1


def _unroll(node: ir.Node, names: Names) -> None:
    assert isinstance(node.graph, ir.Graph) and node.inputs[0] is not None
    build = Builder(node.graph, names, node.name or node.outputs[0].name or node.op_type.lower())
    batch_first = node.attributes.get_int("layout", 0) == 1
    x = _swap(build, node.inputs[0]) if batch_first else node.inputs[0]
    directions = _directions(node)
    states = [_initial(build, node, index, directions, batch_first) for index in (5, 6)]
    whole, last_h, last_c = [], [], []
    for d in range(directions):
        ys, h, c = _direction(build, node, x, d, (states[0][d], states[1][d]))
        whole.append(ys)
        last_h.append(h)
        last_c += [] if c is None else [c]
    outputs = [_join(build, whole, axis=1), _join(build, last_h, axis=0)]
    if node.op_type == "LSTM":
        outputs.append(_join(build, last_c, axis=0))
    if batch_first:
        # Y [steps, directions, batch, hidden] and states [directions, batch, hidden].
        outputs[0] = _transpose(build, outputs[0], (2, 0, 1, 3))
        outputs[1:] = [_swap(build, state) for state in outputs[1:]]
    build.replace(node, outputs)


def _direction(
    build: Builder, node: ir.Node, x: ir.Value, d: int, state: tuple[ir.Value | None, ...]
) -> tuple[ir.Value, ir.Value, ir.Value | None]:
    """Unroll one direction: Y as [steps, 1, batch, hidden], and the last states."""
    weight, recurrent = constant(node.inputs[1]), constant(node.inputs[2])
    assert weight is not None and recurrent is not None  # _refusal asked
    hidden, gates = recurrent.shape[-1], GATES[node.op_type]
    bias = constant(_input(node, 3))
    both = np.zeros(2 * gates * hidden, weight.dtype) if bias is None else bias[d]
    kinds = len(DEFAULTS[node.op_type])
    cell = Cell(
        node.op_type,
        _activations(node)[d * kinds : (d + 1) * kinds],
        hidden,
        recurrent[d],
        bool(node.attributes.get_int("linear_before_reset", 0)),
        both[gates * hidden :],
    )
    projected = build.op("MatMul", x, build.constant("W", weight[d].T))
    if both.any():
        shift = cell.input_bias(both[: gates * hidden])
        projected = build.op("Add", projected, build.constant("B", shift))
    length = _steps(node)
    assert length is not None
    parts, steps = build.split(projected, length, 1, axis=0), Steps(cell, build)
    backward = d == 1 or node.attributes.get_string("direction", "forward") == "reverse"
    h, c = state
    seen: list[ir.Value] = []
    for part in reversed(parts) if backward else parts:
        h, c = steps.step(part, (h, c))
        seen.append(h)
    assert h is not None
    if backward:
        seen.reverse()
    axis = build.constant("axis", np.asarray([1], np.int64))
    return build.op("Unsqueeze", _join(build, seen, axis=0), axis), h, c


def _initial(
    build: Builder, node: ir.Node, index: int, directions: int, batch_first: bool
) -> list[ir.Value | None]:
    value = _input(node, index)
    if value is None:
        return [None] * directions
    if batch_first:
        value = _swap(build, value)
    return list(build.split(value, directions, 1, axis=0))


def _join(build: Builder, values: list[ir.Value], axis: int) -> ir.Value:
    return values[0] if len(values) == 1 else build.op("Concat", *values, axis=axis)


def _swap(build: Builder, value: ir.Value) -> ir.Value:
    return _transpose(build, value, (1, 0, 2))


def _transpose(build: Builder, value: ir.Value, order: tuple[int, ...]) -> ir.Value:
    return build.op("Transpose", value, perm=order)
