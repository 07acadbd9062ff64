"""Run ONNX nodes in torch, differentiably, with weights that are given anew at every call."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import onnx_ir as ir
import torch
from torch import Tensor

from npuc.errors import UnsupportedError
from npuc.passes.arithmetic.round_to import DOMAIN, function_name
from npuc.passes.graphs import constant, label
from npuc.profile import FloatFormat
from npuc.simulation.rounding import quantize, round_float
from npuc.targets.workers.torch_call import Call, Unsupported
from npuc.targets.workers.torch_operators import CONSTANT, OPERATORS

Array = np.ndarray[Any, Any]
Values = Mapping[str, Tensor]
_PLAIN = (
    ir.AttributeType.INT, ir.AttributeType.FLOAT, ir.AttributeType.STRING,
    ir.AttributeType.INTS, ir.AttributeType.FLOATS, ir.AttributeType.STRINGS,
)  # fmt: skip


_MORE = {
    "Acos": torch.acos, "Acosh": torch.acosh, "Asin": torch.asin, "Asinh": torch.asinh,
    "Atan": torch.atan, "Atanh": torch.atanh, "Cosh": torch.cosh, "Sinh": torch.sinh,
}  # fmt: skip
"""Operators of one input that vendors' compilers do not take, and `OPERATORS` does not have."""
_OWN = (*_MORE, "CastLike", "Range", "DequantizeLinear", "QuantizeLinear", "Shape")


@dataclass(frozen=True)
class _Node:
    """One operator; an absent optional input is ""."""

    op: str
    domain: str
    name: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attributes: dict[str, Any]


