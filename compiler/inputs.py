"""Input specifications from the command line, and inputs made from them."""

import difflib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from npuc.errors import UsageError
from npuc.program import Port, Tensors

SYMBOL_SIZE = 2
"""Size given to a dynamic dimension where nothing says more: 1 would hide broadcasting."""

# fmt: off
DTYPES = (
    "float32", "float64", "float16", "bfloat16", "int64", "int32", "int16", "int8",
    "uint8", "uint16", "uint32", "uint64", "bool",
)
# fmt: on


@dataclass(frozen=True)
class InputSpec:
    """``name:1x3x224x224:float32``; a dimension ``batch=2`` is dynamic, 2 in the example."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    axes: dict[int, str]

    @property
    def port(self) -> Port:
        """The spec as a port of static shape."""
        return Port(self.name, self.dtype, self.shape)


def parse(texts: Sequence[str]) -> tuple[InputSpec, ...]:
    """Parse ``--input`` options; raises `UsageError` listing every bad one."""
    specs, faults = [], []
    for text in texts:
        try:
            specs.append(_parse(text))
        except ValueError as error:
            faults.append(f"--input {text!r}: {error}")
    names = [s.name for s in specs]
    if len(specs) > 1 and not all(names):
        faults.append("with several inputs each needs its name: --input name:1x3x224x224:float32")
    faults += [
        f"--input {n!r} is given twice" for n in {n for n in names if n and names.count(n) > 1}
    ]
    if faults:
        raise UsageError("\n".join(faults), hint="--input name:1x3x224x224:float32")
    return tuple(specs)


def _parse(text: str) -> InputSpec:
    parts = text.split(":")
    if len(parts) == 2:
        parts = ["", *parts] if _SHAPE.fullmatch(parts[0]) else [*parts, "float32"]
    elif len(parts) == 1:
        parts = ["", *parts, "float32"]
    if len(parts) != 3:
        raise ValueError("not of the form name:1x3x224x224:float32")
    name, shape, dtype = parts
    if dtype not in DTYPES:
        close = difflib.get_close_matches(dtype, DTYPES, 1)
        raise ValueError(
            f"unknown dtype {dtype!r}" + (f", did you mean {close[0]}?" if close else "")
        )
    if shape and not _SHAPE.fullmatch(shape):
        raise ValueError(f"{shape!r} is not a shape such as 1x3x224x224 or batch=2x3x224x224")
    dims = _DIM.findall(shape)
    sizes = tuple(int(size) for _, size in dims)
    if 0 in sizes:
        raise ValueError("a dimension of size 0")
    return InputSpec(name, sizes, dtype, {i: n for i, (n, _) in enumerate(dims) if n})


_DIM = re.compile(r"(?:([A-Za-z_]\w*)=)?(\d+)")
_SHAPE = re.compile(rf"{_DIM.pattern}(?:x{_DIM.pattern})*")


def random(ports: Sequence[Port], count: int = 1, seed: int = 0) -> tuple[Tensors, ...]:
    """Make `count` seeded samples: normal floats, and integers 0 or 1, which index any table."""
    generator = np.random.default_rng(seed)
    return tuple({p.name: _random(p, generator) for p in ports} for _ in range(count))


def _random(port: Port, generator: np.random.Generator) -> np.ndarray[Any, Any]:
    shape = tuple(d if isinstance(d, int) else SYMBOL_SIZE for d in port.shape)
    dtype = numpy_dtype(port.dtype)
    if dtype.kind in "iub":
        return generator.integers(0, 2, shape).astype(dtype)
    return generator.standard_normal(shape).astype(dtype)


def numpy_dtype(name: str) -> "np.dtype[np.generic]":
    """Return numpy's dtype by name, bfloat16 included."""
    if name == "bfloat16":
        import ml_dtypes

        found: np.dtype[np.generic] = np.dtype(ml_dtypes.bfloat16)
        return found
    return np.dtype(name)
