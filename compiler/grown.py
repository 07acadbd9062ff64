"""Example inputs whose dynamic dimensions are larger than one."""

import inspect
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

SIZE = 2
"""Size given to dynamic dimensions of size 1: torch treats 1 as a broadcast, and may fix it."""

Call = tuple[tuple[Any, ...], dict[str, Any]]


def grown(
    module: "torch.nn.Module", args: tuple[Any, ...], kwargs: dict[str, Any], shapes: Any
) -> Call | None:
    """Repeat the example along every dynamic dimension of size 1; None where there is none.

    `shapes` is torch's dynamic_shapes; a name stands for one dimension in all inputs. Returns
    copies of the tensors that grow. A dimension given as Dim.AUTO is left to torch, and a name
    that has several sizes in the example as it is.
    """
    import torch
    from torch.utils import _pytree as pytree

    found = [] if not shapes else list(_declared(module, args, kwargs, shapes))
    sizes: dict[Any, set[int]] = {}
    for tensor, axis, name in found:
        sizes.setdefault(name, set()).add(tensor.shape[axis])
    growing: dict[int, set[int]] = {}
    for tensor, axis, name in found:
        if sizes[name] == {1}:
            growing.setdefault(id(tensor), set()).add(axis)
    if not growing:
        return None

    def grow(tensor: torch.Tensor) -> torch.Tensor:
        for axis in sorted(growing.get(id(tensor), ())):
            tensor = torch.cat([tensor] * SIZE, axis)
        return tensor

    new_args, new_kwargs = pytree.tree_map_only(torch.Tensor, grow, (args, kwargs))
    return new_args, new_kwargs


def _declared(
    module: "torch.nn.Module", args: tuple[Any, ...], kwargs: dict[str, Any], shapes: Any
) -> Iterator[tuple["torch.Tensor", int, Any]]:
    """Find the declared axes: tensor, axis, and what names the dimension."""
    try:
        values = inspect.signature(module.forward).bind(*args, **kwargs).arguments
    except TypeError:  # capturing says it better
        return
    given = values if isinstance(shapes, Mapping) else [*args, *kwargs.values()]
    for spec, value in _paired(shapes, given):
        yield from _axes(spec, value)


def _axes(spec: Any, value: Any) -> Iterator[tuple["torch.Tensor", int, Any]]:
    import torch
    from torch.export import Dim

    if not isinstance(value, torch.Tensor):
        for inner, item in _paired(spec, value):
            yield from _axes(inner, item)
        return
    if isinstance(spec, tuple | list):
        spec = dict(enumerate(spec))
    for axis, dim in spec.items() if isinstance(spec, Mapping) else ():
        if not isinstance(axis, int) or not -value.ndim <= axis < value.ndim:
            continue
        if isinstance(dim, Dim):
            yield value, axis, dim.__name__
        elif isinstance(dim, str):
            yield value, axis, dim
        elif dim == Dim.DYNAMIC:
            yield value, axis, (id(value), axis)


def _paired(spec: Any, value: Any) -> Iterator[tuple[Any, Any]]:
    """Pair the entries of two containers of one layout; other layouts are torch's to refuse."""
    if isinstance(spec, Mapping) and isinstance(value, Mapping):
        yield from ((spec[key], value[key]) for key in spec if key in value)
    elif isinstance(spec, tuple | list) and isinstance(value, tuple | list):
        yield from zip(spec, value, strict=False)
