"""Read an ONNX file from a stranger: checked, weights only from its own folder, shapes known."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir

from npuc.errors import LoadError, NpucError
from npuc.program import PROTO_LIMIT, Program
from npuc.quiet import quiet


def read_onnx(path: Path) -> Program:
    """Load an ONNX model; weights beyond 2 GiB stay on disk. Raises `LoadError`, all faults."""
    try:
        with quiet():
            model = ir.load(path)
            faults = list(_external_faults(model, path))
            if faults:
                raise LoadError(
                    f"{path}: unsafe or missing external data:\n  " + "\n  ".join(faults),
                    hint="keep the model and its data files in one folder",
                )
            return _checked(model, path)
    except NpucError:
        raise
    except Exception as error:  # onnx, onnx_ir and protobuf raise many types on malformed bytes
        raise LoadError(
            f"{path}: damaged or invalid ONNX: {(str(error) or repr(error)).splitlines()[0][:200]}",
            hint="export it again, or download it again and compare the size",
        ) from error


def _checked(model: ir.Model, path: Path) -> Program:
    onnx.checker.check_model(str(path))
    if not model.graph.outputs:
        raise LoadError(f"{path}: the model has no outputs: there is nothing to compile")
    _infer_shapes(model)
    _name_dims(model)
    faults = list(_nan_faults(model))
    if faults:
        raise LoadError(f"{path} has weights that are not numbers:\n  " + "\n  ".join(faults))
    program = Program.from_model(model)
    if program.weight_bytes <= PROTO_LIMIT:
        # One message carries them then, and nothing depends on the file any more.
        ir.external_data.load_to_model(model)
    return program


def _tensors(model: ir.Model) -> Iterator[tuple[str, ir.TensorProtocol]]:
    """Every tensor stored in the file: initializers, and attributes of nodes and functions."""
    for graph in model.graphs():
        for name, value in graph.initializers.items():
            if value.const_value is not None:
                yield name, value.const_value
    nodes = (node for graph in model.graphs() for node in graph)
    functions = (node for function in model.functions.values() for node in function)
    for node in (*nodes, *functions):
        for attribute in node.attributes.values():
            if attribute.type == ir.AttributeType.TENSOR:
                yield f"{node.name}.{attribute.name}", attribute.as_tensor()
            elif attribute.type == ir.AttributeType.TENSORS:
                yield from ((f"{node.name}.{attribute.name}", t) for t in attribute.as_tensors())


def _external_faults(model: ir.Model, path: Path) -> Iterator[str]:
    folder = path.parent.resolve()
    for name, tensor in _tensors(model):
        if not isinstance(tensor, ir.ExternalTensor):
            continue
        location = str(tensor.location)
        place = (folder / location).resolve()
        if Path(location).is_absolute() or not place.is_relative_to(folder):
            yield f"{name}: its data are outside the model's folder: {location}"
        elif not place.is_file():
            yield f"{name}: {location} is missing"
        elif (tensor.offset or 0) + (tensor.length or 0) > place.stat().st_size:
            yield f"{name}: {location} is too short"


def _infer_shapes(model: ir.Model) -> None:
    """Add shapes of intermediate values; weights are set aside, so any size is fine."""
    from onnx_ir.passes.common import ShapeInferencePass

    ShapeInferencePass(check_type=False, strict_mode=False, data_prop=True)(model)


def _name_dims(model: ir.Model) -> None:
    """Give every unnamed dynamic dimension of an input a name of its own."""
    for value in model.graph.inputs:
        if value.shape is None or value.name in model.graph.initializers:
            continue
        value.shape = ir.Shape(
            d if isinstance(d, int) or d.value else f"{value.name}_{axis}"
            for axis, d in enumerate(value.shape)
        )


def _nan_faults(model: ir.Model) -> Iterator[str]:
    for name, tensor in _tensors(model):
        if tensor.dtype.is_floating_point():
            array = tensor.numpy().astype(np.float32, copy=False)
            nan, inf = int(np.isnan(array).sum()), int(np.isinf(array).sum())
            # Infinities make masks: then nothing else in the tensor is but zero.
            mask = not np.any(array[np.isfinite(array)]) if inf else True
            if nan or not mask:
                yield f"{name}: {nan} NaN, {inf} Inf of {array.size} values"
