"""Hold a program against a device's profile: what the device runs, what goes to the host, and why.

Nothing is compiled. What decides are facts ``ops.*``, ``shapes.*``, ``onnx.*``, ``memory.*`` and
the profile's limits; an operator list that is not public refuses nothing.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import prod
from typing import Any, Literal

import onnx_ir as ir

from npuc import source_lines
from npuc.features import measure
from npuc.nodes import ABSENT, UNKNOWN, is_constant, shape
from npuc.passes.graphs import label
from npuc.profile import Fact, Limit, Profile
from npuc.program import Port, Program

Verdict = Literal["host", "blocked", "unknown", "note"]
"""The node runs on the host instead; the model cannot be compiled as it is; nothing public says;
it runs, but slower than it could."""

NOT_PUBLIC = "no operator list is public"

NEUTRAL = frozenset({"Constant", "DequantizeLinear", "Identity", "QuantizeLinear"})
"""Operators that are no work of their own: they belong to what they feed or follow."""

CODED = frozenset({"float32"})
"""The dtypes that npuc itself turns into what the device computes in, by coding or rounding."""


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that stands between a program and a device, or that nobody says.

    `node` is "" for the model as a whole. `value` breaks `bound` ("at most 15"), which is stated
    by `source` with `grade`; both are "" where nothing is public. `line` and `module` say where
    in the user's model the node comes from.
    """

    node: str
    op: str
    measure: str
    value: Any
    bound: str
    verdict: Verdict
    grade: str = ""
    source: str = ""
    line: str = ""
    module: str = ""

    @property
    def reason(self) -> str:
        """Say what is wrong in a few words: ``kernel 31: at most 15``."""
        if self.measure == "operator":
            return self.bound
        return f"{self.measure} {spelled(self.value)}: {self.bound}"


def judge(program: Program, profile: Profile) -> tuple[Finding, ...]:
    """Return all that a profile says against a program: of the model first, then by node.

    Shapes must be inferred; what they leave open and a limit asks for is "unknown".
    """
    fixed = not program.symbols
    nodes = [found for node in work(program.model) for found in _node(node, profile, fixed)]
    return (*_whole(program, profile), *nodes)


def leads_with_batch(port: Port) -> bool:
    """Whether an input's first dimension counts samples: that of an image, or one named so.

    A dimension of a sequence comes first in some models, so no other is taken for it.
    """
    if not port.shape:
        return False
    first = port.shape[0]
    return len(port.shape) == 4 or (isinstance(first, str) and "batch" in first.lower())


def place(program: Program, profile: Profile) -> Mapping[str, str]:
    """Return the nodes of the main graph that run on the host, by name, each with the reason.

    A node is there where its kind is not in a public ``ops.supported``, or is in ``ops.on_host``,
    where it breaks a limit, or where that holds of a node in its body.
    """
    counted, fixed = set(work(program.model)), not program.symbols
    reasons: dict[str, str] = {}
    for outer in program.model.graph:
        for node in (outer, *_inside(outer)):
            hosted = _node(node, profile, fixed) if node in counted else ()
            if found := next((f for f in hosted if f.verdict == "host"), None):
                inner = "" if node is outer else f"{node.op_type} in its body: "
                reasons[label(outer)] = inner + found.reason
                break
    return reasons


def _inside(node: ir.Node) -> Iterator[ir.Node]:
    """Yield the nodes in the bodies of a control-flow operator."""
    for attribute in node.attributes.values():
        if attribute.type == ir.AttributeType.GRAPH:
            yield from attribute.as_graph().all_nodes()
        elif attribute.type == ir.AttributeType.GRAPHS:
            for graph in attribute.as_graphs():
                yield from graph.all_nodes()


def work(model: ir.Model) -> list[ir.Node]:
    """Return the nodes that compute on data, bodies of control flow included.

    Constants, codings and what depends on shapes alone (Shape → Gather → Concat, or a table made
    by Range) are no work: they are numbers once shapes are.
    """
    known: set[ir.Value] = set()
    found = []
    for node in model.graph.all_nodes():
        read = [value for value in node.inputs if value is not None]
        bodies = any(a.type in _GRAPHS for a in node.attributes.values())
        settled = all(is_constant(value) or value in known for value in read)
        if node.op_type in ("Shape", "Size") or (settled and not bodies and _repeats(node)):
            known.update(node.outputs)
        elif node.op_type not in NEUTRAL and node.domain != "ai.npuc":
            found.append(node)
    return found


