"""The names of a torch model's inputs and outputs, and the way between names and calls.

The names are those its ONNX export gets, so that a recorded reference and a program agree:
inputs as torch.export names them (forward's parameters, ``x_0``/``x_key`` inside containers);
outputs by the keys or fields of what the model returns, ``output`` for one tensor,
``output_0`` … for a tuple.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from npuc.errors import ExportError, ParityError
from npuc.program import Tensors

if TYPE_CHECKING:
    import torch
    from torch.export import ExportedProgram


@dataclass(frozen=True)
class Signature:
    """Where each named tensor sits in a call and in its result.

    `inputs` has one entry per leaf of (args, kwargs): a name, or None for a constant whose value
    is in `constants`. `outputs` has a name per leaf of the result, None for what is no tensor.
    """

    inputs: tuple[str | None, ...]
    constants: tuple[Any, ...]
    outputs: tuple[str | None, ...]
    in_spec: Any

    @classmethod
    def of(cls, program: "ExportedProgram") -> "Signature":
        """Read the signature of an exported program; raises `ExportError` without outputs."""
        from torch.export.graph_signature import InputKind, OutputKind, TensorArgument

        inputs: list[str | None] = []
        constants: list[Any] = []
        for spec in program.graph_signature.input_specs:
            if spec.kind is InputKind.USER_INPUT:
                tensor = isinstance(spec.arg, TensorArgument)
                inputs.append(spec.arg.name if tensor else None)
                constants.append(None if tensor else getattr(spec.arg, "value", None))
        results = [
            isinstance(spec.arg, TensorArgument)
            for spec in program.graph_signature.output_specs
            if spec.kind is OutputKind.USER_OUTPUT
        ]
        names = _output_names(program.call_spec.out_spec, {n for n in inputs if n})
        outputs = tuple(n if tensor else None for n, tensor in zip(names, results, strict=True))
        if not any(outputs):
            raise ExportError(
                "the model returns no tensor: there is nothing to compile or compare",
                hint="return the tensors the model computes from forward()",
            )
        return cls(tuple(inputs), tuple(constants), outputs, program.call_spec.in_spec)

    @property
    def input_names(self) -> tuple[str, ...]:
        """Names of the tensor inputs in order."""
        return tuple(n for n in self.inputs if n)

    @property
    def output_names(self) -> tuple[str, ...]:
        """Names of the tensor outputs in order."""
        return tuple(n for n in self.outputs if n)

    def flatten(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Tensors:
        """Name the tensors of a call."""
        from torch.utils import _pytree as pytree

        leaves = pytree.tree_leaves((tuple(args), _ordered(kwargs, self.in_spec)))
        if len(leaves) != len(self.inputs):
            raise ParityError(f"a call has {len(leaves)} values, the model takes {self.inputs}")
        return {n: to_array(v) for n, v in zip(self.inputs, leaves, strict=True) if n}

    def call(self, tensors: Tensors) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Build (args, kwargs) of torch tensors on the CPU from named arrays."""
        from torch.utils import _pytree as pytree

        leaves = [
            to_tensor(tensors[name]) if name else constant
            for name, constant in zip(self.inputs, self.constants, strict=True)
        ]
        args, kwargs = pytree.tree_unflatten(leaves, self.in_spec)
        return args, kwargs

    def results(self, value: Any) -> dict[str, np.ndarray[Any, Any]]:
        """Name the tensors that a call returned; copies, so the next call cannot change them."""
        from torch.utils import _pytree as pytree

        leaves = pytree.tree_leaves(value)
        if len(leaves) != len(self.outputs):
            raise ParityError(f"the model returned {len(leaves)} values, not {self.outputs}")
        return {n: to_array(v) for n, v in zip(self.outputs, leaves, strict=True) if n}


def to_array(tensor: "torch.Tensor") -> np.ndarray[Any, Any]:
    """Copy a tensor from any device into a numpy array; bfloat16 becomes ml_dtypes.bfloat16."""
    import torch

    tensor = tensor.detach().cpu().contiguous()
    if tensor.dtype == torch.bfloat16:
        import ml_dtypes

        return tensor.view(torch.int16).numpy().copy().view(ml_dtypes.bfloat16)
    array: np.ndarray[Any, Any] = tensor.numpy().copy()
    return array


def to_tensor(array: np.ndarray[Any, Any]) -> "torch.Tensor":
    """Copy an array into a tensor on the CPU."""
    import torch

    if array.dtype.name == "bfloat16":
        return torch.from_numpy(array.view(np.int16).copy()).view(torch.bfloat16)
    return torch.from_numpy(np.array(array))


def _ordered(kwargs: Mapping[str, Any], in_spec: Any) -> dict[str, Any]:
    """Order keyword arguments as they were when the model was captured."""
    order = in_spec.child(1).context if len(kwargs) else []
    if set(order) != set(kwargs):
        raise ParityError(f"keyword arguments {sorted(kwargs)}, the model takes {sorted(order)}")
    return {key: kwargs[key] for key in order}


def _output_names(spec: Any, taken: set[str]) -> tuple[str, ...]:
    """Name the leaves of a result; a name that an input has gets ``_out``."""
    from torch.utils import _pytree as pytree

    tree = pytree.tree_unflatten(list(range(spec.num_leaves)), spec)
    names: list[str] = []
    for path, _ in pytree.tree_flatten_with_path(tree)[0]:
        name = "_".join(re.sub(r"\W", "_", part) for part in _parts(path)) or "output"
        name = f"output_{name}" if name[0].isdigit() else name
        while name in taken:
            name += "_out"
        taken.add(name)
        names.append(name)
    return tuple(names)


def _parts(path: tuple[Any, ...]) -> Iterator[str]:
    for key in path:
        for attribute in ("key", "idx", "name"):  # MappingKey, SequenceKey, GetAttrKey
            if hasattr(key, attribute):
                yield str(getattr(key, attribute))
                break
