"""Look at a model while it is trained, and leave no trace."""

import contextlib
import copy
import random
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from npuc.errors import ExportError, UnsupportedError
from npuc.quiet import quiet

SHORT = (torch.float16, torch.bfloat16)
"""Floats that are widened: a model kept in them is judged by what it would answer in float32."""


@contextlib.contextmanager
def undisturbed() -> Iterator[None]:
    """Restore what a computation may move, and compute as outside of any training step.

    Restored are the random states of torch, of its CUDA devices where they are in use, of numpy
    and of Python, and torch's default type. Inside there are no gradients, no autocast and no
    inference mode, and new tensors are float32 on the CPU.
    """
    in_use = torch.cuda.is_available() and torch.cuda.is_initialized()  # type: ignore[no-untyped-call]
    devices = range(torch.cuda.device_count()) if in_use else ()
    numbers, drawn, dtype = random.getstate(), np.random.get_state(), torch.get_default_dtype()
    with contextlib.ExitStack() as stack:
        stack.enter_context(torch.random.fork_rng(devices))
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.no_grad())
        for kind in ("cpu", "cuda"):
            if torch.is_autocast_enabled(kind):
                stack.enter_context(torch.autocast(kind, enabled=False))
        if torch.get_default_device().type != "cpu":
            stack.enter_context(torch.device("cpu"))
        try:
            torch.set_default_dtype(torch.float32)
            yield
        finally:
            torch.set_default_dtype(dtype)
            np.random.set_state(drawn)
            random.setstate(numbers)


def unwrapped(model: nn.Module) -> nn.Module:
    """Return the module inside torch's own wrappers: data parallelism and torch.compile."""
    while True:
        if isinstance(model, nn.DataParallel | nn.parallel.DistributedDataParallel):
            model = model.module
        elif isinstance(inner := getattr(model, "_orig_mod", None), nn.Module):
            model = inner
        else:
            return model


def copied(model: nn.Module) -> nn.Module:
    """Return a copy on the CPU, in eval mode, without gradients, with no float below float32.

    Nothing is allocated on the model's device, and tensors that are kept from a forward (with
    the graph behind them, which torch refuses to copy) become plain ones. Forward hooks stay:
    they may compute the weights.

    Raises `UnsupportedError` where this process does not have the weights (sharded, lazy, on
    the meta device), `ExportError` where the module cannot be copied.
    """
    memo: dict[int, Any] = {}
    faults: list[str] = []
    for path, module in model.named_modules():
        held = {name: value for name, value in vars(module).items() if name != "_modules"}
        for tensor in pytree.tree_leaves(held):
            if not isinstance(tensor, Tensor) or id(tensor) in memo:
                continue
            if reason := _absent(tensor):
                faults.append(f"{path or type(model).__name__}: a tensor is {reason}")
            else:
                memo[id(tensor)] = _on_cpu(tensor)
    if faults:
        listed = "\n  ".join(dict.fromkeys(faults))
        raise UnsupportedError(f"the weights are not in this process:\n  {listed}")
    try:
        with quiet():
            made = copy.deepcopy(model, memo).eval()
    except Exception as error:  # a user's __deepcopy__ or eval, or what cannot be copied
        raise ExportError(
            f"the model cannot be copied: {type(error).__name__}: {str(error)[:300]}",
            hint="give the part of it that computes the answer, as a module of its own",
        ) from error
    return _plain(made).requires_grad_(False)


def widened(value: Any) -> Any:
    """Return a call with its tensors on the CPU, and no float below float32."""
    return pytree.tree_map_only(Tensor, _moved, value)


def _plain(model: nn.Module) -> nn.Module:
    """Take torch.compile's wrappers off the modules inside."""
    for module in list(model.modules()):
        for name, child in list(module.named_children()):
            setattr(module, name, unwrapped(child))
    return unwrapped(model)


def _absent(tensor: Tensor) -> str:
    if nn.parameter.is_lazy(tensor):
        return "not initialized: run one batch first"
    if tensor.is_meta:
        return "on the meta device"
    return "sharded over processes" if hasattr(tensor, "full_tensor") else ""


def _on_cpu(tensor: Tensor) -> Tensor:
    made = _moved(tensor)
    return nn.Parameter(made, requires_grad=False) if isinstance(tensor, nn.Parameter) else made


def _moved(tensor: Tensor) -> Tensor:
    dtype = torch.float32 if tensor.dtype in SHORT else tensor.dtype
    return tensor.detach().to("cpu", dtype, copy=True)
