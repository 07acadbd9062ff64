"""Einsum as Transpose, Reshape and MatMul."""

from collections.abc import Sequence
from math import prod

import onnx_ir as ir

from npuc.passes.forms.expand import Forms
from npuc.passes.writer import Unfit, Writer, floats, needed, shape_of


def matrix_product(node: ir.Node, w: Writer) -> ir.Value:
    """Einsum(a, b) = Transpose, Reshape → MatMul[batch, m, k][batch, k, n] → Reshape, Transpose

    Letters in both operands and the result are batch, in both and not in the result are summed
    (k), in one and not in the result are summed first, the rest are m and n. One operand is a
    sum and a Transpose.
    """
    letters, result = _equation(node)
    operands = [_named(node, index, names, w) for index, names in enumerate(letters)]
    if len(operands) == 1:
        value, names = _summed(*operands[0], result, w)
        return w.transpose(value, [names.index(c) for c in result])
    if len(operands) != 2:
        raise Unfit(f"it has {len(operands)} operands, not one or two")
    (a, left), (b, right) = operands
    sizes = dict(zip(left + right, (*shape_of(a), *shape_of(b)), strict=True))
    for name, size in zip(left, shape_of(a), strict=True):
        if sizes[name] != size:
            raise Unfit(f"{name!r} is {size} in one operand and {sizes[name]} in the other")
    a, left = _summed(a, left, result + right, w)
    b, right = _summed(b, right, result + left, w)
    batch = [c for c in result if c in left and c in right]
    inner = [c for c in left if c in right and c not in result]
    rows = [c for c in result if c in left and c not in right]
    columns = [c for c in result if c in right and c not in left]
    a = _grouped(a, left, (batch, rows, inner), sizes, w)
    b = _grouped(b, right, (batch, inner, columns), sizes, w)
    made = [*batch, *rows, *columns]
    product = w.reshape(w.op("MatMul", a, b), [sizes[c] for c in made])
    return w.transpose(product, [made.index(c) for c in result])


def _equation(node: ir.Node) -> tuple[list[str], str]:
    text = node.attributes.get_string("equation", "").replace(" ", "")
    if "." in text:
        raise Unfit(f"{text!r} has an ellipsis: write its axes out")
    left, arrow, result = text.partition("->")
    letters = left.split(",")
    if not arrow:  # then the result has the letters that occur once, in alphabetical order
        every = "".join(letters)
        result = "".join(sorted(c for c in set(every) if every.count(c) == 1))
    for names in letters:
        if len(set(names)) != len(names):
            raise Unfit(f"{text!r} takes a diagonal")
    return letters, result


def _named(node: ir.Node, index: int, names: str, w: Writer) -> tuple[ir.Value, str]:
    value = floats(node, index) if index == 0 else needed(node, index)
    if len(shape_of(value)) != len(names):
        raise Unfit(f"operand {index} has rank {len(shape_of(value))}, not {len(names)}")
    return value, names


def _summed(value: ir.Value, names: str, kept: str, w: Writer) -> tuple[ir.Value, str]:
    """Sum over the letters that nobody else reads."""
    axes = [i for i, c in enumerate(names) if c not in kept]
    if not axes:
        return value, names
    dims = [d for i, d in enumerate(shape_of(value)) if i not in axes]
    total = w.reduce("ReduceSum", value, axes, keep=False)
    total.shape, total.type = ir.Shape(dims), value.type
    return total, "".join(c for c in names if c in kept)


def _grouped(
    value: ir.Value, names: str, groups: Sequence[Sequence[str]], sizes: dict[str, int], w: Writer
) -> ir.Value:
    """Order the axes by group, and make one axis of each group."""
    order = [names.index(c) for group in groups for c in group]
    return w.reshape(w.transpose(value, order), [prod(sizes[c] for c in g) for g in groups])


FORMS: Forms = {"Einsum": (matrix_product,)}
