"""Capture a torch module as an exported program, and explain where that is impossible."""

import copy
import inspect
import linecache
import re
import traceback
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from npuc.errors import ExportError
from npuc.grown import grown
from npuc.hazards import refuse
from npuc.quiet import quiet
from npuc.signature import Signature

if TYPE_CHECKING:
    import torch
    from torch.export import ExportedProgram

DynamicShapes = Mapping[str, Mapping[int, str]]
"""Input name → axis → name of the dimension."""


@dataclass(frozen=True)
class Captured:
    """An exported program with its signature.

    `axes` names the dynamic axes: input name → axis → the user's name for it. `native` is what
    answers as the original does: the module itself, in eval mode.
    """

    program: "ExportedProgram"
    signature: Signature
    native: "torch.nn.Module"
    axes: DynamicShapes

    @property
    def in_args(self) -> int:
        """How many positional arguments a call has."""
        return int(self.signature.in_spec.child(0).num_children)


def capture(
    module: "torch.nn.Module",
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    dynamic_shapes: Any = None,
    eval_mode: bool = False,
) -> Captured:
    """Capture a copy of `module` in eval mode, without gradients, for the given call.

    Raises `ExportError` for a module in train mode (unless `eval_mode`), and with the user's
    line and the remedy where torch cannot capture it.
    """
    import torch

    training = [name or type(module).__name__ for name, m in module.named_modules() if m.training]
    if training and not eval_mode:
        raise ExportError(
            f"the model is in train mode ({len(training)} submodules: "
            f"{', '.join(training[:5])}{' …' if len(training) > 5 else ''}): "
            "dropout and batch norm answer differently there",
            hint="call model.eval() before saving, or pass --eval",
        )
    native = frozen_copy(module)
    with torch.no_grad(), quiet():
        program, names = _export(native, args, dict(kwargs), dynamic_shapes)
    refuse(program)
    return Captured(program, Signature.of(program), native, _axes(program, names))


def frozen_copy(module: "torch.nn.Module") -> "torch.nn.Module":
    """Copy a module, in eval mode and without gradients; the original is not touched."""
    import torch

    try:
        with quiet():
            copied = copy.deepcopy(module).requires_grad_(False)
        # A captured graph has no modes: torch refuses eval() on it.
        return copied if isinstance(copied, torch.fx.GraphModule) else copied.eval()
    except Exception as error:  # a user's __deepcopy__, or torch on tensors inside a graph
        raise ExportError(
            f"the model cannot be copied: {type(error).__name__}: {str(error)[:300]}",
            hint="detach tensors that the module keeps as attributes, or register them as buffers",
        ) from error


def from_program(program: "ExportedProgram", axes: DynamicShapes) -> Captured:
    """Wrap a loaded exported program; `axes` are the recorded names of its dynamic axes."""
    refuse(program)
    found = _axes(program, [])
    merged = {n: {a: axes.get(n, {}).get(a, d) for a, d in s.items()} for n, s in found.items()}
    with quiet():
        native = program.module(check_guards=False)
    return Captured(program, Signature.of(program), native, merged)


def _export(
    module: "torch.nn.Module", args: tuple[Any, ...], kwargs: dict[str, Any], dynamic_shapes: Any
) -> "tuple[ExportedProgram, list[str]]":
    """Trace without dynamo first, as torch.onnx does; with it where that fails.

    Dimensions of one name are first declared equal. Where torch finds that they are not, or
    that they depend on each other, each is left to its inference.

    An example of size 1 in a dynamic dimension is traced at a larger one, where forward takes
    that; the program keeps the user's example.
    """
    import torch
    from torch.fx.experimental import _config

    from npuc.rnn_shapes import rnn_shapes

    larger = grown(module, args, kwargs, dynamic_shapes)
    ways = ((True, False), (False, False), (True, True))
    tries = [(larger, way) for way in ways[:2]] if larger else []
    first: Exception | None = None
    for call, (equal, strict) in (*tries, *(((args, kwargs), way) for way in ways)):
        shapes, names = _shapes(dynamic_shapes, module, equal)
        if not shapes and not equal:
            continue
        try:
            # Sizes 0 and 1 in the example must not be baked in (torch.onnx sets the same flag).
            with _config.patch(backed_size_oblivious=True), rnn_shapes():  # type: ignore[attr-defined]
                program = torch.export.export(
                    module, call[0], call[1] or None, dynamic_shapes=shapes, strict=strict
                )
            program.example_inputs = (args, kwargs)
            return program, names
        except Exception as error:  # torch raises many types; the user's code may raise any
            if call is not larger:  # what it says of other sizes would be a riddle
                first = first or error
    assert first is not None
    raise explain(first, module) from first


