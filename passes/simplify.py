"""Let onnxsim, a third-party simplifier, rewrite the model."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import ClassVar

import onnx
import onnx_ir as ir
from onnx_ir.passes.common import ClearMetadataAndDocStringPass
from onnx_ir.serde import TensorProtoTensor

from npuc.errors import PassError
from npuc.passes.base import Pass, Result
from npuc.passes.graphs import infer_types
from npuc.profile import Profile
from npuc.program import PROTO_LIMIT
from npuc.quiet import native_quiet


@dataclass(frozen=True)
class Simplify(Pass):
    """model  ⇒  onnxsim(model)

    No formula: onnxsim applies rewrites of its own. Its word that the result is right is not
    taken (it bakes in inner shapes that a file declares wrongly, and reports success): the pass
    is optional and stands or falls with the parity check at several sizes.

    Inner shapes and metadata are stripped first, since stale ones stop or mislead it. Refuses a
    model beyond protobuf's 2 GiB. Raises `PassError` where onnxsim fails or loses a port.
    """

    name: ClassVar[str] = "simplify"
    optional: ClassVar[bool] = True

    def apply(self, model: ir.Model, profile: Profile) -> tuple[ir.Model, Result]:
        """Return onnxsim's model; `changes` is how many operators were added or removed."""
        with _torchless():
            import onnxsim

        tensors = (v.const_value for v in model.graph.initializers.values())
        size = sum(t.nbytes for t in tensors if t is not None)
        if size > PROTO_LIMIT:
            raise PassError(f"{size:,} bytes of weights exceed one protobuf message")
        before = _count(model)
        opsets = dict(model.opset_imports)
        metadata = dict(model.metadata_props)
        _strip(model)
        try:
            with native_quiet():  # its C++ core warns of every constant it cannot fold
                proto, _ = onnxsim.simplify(ir.to_proto(model))
        except Exception as error:  # its C++ core raises whatever it meets
            raise PassError(f"onnxsim failed: {_first_line(error)}") from error
        simple = ir.from_proto(proto)
        _unpack(simple)
        if simple.opset_imports.get("") != opsets.get(""):
            raise PassError(f"onnxsim changed the opset to {simple.opset_imports.get('')}")
        _restore_ports(model, simple)
        simple.metadata_props.update(metadata)
        infer_types(simple)
        after = _count(simple)
        changes = sum(abs(before.get(op, 0) - after.get(op, 0)) for op in before.keys() | after)
        return simple, Result(changes)


@contextmanager
def _torchless() -> Iterator[None]:
    """Keep onnxsim from importing torch, which takes 230 MiB and simplifying makes no use of."""
    absent = "torch" not in sys.modules
    if absent:
        sys.modules["torch"] = None  # type: ignore[assignment]  # Python's own way to say "not here"
    try:
        yield
    finally:
        if absent:
            del sys.modules["torch"]


def _count(model: ir.Model) -> dict[str, int]:
    counts: dict[str, int] = {}
    for node in model.graph.all_nodes():
        counts[node.op_type] = counts.get(node.op_type, 0) + 1
    return counts


def _strip(model: ir.Model) -> None:
    ClearMetadataAndDocStringPass()(model)
    for node in model.graph.all_nodes():
        for value in node.outputs:
            if not value.is_graph_output():
                value.shape = None


def _unpack(model: ir.Model) -> None:
    """Take all tensors out of the message they came in, in place.

    A message hands a tensor's bytes over by a copy, whoever asks and however often, and one tensor
    that is left in it keeps all of them in memory.
    """
    for graph in model.graphs():
        for value in graph.initializers.values():
            if isinstance(value.const_value, TensorProtoTensor):
                value.const_value = _unpacked(value.const_value)
    for node in model.graph.all_nodes():
        for name, attribute in node.attributes.items():
            if attribute.type == ir.AttributeType.TENSOR and not attribute.is_ref():
                tensor = attribute.as_tensor()
                if isinstance(tensor, TensorProtoTensor):
                    node.attributes[name] = ir.AttrTensor(name, _unpacked(tensor))


def _unpacked(tensor: TensorProtoTensor) -> ir.TensorProtocol:
    if tensor.raw.HasField("raw_data") and tensor.dtype.bitwidth >= 8:
        return ir.Tensor(tensor.numpy(), dtype=tensor.dtype, name=tensor.name)
    copied = onnx.TensorProto()
    copied.CopyFrom(tensor.raw)
    return TensorProtoTensor(copied)


def _restore_ports(before: ir.Model, after: ir.Model) -> None:
    """Give ports their names and symbolic dimensions back; put dropped inputs back in place."""
    for side in ("inputs", "outputs"):
        old, new = list(getattr(before.graph, side)), list(getattr(after.graph, side))
        found = {value.name: value for value in new}
        names = [value.name for value in old]
        if side == "inputs":
            for value in old:
                found.setdefault(value.name, ir.Value(name=value.name, type=value.type))
        elif len(new) == len(old) and set(found) != set(names):
            found = dict(zip(names, new, strict=True))
        if not set(names) <= set(found):
            lost = ", ".join(str(n) for n in names if n not in found)
            raise PassError(f"onnxsim lost the {side} {lost}")
        ports = getattr(after.graph, side)
        ports.clear()
        for value in old:
            port = found[value.name]
            port.name, port.shape, port.type = value.name, value.shape, value.type
            ports.append(port)


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0][:400] or type(error).__name__