class Evaluator:
    """Nodes in order of execution. `live` are the constants that every call gives anew.

    `formats` are the floats that ``ai.npuc`` functions may round to. Raises `UnsupportedError`
    listing each node that has no form in torch.
    """

    def __init__(
        self,
        nodes: Iterable[ir.Node],
        opset: int,
        live: Iterable[str],
        formats: Iterable[FloatFormat] = (),
    ) -> None:
        self.opset = opset
        self._rounds = {
            function_name(fmt, flush=flush): (fmt, flush)
            for fmt in formats
            for flush in (False, True)
        }
        self._arrays: dict[str, Array] = {}
        self._nodes: list[_Node] = []
        known, faults = set(live), list[str]()
        for node in nodes:
            self._take(node, known, faults)
        if faults:
            listed = "\n  ".join(faults)
            raise UnsupportedError(f"this model cannot be simulated in torch:\n  {listed}")
        self._tensors = {name: torch.tensor(array) for name, array in self._arrays.items()}

    def _take(self, node: ir.Node, live: set[str], faults: list[str]) -> None:
        for value in node.inputs:
            known = value is None or value.name in live
            if value is not None and not known and (array := constant(value)) is not None:
                self._arrays[value.name or ""] = array
        if node.op_type == "Constant":
            return
        attributes = {}
        for name, attribute in node.attributes.items():
            if attribute.type not in _PLAIN or attribute.is_ref():
                faults.append(f"{label(node)}: attribute {name} is {attribute.type.name.lower()}")
                continue
            attributes[name] = _decoded(attribute.value)
        inputs = tuple("" if v is None else v.name or "" for v in node.inputs)
        outputs = tuple(v.name or "" for v in node.outputs)
        found = _Node(node.op_type, node.domain, node.name or "", inputs, outputs, attributes)
        if node.op_type == "CastLike" and (like := node.inputs[1]) is not None and like.dtype:
            found = replace(found, op="Cast", inputs=inputs[:1], attributes={"to": int(like.dtype)})
        if (reason := self._fault(found)) is not None:
            faults.append(f"{label(node)}: {reason}")
        elif (shape := _shape(node)) is not None:
            self._arrays[outputs[0]] = shape
        elif node.op_type != "DequantizeLinear" and all(
            n in self._arrays or not n for n in found.inputs
        ):
            tensors = {n: torch.tensor(self._arrays[n]) for n in found.inputs if n}
            for name, tensor in zip(outputs, _tuple(self._run(found, tensors)), strict=False):
                self._arrays[name] = tensor.numpy()
        else:
            self._nodes.append(found)

    def _fault(self, node: _Node) -> str | None:
        if node.domain == DOMAIN and node.op in self._rounds:
            return None
        if node.domain or node.op not in (*OPERATORS, *_OWN):
            return f"{node.op} has no differentiable form here"
        if node.op == "Clip":
            return None
        if node.op == "Range" and not all(name in self._arrays for name in node.inputs):
            return "its ends must be constants"
        for index in CONSTANT.get(node.op, ()):
            name = node.inputs[index] if index < len(node.inputs) else ""
            if name and name not in self._arrays:
                return f"input {index} of {node.op} must be a constant"
        return None

    def __call__(self, given: Values, made: Values) -> dict[str, Tensor]:
        """Return every tensor by name.

        `given` are the inputs and the live constants; `made` are results that are known already,
        by name: their nodes are not run.
        """
        device = next((t.device for t in given.values()), torch.device("cpu"))
        values = {name: tensor.to(device) for name, tensor in self._tensors.items()}
        values |= given
        for node in self._nodes:
            if node.outputs[0] in made:
                values[node.outputs[0]] = made[node.outputs[0]]
                continue
            results = _tuple(self._run(node, values))
            for name, value in zip(node.outputs, results, strict=False):
                if name:
                    values[name] = value
        return values

    def _run(self, node: _Node, values: Values) -> Any:
        inputs = [values[name] if name else None for name in node.inputs]
        if node.domain == DOMAIN:
            assert inputs[0] is not None
            return round_float(inputs[0], *self._rounds[node.op])
        if node.op == "QuantizeLinear":
            return self._quantize(node, *inputs)
        if node.op == "DequantizeLinear":
            return _dequantize(node, *inputs)
        if node.op == "CastLike":
            assert inputs[0] is not None and inputs[1] is not None
            return inputs[0].to(inputs[1].dtype)
        if node.op == "Range":
            first, limit, delta = (torch.as_tensor(v) for v in inputs)
            return torch.arange(first.item(), limit.item(), delta.item(), dtype=first.dtype)
        if node.op in _MORE:
            assert inputs[0] is not None
            return _MORE[node.op](inputs[0])
        if node.op == "Clip" and len(inputs) > 1:
            low, high = (*inputs[1:], None)[:2]
            assert inputs[0] is not None
            return _clip(inputs[0], low, high)
        fixed = [self._arrays.get(name) if name else None for name in node.inputs]
        call = Call(node.op, node.name, node.attributes, self.opset, fixed, torch.float32)
        call.outputs = len(node.outputs)
        try:
            return OPERATORS[node.op](call, *inputs)
        except Unsupported as error:
            raise UnsupportedError(f"this model cannot be simulated in torch: {error}") from error

    def _quantize(self, node: _Node, x: Any, scale: Any, zero: Any = None) -> Tensor:
        """Return codes as floats, in which they are exact."""
        array = self._arrays[node.inputs[2]] if zero is not None else np.zeros((), np.uint8)
        info = np.iinfo(array.dtype)
        numbers = torch.zeros_like(scale) if zero is None else zero.to(scale.dtype)
        return quantize(
            x, _along(scale, node, x), _along(numbers, node, x), float(info.min), float(info.max)
        )


def _shape(node: ir.Node) -> Array | None:
    """Return the value of a Shape operator whose input is static."""
    source = node.inputs[0] if node.op_type == "Shape" else None
    if source is None or source.shape is None or not source.shape.is_static():
        return None
    start, end = node.attributes.get_int("start", 0), node.attributes.get("end")
    return np.array(source.shape.numpy()[start : None if end is None else end.as_int()], np.int64)


def _tuple(result: Any) -> tuple[Any, ...]:
    return result if isinstance(result, tuple) else (result,)


def _dequantize(node: _Node, x: Any, scale: Any, zero: Any = None) -> Tensor:
    numbers = x.to(scale.dtype)
    if zero is not None:
        numbers = numbers - _along(zero.to(scale.dtype), node, x)
    product: Tensor = numbers * _along(scale, node, x)
    return product


def _along(parameter: Tensor, node: _Node, x: Tensor) -> Tensor:
    if parameter.numel() == 1:
        return parameter.reshape(())
    axis = node.attributes.get("axis", 1) % x.dim()
    return parameter.reshape([-1 if i == axis else 1 for i in range(x.dim())])


def _clip(x: Tensor, low: Tensor | None, high: Tensor | None) -> Tensor:
    """Clamp by tensors, so that bounds can be trained."""
    return x if low is None and high is None else torch.clamp(x, min=low, max=high)


def _decoded(value: Any) -> Any:
    if isinstance(value, bytes):
        return value.decode()
    return [_decoded(item) for item in value] if isinstance(value, list | tuple) else value
