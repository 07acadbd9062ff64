"""Load a model from a file, a zoo name or memory, safely, and say what it is.

Nothing in a file runs unless the caller says so: pickled modules and TorchScript need
`trust_pickle`. TorchScript counts as code because a program may write files with
``aten::save`` and ``aten::from_file``, in ``__setstate__`` already while it is loaded.
"""

import difflib
import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from npuc import inputs as input_specs
from npuc.answers import Reference
from npuc.capture import Captured, capture, from_program
from npuc.errors import ExportError, LoadError, UsageError
from npuc.program import Program
from npuc.sniff import Kind, sniff

if TYPE_CHECKING:
    import torch
    from torch.export import ExportedProgram


@dataclass(frozen=True)
class Loaded:
    """A model as loaded: exactly one of `module`, `exported`, `script`, `program` is set.

    An artifact has `kind` "npuc" and none of them. `args`, `kwargs` are example inputs, empty
    where none are known; `samples`, `calibration` are calls as the model takes them, from the
    zoo. `reference` is what npuc.save recorded in the file.
    """

    kind: str
    name: str
    path: Path | None = None
    module: "torch.nn.Module | None" = None
    exported: "ExportedProgram | None" = None
    script: "torch.jit.ScriptModule | None" = None
    program: Program | None = None
    args: tuple[Any, ...] = ()
    kwargs: Mapping[str, Any] = field(default_factory=dict)
    dynamic_shapes: Any = None
    reference: Reference | None = None
    samples: tuple[tuple[Any, ...], ...] = ()
    calibration: tuple[tuple[Any, ...], ...] = ()
    eval_mode: bool = False

    @cached_property
    def captured(self) -> Captured:
        """The model as an exported program (once); raises `ExportError`."""
        if self.exported is not None:
            return from_program(self.exported, self.reference.axes if self.reference else {})
        module = self.script if self.script is not None else self.module
        if module is None:
            raise ExportError(f"{self.name} is {self.kind}: there is no torch model to capture")
        if not self.args and not self.kwargs:
            raise UsageError(
                f"{self.name} does not say what its inputs look like",
                hint="--input name:1x3x224x224:float32 for each input",
            )
        if self.script is not None:
            from npuc.torchscript import convert

            return convert(self.script, self.args, self.kwargs, self.dynamic_shapes, self.eval_mode)
        return capture(module, self.args, self.kwargs, self.dynamic_shapes, self.eval_mode)


def load(
    source: "str | Path | torch.nn.Module",
    *,
    model: str = "",
    inputs: Sequence[str] = (),
    trust_pickle: bool = False,
    eval_mode: bool = False,
    model_path: str = "",
) -> Loaded:
    """Load a model from a file, ``zoo:NAME`` or a torch module.

    `model` is ``package.module:factory`` for files that hold weights alone; `model_path` is a
    folder to import it from. `inputs` are specs such as ``name:1x3x224x224:float32``.
    Raises `LoadError`, `ExportError` or `UsageError`; each says what would work.
    """
    specs = input_specs.parse(inputs)
    if not isinstance(source, str | Path):
        return _from_module(source, "module", type(source).__name__, specs, eval_mode)
    if str(source).startswith("zoo:"):
        return _from_zoo(str(source)[4:])
    path = Path(source)
    kind = sniff(path)
    match kind.name:
        case "pt2":
            return _from_pt2(path, kind)
        case "onnx":
            from npuc.onnx_file import read_onnx

            return Loaded("onnx", path.name, path, program=read_onnx(path))
        case "npuc":
            return Loaded("npuc", path.name, path)
        case "state-dict" | "checkpoint" | "safetensors":
            from npuc.weights import build

            module = build(path, kind, model, model_path)
            # Weights carry no mode, and a factory builds for training: evaluation is meant.
            return _from_module(module, kind.name, path.name, specs, True, path)
        case "module":
            return _from_module(
                _unpickle(path, kind, trust_pickle, model_path),
                "module", path.name, specs, eval_mode, path,
            )  # fmt: skip
        case "torchscript":
            return _from_torchscript(path, kind, specs, trust_pickle, eval_mode)
    raise _refuse(path, kind)


def _from_module(
    module: "torch.nn.Module",
    kind: str,
    name: str,
    specs: tuple[input_specs.InputSpec, ...],
    eval_mode: bool,
    path: Path | None = None,
) -> Loaded:
    from npuc.weights import refuse_nan

    refuse_nan(module, name)
    args, kwargs, shapes = example(specs, _parameters(module))
    return Loaded(
        kind, name, path, module=module, args=args, kwargs=kwargs,
        dynamic_shapes=shapes, eval_mode=eval_mode,
    )  # fmt: skip


def _from_zoo(name: str) -> Loaded:
    from npuc import models

    zoo = models.get(name)  # raises UsageError with near names
    shapes = zoo.dynamic_shapes
    return Loaded(
        "zoo", f"zoo:{name}", module=zoo.module(), args=tuple(zoo.example()),
        dynamic_shapes=shapes, samples=tuple(zoo.samples(8)),
        calibration=tuple(zoo.calibration(64)),
    )  # fmt: skip


