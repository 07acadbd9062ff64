"""How torch computes here: versions, device, and every switch that changes numbers."""

import contextlib
import os
import platform
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

_CUDA = ("cuda.matmul", "cudnn.conv", "cudnn.rnn")
_CPU = ("mkldnn.matmul", "mkldnn.conv", "mkldnn.rnn")

VARIABLES = ("NVIDIA_TF32_OVERRIDE", "CUBLAS_WORKSPACE_CONFIG", "ONEDNN_DEFAULT_FPMATH_MODE")
"""Environment variables that libraries below torch read: NVIDIA's switch for TF32, the one that
makes cuBLAS deterministic, and oneDNN's permission to compute float32 in less."""


def environment(device: "torch.device") -> dict[str, Any]:
    """Say how torch computes on `device`; nothing here asks a GPU unless it is one."""
    import torch

    cuda = device.type == "cuda"
    precision = _precisions()
    return {
        "device": torch.cuda.get_device_name(device) if cuda else device.type,
        "capability": _capability(device) if cuda else None,
        "cuda": torch.version.cuda if cuda else None,
        "cudnn": torch.backends.cudnn.version() if cuda else None,  # type: ignore[no-untyped-call]
        "driver": _driver() if cuda else None,
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "torch": torch.__version__,
        "tf32_matmul": _either(
            lambda: torch.backends.cuda.matmul.allow_tf32, precision.get("cuda.matmul") == "tf32"
        ),
        "tf32_cudnn": _either(
            lambda: torch.backends.cudnn.allow_tf32,
            "tf32" in (precision.get("cudnn.conv"), precision.get("cudnn.rnn")),
        ),
        "float32_matmul_precision": _either(
            torch.get_float32_matmul_precision, "set per backend (fp32_precision)"
        ),
        **{f"fp32_precision.{n}": precision.get(n) for n in (_CUDA if cuda else _CPU)},
        "reduced_precision_reduction": _reductions() if cuda else None,
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "cudnn_deterministic": torch.backends.cudnn.deterministic,
        "cudnn_benchmark": torch.backends.cudnn.benchmark,
        "autocast": str(torch.get_autocast_dtype(device.type))
        if torch.is_autocast_enabled(device.type)
        else None,
        "variables": [f"{n}={os.environ[n]}" for n in VARIABLES if n in os.environ] or None,
        "threads": torch.get_num_threads(),
        "platform": machine(),
        "python": sys.version.split()[0],
    }


def machine() -> str:
    """Return what of this machine may change numbers: not its kernel, which only makes diffs."""
    libc = "".join(platform.libc_ver())
    return " ".join(filter(None, (platform.system(), platform.machine(), libc)))


@contextlib.contextmanager
def exact(device: "torch.device") -> Iterator[None]:
    """Compute without autocast and without reduced float32 inside; all is as before afterwards."""
    import torch

    before = _precisions()
    with torch.autocast(device.type, enabled=False):
        try:
            for name in before:
                _backend(name).fp32_precision = "ieee"
            yield
        finally:
            for name, value in before.items():
                _backend(name).fp32_precision = value


def grain(device: "torch.device", dtypes: "set[torch.dtype]") -> float:
    """Return the coarsest relative step that a value may be rounded to here (2^-mantissa)."""
    import torch

    steps = [torch.finfo(d).eps for d in dtypes if d.is_floating_point]
    if torch.is_autocast_enabled(device.type):
        steps.append(torch.finfo(torch.get_autocast_dtype(device.type)).eps)
    names = _CUDA if device.type == "cuda" else _CPU
    kinds = {_precisions().get(name) for name in names}
    steps += [2.0**-7] * ("bf16" in kinds) + [2.0**-10] * ("tf32" in kinds)
    return max(steps, default=torch.finfo(torch.float32).eps)


def _precisions() -> dict[str, str]:
    """Return what float32 is computed in, per backend and operator; {} before torch 2.9."""
    found = {name: getattr(_backend(name), "fp32_precision", None) for name in (*_CUDA, *_CPU)}
    return {name: value for name, value in found.items() if value is not None}


def _backend(name: str) -> Any:
    import torch

    library, _, operator = name.partition(".")
    return getattr(getattr(torch.backends, library), operator, None)


def _either(legacy: Any, other: Any) -> Any:
    """Read a switch; torch refuses the old name once the new ones (fp32_precision) were used."""
    try:
        return legacy()
    except RuntimeError:
        return other


def _capability(device: "torch.device") -> str:
    import torch

    return ".".join(map(str, torch.cuda.get_device_capability(device)))


def _reductions() -> list[str]:
    """Name the types whose sums cuBLAS may keep in less than float32."""
    import torch

    matmul: Any = torch.backends.cuda.matmul
    names = {"float16": "fp16", "bfloat16": "bf16"}
    return [
        full
        for full, short in names.items()
        if getattr(matmul, f"allow_{short}_reduced_precision_reduction", False)
    ]


def _driver() -> str:
    """The NVIDIA driver's version, from the kernel module where it is exposed."""
    place = Path("/sys/module/nvidia/version")
    return place.read_text().strip() if place.is_file() else "unknown"
