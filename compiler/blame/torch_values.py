"""Give the tensors of a torch model by the names that its ONNX export gives them."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from npuc.blame.structure import Parent, Parents
from npuc.capture import Captured
from npuc.program import Tensors
from npuc.quiet import quiet

if TYPE_CHECKING:
    import torch
    from torch.export import ExportedProgram


class Values:
    """The captured model after the exporter's own decompositions: its nodes name ONNX's tensors.

    It runs in torch, without any of what the export wrote.
    """

    def __init__(self, captured: Captured) -> None:
        self.captured = captured
        self.program = _decomposed(captured)
        nodes = [n for n in self.program.graph.nodes if n.op == "call_function"]
        self.names = {n.name for n in nodes} | set(captured.signature.input_names)
        results = self.program.graph_signature.user_outputs
        named = (n for n in captured.signature.outputs)
        self._outputs = {
            given: made
            for made, given in zip(results, named, strict=True)
            if given and isinstance(made, str)
        }
        self.names |= set(self._outputs)
        held = {n.name for n in self.program.graph.nodes if n.op == "placeholder"}
        inputs = set(captured.signature.input_names)
        self.parents: Parents = {
            n.name: Parent(
                n.name, str(n.target),
                tuple(i.name for i in n.all_input_nodes if i.name not in held or i.name in inputs),
            )
            for n in nodes
        }  # fmt: skip

    def __call__(self, call: Tensors, names: Sequence[str]) -> Tensors:
        """Run one call and return the tensors named."""
        inner = {self._outputs.get(name, name) for name in names}
        kept = run(self.program, self.captured, call, inner)
        found = {**call, **{n: kept[i] for n in names if (i := self._outputs.get(n, n)) in kept}}
        return {n: np.asarray(found[n]) for n in names if n in found}


def run(
    program: "ExportedProgram", captured: Captured, call: Tensors, names: set[str] | None
) -> dict[str, np.ndarray[Any, Any]]:
    """Interpret a torch program; returns the tensors of the nodes named, of all where None."""
    import torch

    from npuc.signature import to_array

    kept: dict[str, Any] = {}

    class Keeping(torch.fx.Interpreter):
        def run_node(self, n: "torch.fx.Node") -> Any:
            found = super().run_node(n)
            if isinstance(found, torch.Tensor) and (names is None or n.name in names):
                kept[n.name] = to_array(found)
            return found

    with torch.no_grad(), quiet():
        flat = _flat(program, captured, call)
        Keeping(program.graph_module).run(*flat, enable_io_processing=False)
    return kept


def _flat(program: "ExportedProgram", captured: Captured, call: Tensors) -> list[Any]:
    """Return weights and inputs in the order of the graph's placeholders."""
    from torch.export.graph_signature import InputKind
    from torch.utils import _pytree as pytree

    args, kwargs = captured.signature.call(call)
    given = iter(pytree.tree_leaves((args, kwargs)))
    flat: list[Any] = []
    for spec in program.graph_signature.input_specs:
        if spec.kind is InputKind.USER_INPUT:
            flat.append(next(given))
        elif spec.target is None:
            raise KeyError(f"an input of kind {spec.kind} that names nothing")
        elif spec.target in program.state_dict:
            flat.append(program.state_dict[spec.target])
        else:
            flat.append(program.constants[spec.target])
    return flat


def _decomposed(captured: Captured) -> "ExportedProgram":
    """Return the program as the exporter sees it: it decomposes before it writes a node."""
    import torch

    from npuc.rnn_shapes import rnn_shapes

    with torch.no_grad(), quiet(), rnn_shapes():
        made = torch.onnx.export(captured.program, dynamo=True, optimize=False, verbose=False)
    program = None if made is None else made.exported_program
    return captured.program if program is None else program
