"""Put weights from a file into a model that a factory builds, and refuse broken weights."""

import contextlib
import importlib
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from npuc.errors import LoadError, UsageError
from npuc.sniff import Kind

if TYPE_CHECKING:
    import torch

_KEYS = ("state_dict", "model_state_dict", "model", "net", "module", "weights", "ema", "params")
"""Where training scripts put the state dict in a checkpoint, most usual first."""


def build(path: Path, kind: Kind, model: str, model_path: str) -> "torch.nn.Module":
    """Build ``package.module:factory`` and load the weights into it, all faults at once."""
    if not model:
        raise UsageError(
            f"{path} is {kind.what}: weights without the model they belong to",
            hint="--model package.module:factory, where factory() returns the torch module",
        )
    weights = read_weights(path, kind)
    module = make(model, model_path)
    state = module.state_dict()
    weights = _without_prefix(weights, state)
    faults = [f"missing: {key}" for key in state if key not in weights]
    faults += [f"unexpected: {key}" for key in weights if key not in state]
    faults += [
        f"shape: {key} is {tuple(weights[key].shape)}, the model has {tuple(value.shape)}"
        for key, value in state.items()
        if key in weights and weights[key].shape != value.shape
    ]
    if faults:
        raise LoadError(
            f"{path} does not fit {model} ({len(faults)} differences):\n  " + "\n  ".join(faults),
            hint="build the model with the configuration that the weights were trained with",
        )
    module.load_state_dict(weights, strict=True)
    return module


def read_weights(path: Path, kind: Kind) -> "Mapping[str, torch.Tensor]":
    """Read a state dict from safetensors, torch.save or a checkpoint, without running code."""
    import torch

    if kind.name == "safetensors":
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        try:
            return dict(load_file(path))
        except (SafetensorError, OSError, ValueError) as error:
            raise LoadError(f"{path}: damaged safetensors file: {error}") from error
    try:
        value = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises UnpicklingError, RuntimeError, EOFError and others
        foreign = ", ".join(kind.imports[:10])
        what = f"it would import {foreign}" if foreign else str(error).splitlines()[0][:200]
        raise LoadError(
            f"{path} is {kind.what}, and cannot be read without running code: {what}",
            hint="save the state dict alone: torch.save(model.state_dict(), path)",
        ) from error
    return _state_dict(path, value)


def _state_dict(path: Path, value: Mapping[str, Any]) -> "Mapping[str, torch.Tensor]":
    if _is_state(value):
        return dict(value)
    inner = {k: v for k, v in value.items() if _is_state(v)}
    if len(inner) == 1:
        return dict(next(iter(inner.values())))
    for key in _KEYS:
        if key in inner:
            return dict(inner[key])
    raise LoadError(
        f"{path}: a checkpoint with the keys {', '.join(map(repr, value))}; "
        + ("none holds a state dict" if not inner else f"several may be meant: {sorted(inner)}"),
        hint="save the state dict alone: torch.save(model.state_dict(), path)",
    )


def _is_state(value: Any) -> bool:
    import torch

    return (
        isinstance(value, Mapping)
        and bool(value)
        and all(isinstance(v, torch.Tensor) for v in value.values())
    )


def _without_prefix(weights: Mapping[str, Any], state: Mapping[str, Any]) -> Mapping[str, Any]:
    """Drop what DataParallel (``module.``) and torch.compile (``_orig_mod.``) put before keys."""
    for prefix in ("module.", "_orig_mod."):
        wrapped = all(key.startswith(prefix) for key in weights)
        if wrapped and not any(key.startswith(prefix) for key in state):
            weights = {key[len(prefix) :]: value for key, value in weights.items()}
    return weights


def make(model: str, model_path: str) -> "torch.nn.Module":
    """Import ``package.module:factory`` and call it without arguments."""
    import torch

    name, _, attribute = model.partition(":")
    if not name or not attribute:
        raise UsageError(f"--model {model!r}", hint="--model package.module:factory")
    with importable(model_path):
        try:
            factory: Any = importlib.import_module(name)
            for part in attribute.split("."):
                factory = getattr(factory, part)
        except (ImportError, AttributeError) as error:
            raise UsageError(
                f"--model {model}: {error}",
                hint="--model-path FOLDER, the folder that the import starts from",
            ) from error
        try:
            module = factory()
        except Exception as error:  # the user's code
            raise LoadError(
                f"--model {model}: calling {attribute}() failed: {type(error).__name__}: {error}",
                hint="name a function without arguments that builds the model",
            ) from error
    if not isinstance(module, torch.nn.Module):
        raise UsageError(f"--model {model}: it returns {type(module).__name__}, not a module")
    return module


@contextlib.contextmanager
def importable(folder: str) -> Iterator[None]:
    """Let imports start in `folder`, or where the command was run."""
    place = str(Path(folder or ".").resolve())
    sys.path.insert(0, place)
    try:
        yield
    finally:
        sys.path.remove(place)


def refuse_nan(model: Any, name: str) -> None:
    """Raise `LoadError` naming every weight with NaN, and every parameter with Inf.

    Infinities are allowed in buffers only: attention masks are made of them.
    """
    import torch

    parameters = dict(model.named_parameters())
    faults = []
    for key, tensor in (*parameters.items(), *model.named_buffers()):
        if not (tensor.is_floating_point() or tensor.is_complex()) or tensor.is_meta:
            continue
        nan, inf = int(torch.isnan(tensor).sum()), int(torch.isinf(tensor).sum())
        if nan or (inf and key in parameters):
            faults.append(f"{key}: {nan} NaN, {inf} Inf of {tensor.numel()} values")
    if faults:
        raise LoadError(
            f"{name} has weights that are not numbers:\n  " + "\n  ".join(faults),
            hint="the training diverged; use an earlier checkpoint",
        )