_GRAPHS = (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS)


def _repeats(node: ir.Node) -> bool:
    """Whether a node answers the same every time; what draws at random is work."""
    return not node.op_type.startswith(("Random", "Bernoulli", "Multinomial"))


def _node(node: ir.Node, profile: Profile, fixed: bool) -> Iterator[Finding]:
    """Yield what a profile says of a node; `fixed` says that the inputs' sizes are numbers."""
    supported, kind = profile.supported, node.op_type
    here = (label(node), f"{node.domain}::{kind}" if node.domain else kind)
    place = (source_lines.line(node), source_lines.module(node))
    fact = profile.facts.get("ops.supported")
    if fact is not None and supported is not None and (node.domain or kind not in supported):
        bound = "not among the operators the device runs"
        yield Finding(*here, "operator", kind, bound, "host", fact.grade, fact.source, *place)
        return
    host = profile.facts.get("ops.on_host")
    if host is not None and not node.domain and kind in host.value:
        bound = "run on the host, by the vendor's own table"
        yield Finding(*here, "operator", kind, bound, "host", host.grade, host.source, *place)
    for name, value, bound, verdict, said in _broken(node, profile, fixed):
        yield Finding(*here, name, value, bound, verdict, said.grade, said.source, *place)


Broken = tuple[str, Any, str, Verdict, Fact | Limit]


def _broken(node: ir.Node, profile: Profile, fixed: bool) -> Iterator[Broken]:
    for limit in profile.limits:
        if node.domain == "" and node.op_type in limit.ops:
            yield from _against(node, limit)
    if rank := profile.facts.get("ops.rank_max"):
        value = measure(node, "rank")
        if value is UNKNOWN or (isinstance(value, int) and value > rank.value):
            yield "rank", value, f"at most {rank.value}", _or_unknown(value), rank
    if dtypes := profile.facts.get("ops.dtypes"):
        value = measure(node, "dtype")
        if value not in (ABSENT, UNKNOWN, *dtypes.value, *CODED):
            yield "dtype", value, f"one of {', '.join(dtypes.value)}", "host", dtypes
    if align := profile.facts.get("align.last_dim"):
        value = measure(node, "last_dim")
        if isinstance(value, int) and value % align.value:
            yield "last_dim", value, f"a multiple of {align.value} runs faster", "note", align
    static = profile.facts.get("shapes.static")
    if fixed and static is not None and static.value and (size := _dynamic(node)):
        yield "shape", size, "must not depend on the data", "host", static


def _dynamic(node: ir.Node) -> str:
    """Spell a shape that a node reads or makes and that is found only in the data: ``4x?``."""
    for value in (*node.outputs, *node.inputs):
        sizes = shape(value)
        if sizes is not None and None in sizes:
            return "x".join("?" if d is None else str(d) for d in sizes)
    return ""


def _against(node: ir.Node, limit: Limit) -> Iterator[Broken]:
    holds = [_equals(measure(node, name), wanted) for name, wanted in limit.when.items()]
    if False in holds:
        return
    value = measure(node, limit.measure)
    kept = UNKNOWN if value is UNKNOWN else within(value, limit)
    if kept:
        return
    sure = kept is False and None not in holds
    yield limit.measure, value, bound(limit), "host" if sure else "unknown", limit


def _or_unknown(value: object) -> Verdict:
    return "unknown" if value is UNKNOWN else "host"


def _equals(value: Any, wanted: Any) -> bool | None:
    """Say whether a measure is what `when` asks for; None where it is unknown."""
    if value is UNKNOWN or (isinstance(value, tuple) and None in value):
        return None
    if isinstance(value, tuple):
        if isinstance(wanted, list):
            return list(value) == wanted
        return bool(value) and all(entry == wanted for entry in value)
    return value in wanted if isinstance(wanted, list) else bool(value == wanted)


