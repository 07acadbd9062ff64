"""Stop a model whose batch is not the only one that a device takes."""

from dataclasses import dataclass
from typing import ClassVar

import onnx_ir as ir

from npuc.errors import UnsupportedError
from npuc.passes.base import Pass, Result
from npuc.passes.fix_shapes import BOUND
from npuc.profile import Profile
from npuc.program import Program


@dataclass(frozen=True)
class CheckBatch(Pass):
    """x[8, 3]  ⇒  an error, on a device that takes batch 1 only

    Changes nothing. Raises `UnsupportedError`, with the command that binds it, where
    ``shapes.batch`` is public and the batch is another number. The batch is the first dimension of
    an image (four axes), or one that was bound with --dim: a fixed [8, 3] may be anything.
    """

    name: ClassVar[str] = "check-batch"

    def apply(self, model: ir.Model, profile: Profile) -> Result:
        """Look at the model's inputs."""
        only = profile.get("shapes.batch")
        if only is None:
            return Result()
        for port in Program.from_model(model).inputs:
            if len(port.shape) < 2 or port.shape[0] == only or isinstance(port.shape[0], str):
                continue
            names = _bound(model, port.shape[0])
            if names or len(port.shape) == 4:
                again = f"export the model with a batch of {only}, or with a dynamic one"
                raise UnsupportedError(
                    f"{profile.name} takes batch {only} only, the model has {port}",
                    hint=f"compile with --dim {names[0]}={only}" if names else again,
                )
        return Result()


def _bound(model: ir.Model, size: int) -> list[str]:
    """Name the dimensions that were bound to a size."""
    found = {k.removeprefix(BOUND): v for k, v in model.metadata_props.items() if BOUND in k}
    return [name for name, value in found.items() if value == str(size)]
