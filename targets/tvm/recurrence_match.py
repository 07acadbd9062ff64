"""Compare the steps of a recurrence, and say what each argument is in all of them."""

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

from npuc.targets.tvm.graph import Array, dtype_of, is_tensor, is_var, key, number, operator
from npuc.targets.tvm.graph import shape_of as shape
from npuc.targets.tvm.recurrence_form import Loop, Node, Ref, Slice, Sources
from npuc.targets.tvm.views import View, resolve


def known(node: Node, before: dict[int, int]) -> Node:
    """Decide which of a node's outer arguments are nodes of the step before."""
    args = tuple(
        Ref("prev", before[key(ref.expr)], ref.expr)
        if ref.kind == "outer" and is_var(ref.expr) and key(ref.expr) in before
        else ref
        for ref in node.args
    )
    return Node(node.var, node.expr, args, node.part)


def fill(
    loop: Loop, walked: Sequence[Sequence[Node | None]], numbers: list[dict[int, int]],
    sources: Sources,
) -> bool:  # fmt: skip
    """Check that all steps are equal, and say what each outer argument is in every step.

    All that the last step may lack are codes that no product reads any more.
    """
    if {len(nodes) for nodes in walked} != {len(loop.nodes)}:
        return False
    lacking = [node for at, node in enumerate(loop.nodes) if at not in loop.variables[-1]]
    if any(operator(n.expr) not in ("relax.quantize", "relax.dequantize") for n in lacking):
        return False
    for at, node in enumerate(loop.nodes):
        column = [nodes[at] for nodes in walked]
        if not all(n is None or _alike(n, node) for n in column):
            return False
        refs: list[Ref] = []
        for place, ref in enumerate(node.args):
            given = [None if n is None else n.args[place] for n in column]
            decided = _decide(loop, ref, given, numbers, sources)
            if decided is None:
                return False
            refs.append(decided)
        loop.nodes[at] = Node(node.var, node.expr, tuple(refs), node.part)
    return True


def _alike(a: Node, b: Node) -> bool:
    import tvm_ffi

    if operator(a.expr) != operator(b.expr) or a.part != b.part:
        return False
    if len(a.args) != len(b.args) or shape(a.var) != shape(b.var):
        return False
    same = a.expr.attrs is None or tvm_ffi.structural_equal(a.expr.attrs, b.expr.attrs)
    if operator(a.expr) == "relax.clip":
        pairs = zip(a.expr.args[1:], b.expr.args[1:], strict=True)
        same = same and all(float(x.value) == float(y.value) for x, y in pairs)
    return bool(same) and dtype_of(a.var) == dtype_of(b.var)


def _decide(
    loop: Loop, ref: Ref, given: Sequence[Ref | None], numbers: list[dict[int, int]],
    sources: Sources,
) -> Ref | None:  # fmt: skip
    """Return what an argument is in every step; None where that differs. The last step's
    arguments are undecided, but `Finder._last` has compared those of the step."""
    body = [r for r in given[:-1] if r is not None]
    if ref.kind in ("node", "anchor"):
        return ref if all((r.kind, r.at) == (ref.kind, ref.at) for r in body) else None
    if any(r.kind != "outer" for r in body):
        return None
    exprs = [None if r is None else r.expr for r in given]
    if ref.kind == "prev":
        for step, r in enumerate(body[1:]):
            if not is_var(r.expr) or numbers[step].get(key(r.expr)) != ref.at:
                return None
        first = loop.initial.setdefault(ref.at, exprs[0])
        same = is_var(first) and is_tensor(first) and key(first) == key(exprs[0])
        fits = same and shape(first) == (1, *loop.shape) and dtype_of(first) == "float32"
        return ref if fits else None
    if number(ref.expr) is not None:
        return _constant(loop, ref, exprs)
    return _input(loop, ref, exprs, sources)


def _constant(loop: Loop, ref: Ref, exprs: list[Any]) -> Ref | None:
    given = [e for e in exprs if e is not None]
    arrays = [number(e) for e in given]
    held: list[Array] = [a for a in arrays if a is not None]
    if len(held) < len(arrays):
        return None
    if len({key(e) for e in given}) > 1:
        if any(a.size != 1 or a.dtype != held[0].dtype for a in held):
            return None
        if len(given) < len(exprs):  # the last step computes what nobody reads
            given = [*given, given[-1]]
    elif held[0].size > 1 and held[0].size != held[0].shape[-1]:
        return None
    else:
        given = given[:1]
    loop.constants.append(given)
    return Ref("constant", len(loop.constants) - 1, ref.expr)


def _input(loop: Loop, ref: Ref, exprs: list[Any], sources: Sources) -> Ref | None:
    """Return the slice that an argument is of one tensor, at equal distances."""
    if any(e is None or not is_var(e) or not is_tensor(e) for e in exprs):
        return None
    found = [resolve(e, sources, _in_rows) for e in exprs]
    reads = [f for f in found if f is not None and not f.chain]
    if len(reads) < len(found) or len({(key(r.base), r.view.axes) for r in reads}) > 1:
        return None
    offsets = [r.view.offset for r in reads]
    apart = {b - a for a, b in pairwise(offsets)}
    if len(apart) != 1 or dtype_of(reads[0].base) != "float32":
        return None
    row = reads[0].view.stride(1)
    assert row is not None  # _in_rows asked
    loop.inputs.append(Slice(reads[0].base, offsets[0], apart.pop(), row))
    return Ref("input", len(loop.inputs) - 1, ref.expr)


def _in_rows(view: View) -> bool:
    """Whether a tensor [1, rows, columns] can be read row by row, in vectors."""
    if len(view.axes) != 3 or view.shape[0] != 1:
        return False
    return view.stride(1) is not None and view.stride(2) == 1
