"""Put learned codes in place of the nearest ones."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
import onnx_ir as ir

from npuc.errors import PassError
from npuc.passes.base import Pass, Result
from npuc.passes.graphs import constant, label
from npuc.profile import Profile
from npuc.program import Refusal

Array = np.ndarray[Any, Any]


@dataclass(frozen=True, slots=True)
class Learned:
    """New codes of one weight, and the scales that they were learned for."""

    codes: Array
    scales: Array


@dataclass(frozen=True)
class LearnRounding(Pass):
    """DequantizeLinear(w₈, s, z)  ⇒  DequantizeLinear(w₈', s, z)

    The codes of weights that products read are those of `npuc.quantization.rounding`, learned on
    the calibration calls: each loses less of its product than the nearest codes do. Scales, zero
    points, biases and activations stay. `method` is "gptq" or "adaround".

    Reports the weights that keep the nearest codes: those of ConvTranspose, stacks of matrices,
    weights that are read in several ways, those with more than 8192 terms to a sum, and those that
    have other scales than the codes were learned for. A weight that stays in float here is passed
    over. Raises `PassError` where codes do not fit the initializer that they are for.
    """

    name: ClassVar[str] = "learn-rounding"
    exact: ClassVar[bool] = False

    method: str
    learned: Mapping[str, Learned] = field(default_factory=dict, repr=False)
    """Name of the initializer that holds a weight's codes → what becomes of it."""
    kept: tuple[Refusal, ...] = field(default=(), repr=False)

    def apply(self, model: ir.Model, profile: Profile) -> Result:
        """Replace in place; `changes` counts the weights of which at least one code moved."""
        changes, refusals = 0, list(self.kept)
        for node in model.graph:
            coded = node.inputs[0] if node.op_type == "DequantizeLinear" else None
            found = None if coded is None else self.learned.get(coded.name or "")
            if coded is None or found is None:
                continue
            if not np.array_equal(_array(node, 1), found.scales):
                why = "its scales are not those that its codes were learned for"
                refusals.append(Refusal(label(node), f"{why}: it keeps the nearest"))
                continue
            before, after = _array(node, 0), found.codes
            if (before.shape, before.dtype) != (after.shape, after.dtype):
                raise PassError(
                    f"codes for {coded.name!r} are {after.dtype} of shape {list(after.shape)}, "
                    f"not {before.dtype} of shape {list(before.shape)}"
                )
            if not np.array_equal(before, after):
                coded.const_value = ir.tensor(after, name=coded.name)
                changes += 1
        return Result(changes, tuple(refusals))


def _array(node: ir.Node, index: int) -> Array:
    array = constant(node.inputs[index])
    if array is None:
        raise PassError(f"{label(node)!r}: codes were learned for it, but it has no constants")
    return array