def _from_pt2(path: Path, kind: Kind) -> Loaded:
    from npuc import pt2
    from npuc.record import read
    from npuc.weights import refuse_nan

    program = pt2.load(path, kind.root)
    refuse_nan(program, path.name)
    args, kwargs = program.example_inputs or ((), {})
    return Loaded(
        "pt2", path.name, path, exported=program, args=tuple(args), kwargs=dict(kwargs),
        reference=read(path),
    )  # fmt: skip


def _from_torchscript(
    path: Path,
    kind: Kind,
    specs: tuple[input_specs.InputSpec, ...],
    trust_pickle: bool,
    eval_mode: bool,
) -> Loaded:
    import torch

    from npuc.quiet import quiet
    from npuc.torchscript import parameters
    from npuc.weights import refuse_nan

    if not trust_pickle:
        raise LoadError(
            f"{path} is {kind.what}: loading it runs code from the file, which can write files",
            hint="if you trust it, add --trust-pickle; better, save the original with npuc.save",
        )
    try:
        with quiet():
            script = torch.jit.load(path, map_location="cpu")  # type: ignore[no-untyped-call]
    except RuntimeError as error:
        raise LoadError(f"{path}: torch cannot load it: {_first_line(error)}") from error
    refuse_nan(script, path.name)
    args, kwargs, shapes = example(specs, parameters(script))
    return Loaded(
        "torchscript", path.name, path, script=script, args=args, kwargs=kwargs,
        dynamic_shapes=shapes, eval_mode=eval_mode,
    )  # fmt: skip


def _unpickle(path: Path, kind: Kind, trusted: bool, model_path: str) -> "torch.nn.Module":
    import torch

    from npuc.weights import importable

    if not trusted:
        names = "\n  ".join(kind.imports[:20])
        raise LoadError(
            f"{path} is {kind.what}: loading it runs code, and imports\n  {names}",
            hint="save the model with npuc.save, or its state_dict and pass --model "
            "package.module:factory; if you trust the file, add --trust-pickle",
        )
    try:
        with importable(model_path):
            value = torch.load(path, map_location="cpu", weights_only=False)
    except (ImportError, AttributeError) as error:
        raise LoadError(
            f"{path}: the code of the pickled model is not here: {error}",
            hint="--model-path FOLDER, the folder that its imports start from",
        ) from error
    except Exception as error:  # unpickling runs code of the file's choice
        raise LoadError(f"{path}: unpickling failed: {_first_line(error)}") from error
    if not isinstance(value, torch.nn.Module):
        raise LoadError(f"{path} holds a {type(value).__name__}, not a torch module")
    return value


def example(
    specs: Sequence[input_specs.InputSpec], parameters: Sequence[str]
) -> tuple[tuple[Any, ...], dict[str, Any], Any]:
    """Make example (args, kwargs, dynamic shapes) from input specs and forward's parameters."""
    from npuc.signature import to_tensor

    unknown = [s.name for s in specs if s.name and s.name not in parameters]
    if unknown:
        raise UsageError(
            f"the model has no input {', '.join(map(repr, unknown))}",
            hint="its inputs are " + ", ".join(parameters) + _near(unknown[0], parameters),
        )
    named = [(s.name or (parameters[0] if parameters else ""), s) for s in specs]
    named.sort(key=lambda item: parameters.index(item[0]) if item[0] else 0)
    sample = input_specs.random([s.port for _, s in named])[0] if named else {}
    values = {name: to_tensor(sample[s.name]) for name, s in named}
    shapes = {name: dict(s.axes) or None for name, s in named}
    leading = tuple(values) == tuple(parameters[: len(values)])
    dynamic = shapes if any(shapes.values()) else None
    if leading:
        return tuple(values.values()), {}, dynamic
    return (), values, dynamic


def _near(name: str, known: Sequence[str]) -> str:
    close = difflib.get_close_matches(name, known, 1)
    return f"; did you mean {close[0]!r}?" if close else ""


def _parameters(module: "torch.nn.Module") -> list[str]:
    kinds = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    found = inspect.signature(module.forward).parameters.values()
    return [p.name for p in found if p.kind not in kinds]


def _refuse(path: Path, kind: Kind) -> LoadError:
    hints = {
        "aoti": "npuc needs the model itself: npuc.save(model, example_inputs, 'model.pt')",
        "directory": "name the file in it that holds the model",
        "empty": "the file was not written or not downloaded completely; get it again",
    }
    default = (
        "npuc takes .pt2/npuc.save files, state dicts and safetensors with --model, ONNX, .npuc, "
        "and with --trust-pickle pickled modules and TorchScript"
    )
    return LoadError(f"{path} is {kind.what}", hint=hints.get(kind.name, default))


def _first_line(error: BaseException) -> str:
    text = str(error).strip()
    return text.splitlines()[0][:300] if text else type(error).__name__
