"""Let torch trace LSTM and GRU by the shapes of their results instead of step by step.

torch.export keeps ``aten.lstm`` and ``aten.gru`` as single operators, which ONNX has too, but
finds out their shapes by running a decomposition that loops over the steps. The loop fixes the
number of steps, and at batch 1 the batch. The shapes are known without it: see `lstm` and `gru`.
"""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch._C import DispatchKey
from torch._decomp import global_decomposition_table
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode

_KEYS = (DispatchKey.CompositeImplicitAutograd, DispatchKey.Autograd)


def lstm(
    x: torch.Tensor, states: Sequence[torch.Tensor], params: Any, has_biases: bool,
    num_layers: int, dropout: float, train: bool, bidirectional: bool, batch_first: bool,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:  # fmt: skip
    """Return empty results of ``aten.lstm.input``: of all steps, the last h, the last c."""
    h, c = states
    steps = _steps(x, h, bidirectional, batch_first)
    return steps, h.new_empty(h.shape), c.new_empty(c.shape)


def gru(
    x: torch.Tensor, state: torch.Tensor, params: Any, has_biases: bool,
    num_layers: int, dropout: float, train: bool, bidirectional: bool, batch_first: bool,
) -> tuple[torch.Tensor, torch.Tensor]:  # fmt: skip
    """Return empty results of ``aten.gru.input``: of all steps, and the last h."""
    return _steps(x, state, bidirectional, batch_first), state.new_empty(state.shape)


def _steps(
    x: torch.Tensor, h: torch.Tensor, bidirectional: bool, batch_first: bool
) -> torch.Tensor:
    """h of all steps, directions side by side; the CPU kernels lay it out step by step."""
    first, second = (1, 0) if batch_first else (0, 1)
    width = h.shape[2] * (2 if bidirectional else 1)
    steps = x.new_empty((x.shape[first], x.shape[second], width))
    return steps.transpose(0, 1) if batch_first else steps


@contextlib.contextmanager
def rnn_shapes() -> Iterator[None]:
    """Trace by shape inside; what is no tracing (real tensors) computes as always.

    torch keeps the decompositions in three places (two kernels of the operator, and a table for
    what torch.onnx takes apart) and caches what it looked up; nothing of this outlasts the block.
    """
    table = global_decomposition_table["post_autograd"]
    shapes: dict[Any, Callable[..., Any]] = {
        torch.ops.aten.lstm.input: lstm,
        torch.ops.aten.gru.input: gru,
    }
    kernels = {op: {key: op.py_kernels[key] for key in _KEYS} for op in shapes}
    tabled = {op: table[op] for op in shapes}
    try:
        for op, shape in shapes.items():
            for key, kernel in kernels[op].items():
                op.py_kernels[key] = _traced(shape, kernel)
            table[op] = _traced(shape, tabled[op])
        _forget(shapes)
        yield
    finally:
        for op, original in kernels.items():
            op.py_kernels.update(original)
        table.update(tabled)
        _forget(shapes)


def _traced(shape: Callable[..., Any], original: Callable[..., Any]) -> Callable[..., Any]:
    def kernel(x: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        chosen = shape if isinstance(x, FakeTensor) else original
        return chosen(x, *args, **kwargs)

    return kernel


def _forget(ops: Any) -> None:
    for op in ops:
        op._dispatch_cache.clear()
    FakeTensorMode.cache_clear()
