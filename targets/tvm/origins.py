"""Where kernels come from: each carries the name of the program's tensor that it computes.

From the import on, a Relax variable is called after the tensor that it stands for; the compiled
library says for every call of a kernel, in order, which tensor it ends with. A profile reads it.
"""

import json
from collections.abc import Sequence
from typing import Any

from npuc.targets.tvm.graph import bindings
from npuc.targets.tvm.names import tensor

CALLS = "kernel_calls"
"""Name of the library's function that answers with JSON: [[kernel, tensor or ""], …]."""


def record(module: Any) -> Any:
    """Add the function that tells the calls of a legalised module, in the order they are made."""
    from tvm import ir, relax

    calls = [
        (str(expr.args[0].name_hint), tensor(var.name))
        for var, expr in bindings(module)
        if str(getattr(getattr(expr, "op", None), "name", "")) == "relax.call_tir"
    ]
    builder = relax.BlockBuilder(module)
    with builder.function(CALLS, []):
        builder.emit_func_output(ir.StringImm(json.dumps(calls)))
    return builder.get()


def calls(machine: Any) -> Sequence[tuple[str, str]]:
    """Return (kernel, tensor) of every call that an opened library makes; () where it is older."""
    try:
        told = machine[CALLS]
    except AttributeError:
        return ()
    return tuple((kernel, name) for kernel, name in json.loads(str(told())))
