"""Bind the dynamic dimensions of a model to numbers."""

import difflib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import ClassVar

import onnx_ir as ir

from npuc.errors import UsageError
from npuc.passes.base import Pass, Result
from npuc.passes.fold_constants import FoldConstants
from npuc.passes.graphs import infer_shapes, label
from npuc.profile import Profile
from npuc.program import Refusal

BOUND = "npuc.dim."
"""Prefix of the model metadata that remembers a bound dimension, so that binding again is known."""


@dataclass(frozen=True)
class FixShapes(Pass):
    """x[batch, 3] → Shape → Gather → Reshape → y[batch, 3]  ⇒  x[8, 3] → y[8, 3], batch = 8

    Every shape that names a bound dimension, alone or in an expression, becomes a number; shapes
    are inferred anew; Shape operators that are now constant are folded with all they lead to.

    Reports what stays dynamic: ports whose dimension got no number, and tensors whose size
    depends on the data. Raises `UsageError` for a name that is no dimension of an input, a
    dimension bound twice to different numbers, or a number below 1.
    """

    name: ClassVar[str] = "fix-shapes"

    dims: Mapping[str, int] = field(default_factory=dict)

    def apply(self, model: ir.Model, profile: Profile) -> Result:
        """Bind in place; `changes` counts dimensions bound on any value, and nodes folded."""
        known = dict.fromkeys(name for value in _inputs(model) for name in _symbols(value))
        _check(self.dims, tuple(known), model.metadata_props)
        changes = sum(_bind(value, self.dims) for value in _values(model))
        for name in known:
            if name in self.dims:
                model.metadata_props[BOUND + name] = str(self.dims[name])
        if changes:
            infer_shapes(model)
            changes += FoldConstants().apply(model, profile).changes
            infer_shapes(model)
        return Result(changes, tuple(_dynamic(model)))


def _inputs(model: ir.Model) -> list[ir.Value]:
    return [v for v in model.graph.inputs if v.name not in model.graph.initializers]


def _symbols(value: ir.Value) -> list[str]:
    """Name the dynamic dimensions of an input as `Port` does."""
    return [
        dim.value or f"{value.name}_{axis}"
        for axis, dim in enumerate(value.shape or ())
        if not isinstance(dim, int)
    ]


def _check(dims: Mapping[str, int], known: tuple[str, ...], metadata: Mapping[str, str]) -> None:
    for name, size in dims.items():
        if not isinstance(size, int) or isinstance(size, bool) or size < 1:
            raise UsageError(f"dimension {name!r} must be a whole number from 1, not {size!r}")
        earlier = metadata.get(BOUND + name)
        if name not in known and earlier is not None and int(earlier) != size:
            raise UsageError(f"dimension {name!r} is already fixed to {earlier}, not {size}")
    unknown = [n for n in dims if n not in known and BOUND + n not in metadata]
    if not unknown:
        return
    near = [m for n in unknown for m in difflib.get_close_matches(n, known, 1)]
    listed = f"its dynamic dimensions are {', '.join(known)}" if known else "none is dynamic"
    raise UsageError(
        f"the model's inputs have no dimension {', '.join(map(repr, unknown))}: {listed}",
        hint=f"did you mean {', '.join(near)}?" if near else "see npuc inspect",
    )


def _values(model: ir.Model) -> Iterator[ir.Value]:
    for graph in model.graphs():
        yield from graph.inputs
        for node in graph:
            yield from node.outputs


def _bind(value: ir.Value, dims: Mapping[str, int]) -> int:
    if value.shape is None:
        return 0
    new: list[int | str | None] = []
    for axis, dim in enumerate(value.shape):
        if isinstance(dim, int):
            new.append(dim)
        elif dim.value is None:
            new.append(dims.get(f"{value.name}_{axis}") if value.producer() is None else None)
        else:
            new.append(_size(dim, dims))
    changes = sum(a != b for a, b in zip(new, value.shape, strict=True) if isinstance(a, int))
    if changes:
        value.shape = ir.Shape(new)
    return changes


def _size(dim: ir.SymbolicDim, dims: Mapping[str, int]) -> int | str | None:
    """Return a dimension's number where all its symbols are bound."""
    if dim.value is not None and dim.value in dims:
        return dims[dim.value]
    try:
        size = dim.evaluate(dict(dims))
    except ValueError:  # a name that is no expression, such as "input.1_dim_0"
        return dim.value
    return size if isinstance(size, int) else dim.value


def _dynamic(model: ir.Model) -> Iterator[Refusal]:
    for value in _inputs(model):
        for name in _symbols(value):
            yield Refusal(
                f"input {value.name}", f"dimension {name!r} has no number: --dim {name}=N"
            )
    for node in model.graph:
        for value in node.outputs:
            if value.shape is not None and not value.shape.is_static() and value.name:
                shape = "x".join(
                    str(d) if isinstance(d, int) else d.value or "?" for d in value.shape
                )
                yield Refusal(label(node), f"output {value.name!r} stays dynamic: {shape}")
