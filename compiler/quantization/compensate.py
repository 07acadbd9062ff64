"""Code weights one after the other, each making good what those before it have spoiled.

For a product y = W·x, x̂ is what the product reads once all before it are coded, and the target is
the float program's y, not W·x̂. Where y is added to a tensor r of before (a residual branch), what
r has lost already is part of the target too. The real weight that comes closest,

    W* = W + C·(H + λI)⁻¹,   H = E[x̂ x̂ᵀ],  C = E[(t - W·x̂) x̂ᵀ],

is then coded by GPTQ on H, and the product's bias takes up the mean error that is left. Targets
after Arai & Ichikawa, "Quantization Error Propagation", 2025, and Li et al., "GPTAQ", 2025; the
residual branch and the bias are npuc's.

Memory: the two programs, one call's tensors, two matrices of depth² for one weight at a time.
Time: every weight takes two runs of the calibration calls.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import onnx_ir as ir

from npuc.passes.graphs import constant
from npuc.passes.qdq.groups import GroupCodes, fitted, limits, spread
from npuc.passes.qdq.matrices import Matrix
from npuc.profile import WeightScheme
from npuc.program import Program, Tensors
from npuc.quantization import gptq
from npuc.quantization.taps import Taps

Array = np.ndarray[Any, Any]
DAMPING = 0.03
"""λ as a part of H's mean diagonal: less of it fits what 64 samples do not show, and from 0.01 to
0.1 the reference GPT's answer differs by 0.3 dB."""
ROUNDS = 3
"""Times that scales are fitted to the codes and codes to the scales; more moves the third digit."""
KEEP = frozenset({"Reshape", "Identity", "Flatten", "Squeeze", "Unsqueeze"})
"""Operators between a product and its sum that leave rows of outputs what they are."""


@dataclass(slots=True)
class Sums:
    """What is summed over all columns: `data` x̂x̂ᵀ, `lost` (x - x̂)x̂ᵀ, `branch` δr·x̂ᵀ, and means.

    Matrices are [group, ...]; `branch` is [1, outputs, depth].
    """

    data: Array
    lost: Array
    branch: Array
    mean: Array
    mean_lost: Array
    mean_branch: Array
    count: int = 0

    @classmethod
    def of(cls, group: int, outputs: int, depth: int) -> "Sums":
        """Return sums of nothing, for a stack of [group, outputs, depth]."""
        square, row = (group, depth, depth), (group, depth)
        data, lost, branch = (np.zeros(s) for s in (square, square, (group, outputs, depth)))
        mean, mean_lost, mean_branch = (np.zeros(s) for s in (row, row, (group, outputs)))
        return cls(data, lost, branch, mean, mean_lost, mean_branch)

    def see(self, now: Array, real: Array, branch: Array | None) -> None:
        """Take in columns [group, n, depth] of the coded and of the float program."""
        now, lost = now.astype(np.float64), real.astype(np.float64) - now
        turned = np.swapaxes(lost, 1, 2)
        self.data += np.swapaxes(now, 1, 2) @ now
        self.lost += turned @ now
        self.mean += now.sum(axis=1)
        self.mean_lost += lost.sum(axis=1)
        if branch is not None:
            self.branch[0] += branch.T @ now[0]
            self.mean_branch[0] += branch.sum(axis=0)
        self.count += now.shape[1]


def settle(
    program: Program,
    coded: Program,
    readers: tuple[Matrix, ...],
    calls: Sequence[Tensors],
    scheme: WeightScheme,
    bits: int,
) -> GroupCodes:
    """Code one weight of `program`; `coded` is the same with all weights before it coded.

    `readers` are the products that read it. Their biases are corrected only where one product
    alone reads the weight.
    """
    rows = readers[0].layout.rows(readers[0].array).astype(np.float64)
    sums = _sums(program, coded, readers, calls, rows.shape)
    bias = _bias(readers)
    count = max(1, sums.count)
    data, lost = sums.data / count, rows @ (sums.lost / count) + sums.branch / count
    mean = sums.mean / count
    mean_lost = np.einsum("god,gd->go", rows, sums.mean_lost / count) + sums.mean_branch / count
    if bias is not None:  # it takes up the means: only what varies is left to the weight
        data = data - mean[:, :, None] * mean[:, None, :]
        lost = lost - mean_lost[:, :, None] * mean[:, None, :]
    held = gptq.damped(data, DAMPING)
    best = rows + np.swapaxes(np.linalg.solve(held, np.swapaxes(lost, 1, 2)), 1, 2)
    codes = _coded(best, held, scheme, bits)
    if bias is None:
        return codes
    real = codes.real.reshape(rows.shape).astype(np.float64)
    left = mean_lost + np.einsum("god,gd->go", rows - real, mean)
    return replace(codes, bias=bias + left.reshape(bias.shape))


def _sums(
    program: Program,
    coded: Program,
    readers: tuple[Matrix, ...],
    calls: Sequence[Tensors],
    shape: tuple[int, int, int],
) -> Sums:
    sums, partners = Sums.of(*shape), [partner(r) for r in readers]
    names = [r.data.name or "" for r in readers]
    wanted = [*names, *(p for p in partners if p is not None)]
    taps = Taps(program, wanted), Taps(coded, wanted)
    for number, call in enumerate(calls):
        real, now = (tap(call, number) for tap in taps)
        for reader, name, beside in zip(readers, names, partners, strict=True):
            branch = None
            if beside is not None:
                gap = real[beside].astype(np.float64) - now[beside]
                branch = gap.reshape(-1, shape[1])
            patches = zip(*(reader.layout.patches(v[name]) for v in (now, real)), strict=True)
            for own, other in patches:
                sums.see(own, other, branch)
    return sums


