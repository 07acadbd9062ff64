"""Turn what users have at hand (a DataLoader, a list, one big tensor) into named calls."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from npuc.capture import Captured
from npuc.errors import UsageError
from npuc.program import Tensors


def as_call(value: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Read one call: a tensor, positional inputs, or keyword arguments."""
    import torch

    if isinstance(value, torch.Tensor | np.ndarray):
        return (_tensor(value),), {}
    if isinstance(value, Mapping):
        return (), {k: _tensor(v) for k, v in value.items()}
    if isinstance(value, tuple | list):
        return tuple(_tensor(v) for v in value), {}
    raise UsageError(f"inputs must be tensors, a tuple or a dict, not {type(value).__name__}")


def _tensor(value: Any) -> Any:
    import torch

    return torch.from_numpy(value) if isinstance(value, np.ndarray) else value


def as_samples(source: Any, captured: Captured, example: Tensors, what: str) -> Iterator[Tensors]:
    """Turn what the user has (DataLoader, list, one tensor) into named calls."""
    import torch

    if source is None:
        return
    single = len(captured.signature.input_names) == 1
    if isinstance(source, torch.Tensor | np.ndarray):
        if not single:
            raise UsageError(f"{what}: one tensor, but the model has several inputs")
        (name,) = captured.signature.input_names
        batch = example[name].shape[0] if example[name].ndim else 1
        source = _tensor(source)
        if source.ndim == example[name].ndim + 1:
            source = list(source)
        else:
            source = [part for part in source.split(batch) if len(part) == batch]
    names = captured.signature.input_names
    count = 0
    for item in source:
        count += 1
        yield _checked(_named(item, captured, names), example, captured, f"{what}[{count - 1}]")
    if not count:
        raise UsageError(f"{what}: it is empty (an iterator that was used up before?)")


def _named(item: Any, captured: Captured, names: Sequence[str]) -> Tensors:
    args, kwargs = as_call(item)
    if kwargs and set(names) <= set(kwargs):  # a batch dict may also carry labels
        from npuc.signature import to_array

        return {name: to_array(kwargs[name]) for name in names}
    if args and len(args) > captured.in_args:  # a DataLoader's (x, y): leading entries
        args = args[: captured.in_args]
    return captured.signature.flatten(args, kwargs)


def _checked(call: Tensors, example: Tensors, captured: Captured, where: str) -> Tensors:
    """Hold a call to the example's dtypes, and to its shape on axes that are not dynamic."""
    faults = []
    for name, array in call.items():
        want = example[name]
        free = captured.axes.get(name, {})
        fits = array.ndim == want.ndim and all(
            axis in free or size == want.shape[axis] for axis, size in enumerate(array.shape)
        )
        if array.dtype != want.dtype:
            faults.append(f"{name} is {array.dtype}, the example is {want.dtype}")
        if not fits:
            faults.append(f"{name} has shape {array.shape}, the example {want.shape}")
    if faults:
        raise UsageError(
            f"{where}: " + "; ".join(faults),
            hint="declare axes that vary: dynamic_shapes={'x': {0: 'batch'}}",
        )
    return call
