"""Cut a model into the parts that run on the device and those that run on the host."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING

from npuc.errors import UnsupportedError, UsageError

if TYPE_CHECKING:  # reports hold crossings, and are read where no model is
    import onnx_ir as ir

PLACE = "npuc.place"
"""Metadata key of a node that stays on the host; its value is the reason."""

DEVICE, HOST = "device", "host"


@dataclass(frozen=True, slots=True)
class Part:
    """Nodes that run in one place, as a model of their own."""

    place: str
    model: ir.Model


@dataclass(frozen=True, slots=True)
class Crossing:
    """A tensor that leaves the device for the host or comes back. `bytes` is per call."""

    tensor: str
    dtype: str
    shape: tuple[int, ...]
    bytes: int
    to: str


def on_host(node: ir.Node) -> str:
    """Return why a node stays on the host, or "" where it runs on the device."""
    return str(node.metadata_props.get(PLACE, ""))


def host_nodes(model: ir.Model) -> tuple[ir.Node, ...]:
    """Return the nodes of the main graph that stay on the host, in order."""
    return tuple(node for node in model.graph if on_host(node))


def placement(model: ir.Model, device: str) -> dict[str, str]:
    """Say for each operator kind where it runs; both places where its nodes are split."""
    places: dict[str, set[str]] = {}
    for node in model.graph:
        places.setdefault(kind(node), set()).add(HOST if on_host(node) else device)
    return {name: "+".join(sorted(where)) for name, where in sorted(places.items())}


def kind(node: ir.Node) -> str:
    """Name a node's operator, with its domain where that is not ONNX's own."""
    return f"{node.domain}::{node.op_type}" if node.domain else node.op_type


def crossings(model: ir.Model) -> tuple[Crossing, ...]:
    """List the tensors that cross between device and host, each direction once.

    The graph's own inputs and outputs are on the host; they are no crossing.
    """
    found: dict[tuple[ir.Value, str], None] = {}
    for node in model.graph:
        here = HOST if on_host(node) else DEVICE
        for value in dict.fromkeys(reads(node)):
            producer = value.producer()
            if producer is None or producer.op_type == "Constant":
                continue
            there = HOST if on_host(producer) else DEVICE
            if there != here:
                found[value, here] = None
    return tuple(_crossing(value, to) for value, to in found)


def _crossing(value: ir.Value, to: str) -> Crossing:
    dims = [d if isinstance(d, int) else 0 for d in (value.shape or ())]
    size = prod(dims) * (value.dtype.itemsize if value.dtype is not None else 0)
    name = value.dtype.numpy().name if value.dtype is not None else "unknown"
    return Crossing(value.name or "", name, tuple(dims), int(size), to)


def require(
    model: ir.Model, target: str, *, fallback: bool, contract: Mapping[str, int | None]
) -> None:
    """Refuse a placement that the user does not want; raises `UnsupportedError` with all of it.

    Without `fallback` nothing may stay on the host. `contract` maps an operator kind to how many
    of its nodes must run on the device, None for all.
    """
    hosted = host_nodes(model)
    if hosted and not fallback:
        raise UnsupportedError(
            f"{target} cannot run {len(hosted)} of {len(model.graph)} operators:\n  "
            + "\n  ".join(_reasons(hosted)),
            hint=f"npuc check MODEL --target {target} shows what to change; "
            "without --no-fallback they run on the host",
        )
    faults = []
    for name, wanted in contract.items():
        nodes = [node for node in model.graph if kind(node) == name]
        away = [node for node in nodes if on_host(node)]
        if not nodes:
            faults.append(f"{name}: the model has none, after {target}'s passes")
        elif wanted is None and away:
            faults.append(f"{name}: {len(away)} of {len(nodes)} are on the host")
            faults += [f"  {line}" for line in _reasons(away)]
        elif wanted is not None and len(nodes) - len(away) < wanted:
            faults.append(f"{name}: {len(nodes) - len(away)} on the device, {wanted} wanted")
    if faults:
        raise UnsupportedError(
            f"--on-target does not hold for {target}:\n  " + "\n  ".join(faults),
            hint=f"npuc check MODEL --target {target}",
        )


def _reasons(nodes: Iterable[ir.Node]) -> list[str]:
    grouped: dict[tuple[str, str], list[str]] = {}
    for node in nodes:
        grouped.setdefault((kind(node), on_host(node)), []).append(node.name or "?")
    return [
        f"{op}: {reason} ({len(names)}: {', '.join(names[:3])}{', …' if len(names) > 3 else ''})"
        for (op, reason), names in grouped.items()
    ]


def contract(texts: Iterable[str]) -> dict[str, int | None]:
    """Read ``Conv,MatMul=all`` or ``Conv=12``; raises `UsageError` with every bad one."""
    found: dict[str, int | None] = {}
    faults = []
    for text in texts:
        names, _, count = text.partition("=")
        kinds = [name.strip() for name in names.split(",")]
        if not all(kinds) or not (count == "all" or count.isdecimal()):
            faults.append(f"--on-target {text!r} is not of the form Conv,MatMul=all or Conv=12")
        else:
            found.update(dict.fromkeys(kinds, None if count == "all" else int(count)))
    if faults:
        raise UsageError("\n".join(faults), hint="--on-target Conv,MatMul=all")
    return found


def cut(
    model: ir.Model, apart: Iterable[ir.Node], here: str = DEVICE, there: str = HOST
) -> list[Part]:
    """Cut a model into alternating parts, as few as its dependencies allow.

    Nodes `apart` go `there`, the others stay `here`. A part's inputs and outputs are what crosses
    its edges.
    """
    groups = _groups(model, set(apart), here, there)
    return [Part(where, extract(model, nodes, groups)) for where, nodes in groups]


def _groups(
    model: ir.Model, apart: set[ir.Node], here: str, there: str
) -> list[tuple[str, list[ir.Node]]]:
    groups: list[tuple[str, list[ir.Node]]] = []
    waiting = list(model.graph)
    done = {*model.graph.inputs, *model.graph.initializers.values()}
    place = there if waiting and waiting[0] in apart else here
    while waiting:
        taken, left = [], []
        for node in waiting:
            fits = (node in apart) == (place == there)
            if fits and all(v in done for v in reads(node)):
                taken.append(node)
                done.update(node.outputs)
            else:
                left.append(node)
        if taken:
            groups.append((place, taken))
        waiting, place = left, (here if place == there else there)
    return groups


def reads(node: ir.Node) -> Iterator[ir.Value]:
    """Yield every value of the main graph that a node reads, also inside its bodies."""
    import onnx_ir as ir

    yield from (v for v in node.inputs if v is not None)
    for attribute in node.attributes.values():
        if attribute.type == ir.AttributeType.GRAPH:
            body = attribute.as_graph()
            own = {*body.inputs, *body.initializers.values()}
            own |= {v for inner in body.all_nodes() for v in inner.outputs}
            for inner in body.all_nodes():
                yield from (v for v in inner.inputs if v is not None and v not in own)
            yield from (v for v in body.outputs if v not in own)


def extract(
    model: ir.Model, nodes: list[ir.Node], groups: list[tuple[str, list[ir.Node]]]
) -> ir.Model:
    """Return a model of some nodes."""
    import onnx_ir as ir

    inside = set(nodes)
    made = {v for node in nodes for v in node.outputs}
    read = {v: None for node in nodes for v in reads(node)}
    weights = set(model.graph.initializers.values())
    inputs = [v for v in read if v not in made and v not in weights]
    elsewhere = {v for _, group in groups for n in group if n not in inside for v in reads(n)}
    asked = set(model.graph.outputs)
    outputs = [v for n in nodes for v in n.outputs if v in elsewhere or v in asked]
    names = {v.name for v in (*inputs, *outputs, *made, *(w for w in read if w in weights))}
    proto = ir.to_proto(model)
    graph = proto.graph
    kept = {node.outputs[0].name for node in nodes}
    keep = [n for n in graph.node if n.output[0] in kept]
    infos = {i.name: i for i in (*graph.input, *graph.output, *graph.value_info)}
    tensors = [t for t in graph.initializer if t.name in names]
    del graph.node[:], graph.input[:], graph.output[:], graph.initializer[:]
    graph.node.extend(keep)
    graph.initializer.extend(tensors)
    graph.input.extend(infos[v.name] for v in inputs if v.name is not None)
    graph.output.extend(infos[v.name] for v in outputs if v.name is not None)
    return ir.from_proto(proto)
