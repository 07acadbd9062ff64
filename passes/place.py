"""Mark what a device cannot run: it stays on the host."""

from dataclasses import dataclass
from typing import ClassVar

import onnx_ir as ir

from npuc.legality import place
from npuc.partition import PLACE, on_host, reads
from npuc.passes.base import Pass, Result
from npuc.passes.graphs import Names, label
from npuc.profile import Profile
from npuc.program import Program, Refusal

BETWEEN = "all around it runs on the host"


@dataclass(frozen=True)
class Place(Pass):
    """x → Conv → NonZero → y  ⇒  x → Conv → NonZero [host] → y

    Marks the nodes that the profile says the device does not take (`npuc.legality.place`), with
    the reason. Later passes leave them as they are: they compute in float32 on the host. A node
    that only has marked ones around it is marked too, since its tensors would cross twice.
    Nothing is marked where the vendor's operator list is not public.
    """

    name: ClassVar[str] = "place"

    def apply(self, model: ir.Model, profile: Profile) -> Result:
        """Mark nodes in place; `changes` counts them, the refusals say why each."""
        _name(model)
        reasons = place(Program.from_model(model), profile)
        for node in model.graph:
            if reason := reasons.get(label(node)):
                node.metadata_props[PLACE] = reason
        while _grow(model):
            pass
        marked = [node for node in model.graph if on_host(node)]
        return Result(len(marked), tuple(Refusal(label(n), on_host(n)) for n in marked))


def _name(model: ir.Model) -> None:
    """Give every node a name of its own: a reason goes by the name."""
    names, seen = Names(model), set[str]()
    for node in model.graph:
        if not node.name or node.name in seen:
            node.name = names.new(node.name or node.op_type.lower())
        seen.add(node.name)


def _grow(model: ir.Model) -> bool:
    """Mark nodes that read only what the host makes and that only the host reads."""
    grown = False
    for node in model.graph:
        if on_host(node):
            continue
        makers = [p for v in reads(node) if (p := v.producer()) is not None]
        readers = [user for v in node.outputs for user, _ in v.uses()]
        asked = any(v.is_graph_output() for v in node.outputs)
        if makers and readers and not asked and all(map(on_host, [*makers, *readers])):
            node.metadata_props[PLACE] = BETWEEN
            grown = True
    return grown
