"""Put learned codes in place of the nearest ones."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
import onnx_ir as ir

from npuc.errors import PassError
from npuc.passes.base import Pass, Result
from npuc.passes.graphs import constant
from npuc.profile import Profile
from npuc.program import Refusal

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class LearnRounding(Pass):
    """DequantizeLinear(w₈, s, z)  ⇒  DequantizeLinear(w₈', s, z)

    The codes of weights that products read are those of `npuc.rounding`, learned on the
    calibration calls: each loses less of its product than the nearest codes do. Scales, zero
    points, biases and activations stay. `method` is "gptq" or "adaround".

    Reports the weights that keep the nearest codes: those of ConvTranspose, stacks of matrices,
    weights that are read in several ways, and those with more than 8192 terms to a sum.
    Raises `PassError` where codes do not fit the initializer that they are for.
    """

    name: ClassVar[str] = "learn-rounding"
    exact: ClassVar[bool] = False

    method: str
    codes: Mapping[str, Array] = field(default_factory=dict, repr=False)
    """Name of an initializer → its new codes, of the same shape and type."""
    kept: tuple[Refusal, ...] = field(default=(), repr=False)

    def apply(self, model: ir.Model, profile: Profile) -> Result:
        """Replace in place; `changes` counts the weights of which at least one code moved."""
        changes, initializers = 0, model.graph.initializers
        for name, array in self.codes.items():
            value = initializers.get(name)
            before = constant(value)
            if value is None or before is None:
                raise PassError(f"there is no initializer {name!r} for learned codes")
            if (before.shape, before.dtype) != (array.shape, array.dtype):
                raise PassError(
                    f"codes for {name!r} are {array.dtype} of shape {list(array.shape)}, "
                    f"not {before.dtype} of shape {list(before.shape)}"
                )
            if not np.array_equal(before, array):
                value.const_value = ir.tensor(array, name=name)
                changes += 1
        return Result(changes, self.kept)