def _shapes(dynamic_shapes: Any, module: "torch.nn.Module", equal: bool) -> tuple[Any, list[str]]:
    """Replace names by torch's dimensions; return the names in the order of inputs and axes."""
    from torch.export import Dim

    names: list[str] = []
    dims: dict[str, Any] = {}

    def visit(value: Any) -> Any:
        if isinstance(value, str):
            names.append(value)
            if equal and value.isidentifier():
                return dims.setdefault(value, Dim(value))
            return Dim.DYNAMIC
        if isinstance(value, Dim):
            names.append(value.__name__)
        elif isinstance(value, Mapping):
            keys = sorted(value) if all(isinstance(k, int) for k in value) else list(value)
            return {k: visit(value[k]) for k in keys}
        elif isinstance(value, tuple | list):
            return type(value)(visit(v) for v in value)
        elif value in (Dim.DYNAMIC, Dim.AUTO):
            names.append("")  # no name of its own
        return value

    if isinstance(dynamic_shapes, Mapping):
        order = list(inspect.signature(module.forward).parameters)
        known = sorted((k for k in dynamic_shapes if k in order), key=order.index)
        others = [k for k in dynamic_shapes if k not in order]
        dynamic_shapes = {k: dynamic_shapes[k] for k in (*known, *others)}
    return (visit(dynamic_shapes) if dynamic_shapes else None), names


def _axes(program: "ExportedProgram", names: list[str]) -> DynamicShapes:
    """Find the symbolic axes of the inputs and give each symbol one name.

    torch keeps only symbols such as s77. The user's names come in the same order as the axes
    do, unless torch found an axis to be static; then the symbol is the name.
    """
    wanted = set(Signature.of(program).input_names)
    found: dict[str, dict[int, str]] = {}
    for node in program.graph.nodes:
        if node.op == "placeholder" and node.name in wanted:
            sizes = enumerate(node.meta["val"].shape)
            found[node.name] = {a: str(s) for a, s in sizes if not isinstance(s, int)}
    flat = [(n, a, s) for n, axes in found.items() for a, s in axes.items()]
    if len(flat) != len(names):
        return found
    chosen: dict[str, str] = {}
    for (_, _, symbol), name in zip(flat, names, strict=True):
        chosen.setdefault(symbol, name or symbol)
    return {n: {a: chosen[s] for a, s in axes.items()} for n, axes in found.items()}


_REMEDIES = (
    (
        r"GuardOnDataDependent|data-dependent|Could not extract specialized integer",
        "the model branches on the value of a tensor",
        "compute both sides and choose with torch.where, use torch.cond, or move the branch "
        "out of forward()",
    ),
    (
        r"Constraints violated|tracing inferred a static|not all values .* valid|specialized",
        "a dimension declared dynamic is fixed by the model's code",
        "leave that axis out of dynamic_shapes (a loop over an axis fixes its length)",
    ),
    (
        r"not a known type|register a pytree|Unsupported input type|Cannot associate shape",
        "an input or output is of a class torch does not know",
        "wrap the model in a module that takes and returns tensors, tuples or dicts "
        "(transformers: use_cache=False)",
    ),
    (
        r"pack_padded_sequence|PackedSequence|argument 'size' failed to unpack",
        "packed sequences cannot be captured",
        "pass the padded batch to the RNN and mask its output",
    ),
    (
        r"Cannot view a tensor with shape",
        "attention with an additive mask was captured in a layout torch cannot decompose",
        "wrap the call in torch.nn.attention.sdpa_kernel(SDPBackend.MATH)",
    ),
    (
        r"dynamic_shapes",
        "dynamic_shapes does not match the model's inputs",
        "name the inputs as forward() does: dynamic_shapes={'x': {0: 'batch'}}",
    ),
)


def explain(error: BaseException, module: object = None) -> ExportError:
    """Say in a few lines what torch could not do: the user's line, the reason, the remedy."""
    text = f"{type(error).__name__}: {error}"
    reason, hint = (
        "torch cannot capture the model",
        "see https://docs.pytorch.org/docs/stable/export.html",
    )
    for pattern, what, remedy in _REMEDIES:
        if re.search(pattern, text):
            reason, hint = what, remedy
            break
    place = _user_line(error, text)
    first = next((line for line in str(error).splitlines() if line.strip()), "")
    fixed = re.findall(r"You marked (\S+) as dynamic but .*? constant \((\d+)\)", text)
    lines = [reason + (f" at {place}" if place else ""), f"{type(error).__name__}: {first[:300]}"]
    lines += [f"{name} is fixed at {size}" for name, size in dict.fromkeys(fixed)]
    return ExportError("\n  ".join(lines), hint=hint)


def _user_line(error: BaseException, text: str) -> str:
    """Find the innermost frame outside torch: from the traceback, else from torch's message."""
    frames = [(f.filename, f.lineno or 0) for f in traceback.extract_tb(error.__traceback__)]
    frames += [(m[1], int(m[2])) for m in re.finditer(r'File "([^"]+)", line (\d+)', text)]
    for file, line in reversed(list(_own(frames))):
        code = linecache.getline(file, line).strip()
        return f"{file}:{line}" + (f": {code}" if code else "")
    return ""


def _own(frames: list[tuple[str, int]]) -> Iterator[tuple[str, int]]:
    here = str(Path(__file__).parent)
    for file, line in frames:
        library = re.search(r"[/\\](torch|onnxscript|sympy)[/\\]|^<|[/\\]contextlib\.py$", file)
        if not library and not file.startswith(here):
            yield file, line
