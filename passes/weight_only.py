"""Put weights in integer codes with a scale per group of inputs; compute in floats as before."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from math import ceil
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from npuc.errors import PassError
from npuc.passes.base import Pass, Result
from npuc.passes.builder import Builder
from npuc.passes.graphs import Names, drop_if_unused, initializer, label
from npuc.passes.qdq.groups import Array, GroupCodes, nearest
from npuc.passes.qdq.matrices import Matrix, matrices
from npuc.profile import Profile, WeightScheme
from npuc.text import size


@dataclass(frozen=True)
class WeightOnly(Pass):
    """x · W  ⇒  x · D(codes, scales), D = DequantizeLinear, for constants W of products

    real = s·(q - z) for every `group` values along the axis that is summed over. D is over rows of
    one group each, and Reshape puts them together: every opset has that. A code takes a byte here
    whatever its bits: the file format beside the graph knows no smaller type.

    `coded` gives codes, and where the product's bias was corrected that, by the weight's name;
    without it a weight takes the nearest codes on the range that loses the least.

    Refuses a node: in a control-flow body or function; whose weight is not a float32 constant, or
    no matrix; named in `skip`. Raises `PassError` for NaN or Inf in a weight.
    """

    name: ClassVar[str] = "weight-only"
    exact: ClassVar[bool] = False

    scheme: WeightScheme = field(repr=False)
    coded: Mapping[str, GroupCodes] = field(default_factory=dict, repr=False)
    skip: tuple[str, ...] = ()

    @property
    def options(self) -> Mapping[str, object]:
        """Return the form of the codes, the weights that have a wider one, and bytes saved."""
        wider = {k: v.bits for k, v in self.coded.items() if v.bits != self.scheme.bits}
        told: dict[str, object] = {
            "bits": self.scheme.bits,
            "group": self.scheme.group or "all inputs",
            "symmetric": self.scheme.symmetric,
        }
        if self.coded:
            told["weights"] = summary(self.coded)
        return (
            told | ({"wider": wider} if wider else {}) | ({"skip": self.skip} if self.skip else {})
        )

    def apply(self, model: ir.Model, profile: Profile) -> Result:
        """Code in place; `changes` counts the products that now read codes."""
        found, refusals = matrices(model, self.skip)
        writer = _Writer(model)
        for name, readers in found.items():
            rows = readers[0].rows
            try:
                codes = self.coded.get(name) or nearest(rows, self.scheme, self.scheme.bits)
            except PassError as error:
                error.add_note(f"weight {name!r} of {label(readers[0].node)!r}")
                raise
            writer.write(readers, codes)
        return Result(sum(map(len, found.values())), refusals)


def summary(coded: Mapping[str, GroupCodes]) -> str:
    """Say how many values are coded, and what they take as float32 and as codes."""
    count = sum(c.codes.size for c in coded.values())
    held = sum(c.nbytes for c in coded.values())
    return f"{count:,} values: {size(4 * count)} as float32, {size(held)} coded"


@dataclass
class _Writer:
    model: ir.Model

    def __post_init__(self) -> None:
        self.names = Names(self.model)

    def write(self, readers: tuple[Matrix, ...], codes: GroupCodes) -> None:
        """Let every reader of one weight read its codes."""
        first, weight = readers[0], readers[0].value
        graph = first.node.graph
        assert graph is not None  # it was found in one
        new = Builder(graph, self.names, weight.name or "weight")
        real = self._rows(new, first, codes)
        real.type, real.shape = weight.type, weight.shape
        for made in new.nodes:
            made.metadata_props.update(first.node.metadata_props)
        graph.insert_before(first.node, new.nodes)
        for reader in readers:
            reader.node.replace_input_with(reader.index, real)
        drop_if_unused(weight)
        if codes.bias is not None:
            self._bias(first.node, codes.bias)

    def _rows(self, new: Builder, matrix: Matrix, codes: GroupCodes) -> ir.Value:
        """Dequantize [outputs · groups, size], a scale each; then restore the weight's shape."""
        outputs, depth = codes.codes.shape
        groups = ceil(depth / codes.size)
        padded = np.zeros((outputs, groups * codes.size), np.int64)
        padded[:, :depth] = codes.codes
        # What fills up the last group is cut off again: its codes are never anyone's value.
        stored = padded.reshape(outputs * groups, codes.size).astype(f"{codes.dtype}8")
        value = new.op(
            "DequantizeLinear",
            new.constant("codes", stored),
            new.constant("scales", codes.scales.reshape(-1)),
            new.constant("zero_points", codes.zeros.reshape(-1).astype(f"{codes.dtype}8")),
            axis=0,
        )
        if depth != groups * codes.size:
            wide = np.array([outputs, groups * codes.size], np.int64)
            value = new.op("Reshape", value, new.constant("padded", wide))
            ends = [
                new.constant(k, np.array([v])) for k, v in (("from", 0), ("to", depth), ("axis", 1))
            ]
            value = new.op("Slice", value, *ends)
        if matrix.flipped:
            shape = np.array([outputs, depth], np.int64)
            value = new.op("Reshape", value, new.constant("shape", shape))
            return new.op("Transpose", value, perm=(1, 0))
        return new.op("Reshape", value, new.constant("shape", np.array(matrix.shape, np.int64)))

    def _bias(self, node: ir.Node, bias: Array) -> None:
        old = node.inputs[2]
        assert old is not None and node.graph is not None  # only where there is one to correct
        free = self.names.new(f"{old.name}_corrected")
        node.replace_input_with(2, initializer(node.graph, free, bias.astype(np.float32)))
        drop_if_unused(old)
