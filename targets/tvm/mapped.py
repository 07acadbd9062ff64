"""Keep large constants out of a library: they go into one file, which is mapped and not read.

Within the library, the virtual machine would copy every one of them, twice.
"""

import hashlib
import mmap
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from npuc.targets.tvm.graph import Array, Walk, bindings, key, number, shape_of

ALIGNMENT = 64
"""Bytes that every constant starts at a multiple of, as TVM's code takes for granted."""

LEAST = 1 << 16
"""Bytes below which a constant stays in the library: each that leaves it is one more argument of
every call."""

KINDS = frozenset({"float32", "float64", "int8", "uint8", "int16", "uint16", "int32", "int64"})


@dataclass(frozen=True, slots=True)
class Constants:
    """The further arguments of main: the bytes of a file, and (dtype, shape, offset) of each."""

    data: bytes
    tensors: tuple[tuple[str, tuple[int, ...], int], ...]

    def to_json(self) -> list[list[Any]]:
        """Return what `read` wants to know of the file."""
        return [[dtype, list(shape), offset] for dtype, shape, offset in self.tensors]


def lift(module: Any) -> tuple[Any, Constants]:
    """Make parameters of a legalised module's large constants; equal ones are one."""
    found = _Lift(module)
    return found.run(), found.constants()


class _Lift(Walk):
    def __init__(self, module: Any) -> None:
        super().__init__(module)
        self._arrays: dict[bytes, Array] = {}
        self._vars: dict[bytes, Any] = {}
        self._digests: dict[int, bytes] = {}
        for _, expr in bindings(module):
            self._collect(expr)
        self.params += self._vars.values()

    def substitute(self, expr: Any) -> Any:
        found = self._digests.get(key(expr))
        return super().substitute(expr) if found is None else self._vars[found]

    def constants(self) -> Constants:
        """Return the file."""
        pieces: list[Any] = []
        size, tensors = 0, []
        for array in self._arrays.values():
            gap = -size % ALIGNMENT
            tensors.append((array.dtype.name, array.shape, size + gap))
            pieces += [bytes(gap), _bytes(array)]
            size += gap + array.nbytes
        return Constants(b"".join(pieces), tuple(tensors))

    def _collect(self, expr: Any) -> None:
        from tvm import ir, relax

        for part in (*getattr(expr, "args", ()), *getattr(expr, "fields", ())):
            if isinstance(part, ir.Tuple | ir.Call):
                self._collect(part)
            elif key(part) not in self._digests and (array := _large(part)) is not None:
                name = self._digests[key(part)] = _digest(array)
                if name not in self._vars:
                    shape: Any = shape_of(part)  # TVM converts it
                    kind = relax.TensorType(shape, array.dtype.name)
                    self._vars[name] = relax.Var(f"constant{len(self._vars)}", kind)
                    self._arrays[name] = array


def _large(expr: Any) -> Array | None:
    array = number(expr)
    fits = array is not None and array.nbytes >= LEAST and array.dtype.name in KINDS
    return array if fits else None


def _digest(array: Array) -> bytes:
    found = hashlib.sha256(f"{array.dtype.name} {array.shape}".encode())
    found.update(_bytes(array))
    return found.digest()


def _bytes(array: Array) -> Any:
    """Return an array's memory."""
    return np.ascontiguousarray(array).reshape(-1).view(np.uint8).data


def read(path: Path, tensors: list[list[Any]]) -> list[Array]:
    """Map a file that `Constants` describe; it may be removed afterwards."""
    with path.open("rb") as file:
        # Private: what is written to stays in this process, and nothing is. DLPack asks for it.
        mapping = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
    return [
        np.frombuffer(mapping, dtype, int(np.prod(shape)), offset).reshape(shape)
        for dtype, shape, offset in tensors
    ]
