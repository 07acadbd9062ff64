"""Move layers to the host, where a device that computes in integers alone has no other float."""

from collections.abc import Collection

import onnx_ir as ir

from npuc.partition import PLACE, on_host
from npuc.passes.qdq.results import carries, tail
from npuc.profile import IntScheme, Profile
from npuc.program import Program

REASON = "kept in float32, which the device has not"


def without_floats(profile: Profile) -> bool:
    """Whether a device computes int8 programs in integers alone, and nothing in floats."""
    scheme = profile.int_scheme
    return scheme is not None and scheme.whole and not profile.float_formats


def hosted(program: Program, names: Collection[str], scheme: IntScheme) -> Program:
    """Return a float program whose named nodes stay on the host.

    With a node goes what belongs to its result (its bias, its fused clamps), and what only moves
    what the host made: its codes are made where the device computes next.
    """
    copy = program.clone()
    moved = set(names)
    for node in copy.model.graph:
        if node.name in moved:
            for item in (node, *tail(node, scheme)):
                _mark(item)
        elif carries(node) and (made := node.inputs[0]) is not None:
            producer = made.producer()
            if producer is not None and producer.metadata_props.get(PLACE) == REASON:
                _mark(node)
    return copy


def _mark(node: ir.Node) -> None:
    if not on_host(node):
        node.metadata_props[PLACE] = REASON