def _coded(rows: Array, moments: Array, scheme: WeightScheme, bits: int) -> GroupCodes:
    """Code [group, outputs, depth] so that the least of the product is lost."""
    depth = rows.shape[2]
    size = scheme.size(depth)
    importance = np.repeat(np.diagonal(moments, axis1=1, axis2=2), rows.shape[1], axis=0)
    flat = rows.reshape(-1, depth)
    scales, zeros = fitted(flat, scheme, bits, importance)
    grid = _grid(scales, zeros, size, rows.shape, limits(bits, scheme.symmetric))
    codes = gptq.gptq(rows, moments, grid, damping=0.0)
    for _ in range(ROUNDS):
        scales = _refit(rows, moments, codes, scales, zeros, size)
        grid = _grid(scales, zeros, size, rows.shape, limits(bits, scheme.symmetric))
        codes = gptq.descended(rows, moments, grid, codes)
    whole = codes.reshape(-1, depth).astype(np.int16)
    return GroupCodes(whole, scales, zeros, size, bits, scheme.symmetric)


def _grid(
    scales: Array, zeros: Array, size: int, shape: tuple[int, ...], ends: tuple[int, int]
) -> gptq.Grid:
    wide, offset = (
        spread(a, size, shape[2]).reshape(shape).astype(np.float64) for a in (scales, zeros)
    )
    return gptq.Grid(wide, offset, *ends)


def _refit(
    rows: Array, moments: Array, codes: Array, scales: Array, zeros: Array, size: int
) -> Array:
    """Return for each group in turn the scale with the least error, all else as it is.

    With c the group's codes less their zero point and E the error of all others, the error is a
    parabola in the scale with its least at c·H·(w - others) / c·H·c. A scale stays positive.
    """
    shape, depth = rows.shape, rows.shape[2]
    scales = scales.astype(np.float64).reshape(*shape[:2], -1)
    plain = codes - spread(zeros, size, depth).reshape(shape)
    gap = rows - plain * spread(scales, size, depth)
    for number in range(scales.shape[2]):
        part = slice(number * size, min((number + 1) * size, depth))
        own = plain[:, :, part]
        inner = moments[:, part, part]
        slope = (gap @ moments[:, :, part] * own).sum(axis=2)
        curve = (own @ inner * own).sum(axis=2)
        step = np.divide(slope, curve, out=np.zeros_like(slope), where=curve > 0)
        step = np.where(scales[:, :, number] + step > 0, step, 0.0)
        scales[:, :, number] += step
        gap[:, :, part] -= own * step[:, :, None]
    return scales.reshape(-1, scales.shape[2]).astype(np.float32)


def _bias(readers: tuple[Matrix, ...]) -> Array | None:
    """Return the bias of the one product that reads a weight, where it can be corrected."""
    if len(readers) != 1 or readers[0].index != 1:
        return None
    node = readers[0].node
    value = node.inputs[2] if len(node.inputs) > 2 else None
    array = constant(value)
    if value is None or array is None or len(value.uses()) != 1:
        return None
    plain = all(node.attributes.get_float(key, 1.0) == 1.0 for key in ("alpha", "beta"))
    return array if plain and array.size == len(readers[0].rows) else None


def partner(reader: Matrix) -> str | None:
    """Return the tensor that a product's result is added to, where that was there before it.

    Between the two there may be constants that are added, and changes of shape. Only for products
    of matrices whose rows of results are rows of the sum.
    """
    if reader.layout.convolution or reader.layout.data_flipped or reader.index != 1:
        return None
    node, value = reader.node, reader.node.outputs[0]
    if any(node.attributes.get_float(key, 1.0) != 1.0 for key in ("alpha", "beta")):
        return None
    outputs = len(reader.rows)
    while len(value.uses()) == 1 and not value.is_graph_output():
        ((user, index),) = value.uses()
        if user.op_type == "Add" and constant(user.inputs[1 - index]) is None:
            other = user.inputs[1 - index]
            if other is None or other.shape != value.shape or not _wide(other, outputs):
                return None
            return other.name if _before(other, node) else None
        if user.op_type not in (*KEEP, "Add") or not _wide(user.outputs[0], outputs):
            return None
        value = user.outputs[0]
    return None


def _wide(value: ir.Value | None, outputs: int) -> bool:
    return value is not None and value.shape is not None and value.shape[-1] == outputs


def _before(value: ir.Value, node: ir.Node) -> bool:
    """Whether a value does not depend on a node: it is made before it in a sorted graph."""
    producer = value.producer()
    if producer is None:
        return True
    assert node.graph is not None  # it was found in one
    return next(n for n in node.graph if n is node or n is producer) is producer


def edited(program: Program, arrays: Mapping[str, Array]) -> Program:
    """Return a copy whose constants of these names have other values."""
    copy = program.clone()
    for name, array in arrays.items():
        value = copy.model.graph.initializers[name]
        value.const_value = ir.tensor(np.ascontiguousarray(array, np.float32), name=name)
    return copy
