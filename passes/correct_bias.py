"""Take back what quantization adds to the products on average."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
import onnx_ir as ir

from npuc.errors import PassError
from npuc.passes import biases
from npuc.passes.base import Pass, Result
from npuc.passes.graphs import Names, label
from npuc.passes.qdq.sites import dequantized
from npuc.profile import Profile
from npuc.program import Refusal

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class CorrectBias(Pass):
    """Conv(x, w, b)  ⇒  Conv(x, w, b - shift), with what the codes shift each output by on average.

    `shifts` are by product, per output channel, as `npuc.quantization.bias_shifts` measures them
    (Nagel et al. 2019, "Data-free quantization through weight equalization and bias correction").
    A bias that is coded keeps its scale. Products that are not quantized here are left alone.

    Refuses a product without a bias, or with one that is not a vector along the outputs.
    """

    name: ClassVar[str] = "correct-bias"
    exact: ClassVar[bool] = False

    shifts: Mapping[str, Array] = field(repr=False)

    def apply(self, model: ir.Model, profile: Profile) -> Result:
        """Rewrite biases in place; `changes` counts them."""
        scheme = profile.int_scheme
        if scheme is None:
            raise PassError(f"target {profile.name!r} has no integer scheme")
        changes, refusals, names = 0, list[Refusal](), Names(model)
        for node in tuple(model.graph):
            shift = self.shifts.get(node.name or "")
            if shift is None or not any(dequantized(value) for value in node.inputs[:2]):
                continue
            reason = biases.refusal(node, shift.size)
            if reason:
                refusals.append(Refusal(label(node), f"its answers stay shifted: {reason}"))
            else:
                biases.subtract(node, shift, scheme, names)
                changes += 1
        return Result(changes, tuple(refusals))