def within(value: Any, limit: Limit) -> bool:
    """Say whether a known measure keeps a limit; every entry of a tuple must.

    `among` may list whole tuples, as lists: ``among = [[1], [2, 3]]``.
    """
    if limit.among is not None and any(isinstance(item, list) for item in limit.among):
        return value == ABSENT or (list(value) if isinstance(value, tuple) else [value]) in [
            list(item) if isinstance(item, list) else [item] for item in limit.among
        ]
    entries = value if isinstance(value, tuple) else (value,)
    return all(_one(entry, limit) for entry in entries)


def _one(value: Any, limit: Limit) -> bool:
    if limit.among is not None and value not in limit.among:
        return False
    if limit.least is not None and value < limit.least:
        return False
    if limit.most is not None and value > limit.most:
        return False
    return limit.multiple is None or value % limit.multiple == 0


def bound(limit: Limit) -> str:
    """Spell a limit: ``at least 2, at most 8 (where depthwise is true)``."""
    parts = []
    if limit.least is not None:
        parts.append(f"at least {spelled(limit.least)}")
    if limit.most is not None:
        parts.append(f"at most {spelled(limit.most)}")
    if limit.multiple is not None:
        parts.append(f"a multiple of {limit.multiple}")
    if limit.among is not None:
        only = len(limit.among) == 1
        parts.append(f"{'only' if only else 'one of'} {', '.join(map(spelled, limit.among))}")
    when = " and ".join(f"{name} is {spelled(value)}" for name, value in limit.when.items())
    return ", ".join(parts) + (f" (where {when})" if when else "")


def spelled(value: Any) -> str:
    """Spell a measure as a reader would: ``3x3``, ``true``, ``unknown``."""
    if value is UNKNOWN:
        return "unknown"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, list | tuple):
        return "x".join(map(spelled, value))
    return f"{value:g}" if isinstance(value, float) else str(value)


def _whole(program: Program, profile: Profile) -> Iterator[Finding]:
    if profile.supported is None:
        count = len(work(program.model))
        yield Finding("", "", "operators", count, NOT_PUBLIC, "unknown")
    for key, word in (("onnx.opset_max", "at most"), ("onnx.opset_min", "at least")):
        fact = profile.facts.get(key)
        if fact is not None and _outside(program.opset, int(fact.value), word):
            yield _of_model("opset", program.opset, f"{word} {fact.value}", fact)
    static = profile.facts.get("shapes.static")
    if static is not None and static.value:
        for name in program.symbols:
            yield _of_model("dimension", name, "must be a number", static)
    if batch := profile.facts.get("shapes.batch"):
        sizes = [port.shape[0] for port in program.inputs if leads_with_batch(port)]
        wrong = [size for size in sizes if isinstance(size, int) and size != batch.value]
        for size in wrong[:1]:
            yield _of_model("batch", size, f"only {batch.value}", batch)
    yield from _memory(program, profile)


def _outside(value: int, edge: int, word: str) -> bool:
    return value > edge if word == "at most" else value < edge


def _of_model(name: str, value: Any, bound: str, fact: Fact) -> Finding:
    return Finding("", "", name, value, bound, "blocked", fact.grade, fact.source)


def _memory(program: Program, profile: Profile) -> Iterator[Finding]:
    usable, whole = profile.facts.get("memory.usable_mib"), profile.facts.get("memory.gib")
    if fact := usable or whole:
        room = int(fact.value * (2**20 if usable else 2**30))
        need = weight_bytes(program, profile)
        if need > room:
            said = f"at most {room / 2**20:.0f} MiB for the weights alone"
            yield _of_model("memory", f"{need / 2**20:.0f} MiB", said, fact)


def weight_bytes(program: Program, profile: Profile) -> int:
    """Return the bytes of all weights as the device's default precision stores them.

    Float32 weights take one byte where that is int8, and what its widest float format takes
    where that is shorter than float32.
    """
    formats = profile.float_formats
    short = max((1 + f.exponent + f.mantissa + 7) // 8 for f in formats) if formats else 4
    size = 1 if profile.precisions[0] == "int8" else short
    total = 0
    for value in program.model.graph.initializers.values():
        tensor = value.const_value
        if tensor is not None:
            total += prod(tensor.shape.numpy()) * size if _float32(tensor) else tensor.nbytes
    return total


def _float32(tensor: ir.TensorProtocol) -> bool:
    return tensor.dtype == ir.DataType.FLOAT
