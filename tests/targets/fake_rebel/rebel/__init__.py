"""A stand-in for Rebellions' `rebel` package that enforces its documented interface.

It compiles nothing. It refuses calls that the documentation does not allow, and misbehaves in the
ways vendors' compilers do, so that npuc's side of the contract can be tested without the SDK.

Environment: FAKE_REBEL_API is ``num_devices`` (0.12) or ``tensor_parallel_size`` (before);
FAKE_REBEL_MODE is one of the keys of `_CRASHES`, ``raise``, ``empty`` or ``noise``;
FAKE_REBEL_CHILD names a file for the process id of a child that ``hang`` leaves running.
"""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

__version__ = "0.12.0"

_MODE = os.environ.get("FAKE_REBEL_MODE", "")
_DTYPES = {"float32", "float16", "int64", "int32", "bool"}
_NPUS = {"RBLN-CA02", "RBLN-CA12", "RBLN-CA15", "RBLN-CA22", "RBLN-CA25"}


def _hang() -> None:
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    Path(os.environ["FAKE_REBEL_CHILD"]).write_text(f"{os.getpid()} {child.pid}")
    time.sleep(600)


_CRASHES = {
    "import": lambda: (_ for _ in ()).throw(ImportError("librbln-ccl.so: cannot open")),
    "exit": lambda: sys.exit("fail to find the compiler library"),
    "exit0": lambda: sys.exit(0),
    "kill": lambda: os.kill(os.getpid(), signal.SIGKILL),
    "segv": lambda: os.kill(os.getpid(), signal.SIGSEGV),
    "hang": _hang,
}
_CRASHES.get(_MODE, lambda: None)()


class RBLNCompiledModel:
    """What compiling returns."""

    def __init__(self, call: dict[str, Any]) -> None:
        self._call = call

    def save(self, path: str) -> None:
        """Write the compiled model; like the documented one it takes a path as a str."""
        if not isinstance(path, str) or not path.endswith(".rbln"):
            raise TypeError(f"save() wants a str ending in .rbln, got {path!r}")
        content = b"" if _MODE == "empty" else b"FAKE-RBLN" + json.dumps(self._call).encode()
        Path(path).write_bytes(content)


def _compile(mod: Any, input_info: Any, npu: Any, devices: Any, keyword: str) -> RBLNCompiledModel:
    import torch

    if not isinstance(mod, torch.nn.Module):
        raise TypeError(f"mod must be a torch.nn.Module, got {type(mod).__name__}")
    if not isinstance(input_info, list) or not input_info:
        raise TypeError("input_info must be a non-empty list of (name, shape, dtype)")
    zeros = []
    for item in input_info:
        name, shape, dtype = item
        if not (isinstance(item, tuple) and isinstance(name, str) and name.isidentifier()):
            raise TypeError(f"not an argument name: {name!r}")
        if not (isinstance(shape, list) and all(type(d) is int and d > 0 for d in shape)):
            raise TypeError(f"{name}: not a static shape: {shape!r}")
        if dtype not in _DTYPES:
            raise TypeError(f"{name}: dtype {dtype!r}")
        zeros.append(torch.zeros(shape, dtype=getattr(torch, dtype)))
    if npu not in _NPUS:
        raise ValueError(f"unknown npu {npu!r}")
    if devices not in (1, 2, 4, 8, 16, 32):
        raise ValueError(f"{keyword}={devices!r}")
    if _MODE == "raise":
        raise RuntimeError("DEVICE_GRAPH_CONVERSION: unsupported op")
    if _MODE == "noise":
        print("E RBLN: unknown op target: 0\n" * 1000, file=sys.stderr)
    with torch.no_grad():
        mod(*zeros)
    seen = {key: os.environ.get(key, "") for key in _ENVIRONMENT}
    call = {"input_info": input_info, "npu": npu, keyword: devices, "env": seen}
    return RBLNCompiledModel(call)


_ENVIRONMENT = ("HOME", "RBLN_FORCE_NPU_NAME", "RBLN_TARGET_SOC", "RBLN_DUMMY_DEVICE")


def _current(
    mod: Any, input_info: Any, *, npu: Any = None, num_devices: Any = 1
) -> RBLNCompiledModel:
    """Compile as rebel-compiler 0.12 is called; any other keyword is a TypeError."""
    return _compile(mod, input_info, npu, num_devices, "num_devices")


def _older(
    mod: Any, input_info: Any, *, npu: Any = None, tensor_parallel_size: Any = 1
) -> RBLNCompiledModel:
    """Compile as older compilers are called; any other keyword is a TypeError."""
    return _compile(mod, input_info, npu, tensor_parallel_size, "tensor_parallel_size")


_APIS: dict[str, Any] = {"num_devices": _current, "tensor_parallel_size": _older}
compile_from_torch = _APIS[os.environ.get("FAKE_REBEL_API", "num_devices")]
