"""Real inputs at the sizes a check needs: other sizes, fixed batches, files."""

import itertools
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from npuc.errors import ParityError, UsageError
from npuc.inputs import numpy_dtype
from npuc.program import Port, Program, Tensors

if TYPE_CHECKING:
    from npuc.targets.base import Runner

Array = np.ndarray[Any, Any]

MAX_RATIO, MAX_BYTES = 100, 2**30
"""An .npz member may inflate 100-fold beyond a gigabyte only if it is a bomb."""


def variants(samples: Sequence[Tensors], program: Program) -> list[list[Tensors]]:
    """Return `samples`, and for each dynamic dimension the first one at a second size.

    A dimension above 2 loses its last entry, a smaller one grows by one entry; every axis of every
    input that carries the dimension changes alike. What is added is another sample's, where one
    fits: a batch of one sample twice would not show whose answer is whose.
    """
    found = [list(samples)]
    if not samples:
        return found
    for symbol in program.symbols:
        sizes = sizes_of(samples[0], program)
        size = sizes[symbol]
        other = size - 1 if size > 2 else size + 1
        found.append([resize(samples[0], program, symbol, other, samples[1:])])
    return found


def resize(
    sample: Tensors,
    program: Program,
    symbol: str,
    size: int,
    others: Sequence[Tensors] = (),
) -> Tensors:
    """Crop real data so that `symbol` has `size` everywhere, or append that of `others`.

    Where these run out, or differ in another dimension, the data is repeated.
    """
    changed = dict(sample)
    for port in program.inputs:
        for axis in _axes(port, symbol):
            array = _longer(changed[port.name], axis, size, [call[port.name] for call in others])
            indices = np.arange(size) % array.shape[axis]
            changed[port.name] = np.ascontiguousarray(np.take(array, indices, axis=axis))
    return changed


def _longer(array: Array, axis: int, size: int, others: Sequence[Array]) -> Array:
    """Append arrays along an axis until it is `size` long, where their other sizes agree."""

    def rest(shaped: Array) -> tuple[int, ...]:
        return tuple(n for at, n in enumerate(shaped.shape) if at != axis)

    parts, length = [array], array.shape[axis]
    for other in others:
        if length >= size:
            break
        if other.ndim == array.ndim and rest(other) == rest(array):
            parts.append(other)
            length += other.shape[axis]
    return array if len(parts) == 1 else np.concatenate(parts, axis=axis)


def sizes_of(sample: Tensors, program: Program) -> dict[str, int]:
    """Read the size of every dynamic dimension off a call, checking it on the way.

    Raises `UsageError` listing every missing input, wrong dtype, rank, size, and dimension
    that has two sizes.
    """
    faults = list(_faults(sample, program.inputs))
    sizes: dict[str, int] = {}
    if not faults:
        for port in program.inputs:
            for axis, dim in enumerate(port.shape):
                actual = sample[port.name].shape[axis]
                if isinstance(dim, str) and sizes.setdefault(dim, actual) != actual:
                    faults.append(f"dimension {dim!r} is {sizes[dim]}, and {actual} in {port.name}")
    if faults:
        raise UsageError(
            "these inputs do not fit the model:\n  " + "\n  ".join(faults),
            hint="the model takes " + ", ".join(map(str, program.inputs)),
        )
    return sizes


def bind_check(sample: Tensors, program: Program) -> None:
    """Raise `UsageError` where a call does not fit a program's ports."""
    sizes_of(sample, program)


def _faults(sample: Tensors, ports: Sequence[Port]) -> Iterator[str]:
    for port in ports:
        if port.name not in sample:
            yield f"input {port.name!r} is missing (there are {', '.join(sample) or 'none'})"
            continue
        array = sample[port.name]
        if array.dtype != numpy_dtype(port.dtype):
            yield f"{port.name} is {array.dtype}, expected {port.dtype}"
        if array.ndim != len(port.shape) or any(
            isinstance(want, int) and want != got
            for want, got in zip(port.shape, array.shape, strict=False)
        ):
            yield f"{port.name} has shape {'x'.join(map(str, array.shape))}, expected {port}"
    known = {p.name for p in ports}
    yield from (f"the model has no input {name!r}" for name in sample if name not in known)


def _axes(port: Port, symbol: str) -> list[int]:
    return [axis for axis, dim in enumerate(port.shape) if dim == symbol]


class Rebatched:
    """Run a program of fixed shapes on larger calls: split, run the parts, join the outputs.

    `dynamic` is the program before its dimensions were fixed: its ports say which axes carry
    the batch. Only one dimension may differ between the two, and only by a whole multiple.
    """

    def __init__(self, runner: "Runner", fixed: Program, dynamic: Program) -> None:
        self.runner = runner
        self.fixed = fixed
        self.dynamic = dynamic
        self.bound = {
            old: new
            for before, after in zip(dynamic.inputs, fixed.inputs, strict=True)
            for old, new in zip(before.shape, after.shape, strict=True)
            if isinstance(old, str) and isinstance(new, int)
        }

    @property
    def name(self) -> str:
        """The name of the runner inside."""
        return self.runner.name

    def __call__(self, inputs: Tensors) -> Tensors:
        """Run one call; raises `ParityError` where it cannot be split into the fixed shapes."""
        symbol, _ = self._split(inputs)
        if not symbol:
            return self.runner(inputs)
        answers = [self.runner(part) for part in self.parts(inputs, inputs)]
        return {port.name: _join(answers, port, symbol) for port in self.dynamic.outputs}

    def parts(self, inputs: Tensors, tensors: Tensors) -> list[Tensors]:
        """Cut the inputs or outputs of one call into calls of the fixed shapes."""
        symbol, size = self._split(inputs)
        if not symbol:
            return [tensors]
        step = self.bound[symbol]
        ports = [p for p in (*self.dynamic.inputs, *self.dynamic.outputs) if p.name in tensors]
        return [_part(tensors, ports, symbol, start, step) for start in range(0, size, step)]

    def _split(self, inputs: Tensors) -> tuple[str, int]:
        """Return the dimension along which a call must be cut, and its size; "" for none."""
        sizes = sizes_of(inputs, self.dynamic)
        other = [s for s, fixed in self.bound.items() if sizes[s] != fixed]
        if not other:
            return "", 0
        self._refuse(sizes, other, self.bound[other[0]])
        return other[0], sizes[other[0]]

    def _refuse(self, sizes: Mapping[str, int], other: list[str], step: int) -> None:
        symbol = other[0]
        wrong = ", ".join(f"{s}={sizes[s]} (compiled for {self.bound[s]})" for s in other)
        if len(other) > 1 or sizes[symbol] % step:
            raise ParityError(
                f"the inputs have {wrong}, and cannot be split into calls of that size",
                hint=f"--dim {symbol}={sizes[symbol]}, or give inputs of the compiled size",
            )
        where = [axis for p in self.dynamic.inputs for axis in _axes(p, symbol)]
        outputs = [p for p in self.dynamic.outputs if len(_axes(p, symbol)) != 1]
        if any(where) or outputs:
            names = ", ".join(str(p) for p in outputs) or "an input's inner axis"
            raise ParityError(
                f"dimension {symbol!r} is not a plain batch ({names}): calls of {sizes[symbol]} "
                f"cannot be split into calls of {step}",
                hint=f"--dim {symbol}={sizes[symbol]}",
            )


def _part(tensors: Tensors, ports: Sequence[Port], symbol: str, start: int, step: int) -> Tensors:
    part = {}
    for port in ports:
        array = tensors[port.name]
        for axis in _axes(port, symbol):
            array = np.take(array, range(start, start + step), axis=axis)
        part[port.name] = np.ascontiguousarray(array).reshape(array.shape)
    return part


def _join(parts: Sequence[Tensors], port: Port, symbol: str) -> Array:
    (axis,) = _axes(port, symbol)
    return np.concatenate([part[port.name] for part in parts], axis=axis)


def load_inputs(path: Path, ports: Sequence[Port]) -> list[Tensors]:
    """Read calls from an .npz file, or a folder of .npz and .npy files, without pickle.

    Arrays are named as the inputs (a single input may have any name). An array holds one call;
    several along a new first axis; or several along its batch axis, if their number is a
    multiple of the port's. A folder holds one .npz per group of calls, or one .npy per input.
    Raises `UsageError` listing every fault of every file.
    """
    if path.is_dir():
        files = sorted(p for p in path.iterdir() if p.suffix in (".npz", ".npy"))
    elif path.is_file():
        files = [path]
    else:
        raise UsageError(f"{path}: no such file or folder")
    if not files:
        raise UsageError(f"{path}: no .npz or .npy files in it")
    faults: list[str] = []
    calls: list[Tensors] = []
    arrays = {p.stem: _read_npy(p, faults) for p in files if p.suffix == ".npy"}
    groups = [(path.name, {k: v for k, v in arrays.items() if v is not None})] if arrays else []
    groups += [(p.name, _read_npz(p, faults)) for p in files if p.suffix != ".npy"]
    for name, group in groups:
        calls += _calls(name, group, ports, faults)
    if faults:
        raise UsageError(
            f"{path}: inputs that do not fit:\n  " + "\n  ".join(faults),
            hint="the model takes " + ", ".join(map(str, ports)),
        )
    return calls


def _read_npy(path: Path, faults: list[str]) -> Array | None:
    try:
        array: Array = np.load(path, allow_pickle=False)
    except (ValueError, OSError, EOFError) as error:
        faults.append(f"{path.name}: not a plain numpy array: {error}")
        return None
    return array


def _read_npz(path: Path, faults: list[str]) -> dict[str, Array]:
    found: dict[str, Array] = {}
    try:
        with zipfile.ZipFile(path) as archive:
            infos = archive.infolist()
        bombs = [
            i.filename
            for i in infos
            if i.file_size > MAX_BYTES and i.file_size > MAX_RATIO * i.compress_size
        ]
        if bombs:
            faults.append(f"{path.name}: {', '.join(bombs)} inflates beyond reason (a zip bomb)")
            return found
        with np.load(path, allow_pickle=False) as data:
            for name in data.files:
                try:
                    found[name] = data[name]
                except (ValueError, OSError, EOFError, zipfile.BadZipFile) as error:
                    faults.append(f"{path.name}: {name}: not a plain numpy array: {error}")
    except (zipfile.BadZipFile, ValueError, OSError, EOFError, TypeError) as error:
        faults.append(f"{path.name}: not an .npz archive: {error}")
    return found


def _calls(
    file: str, arrays: Mapping[str, Array], ports: Sequence[Port], faults: list[str]
) -> list[Tensors]:
    if len(ports) == 1 and len(arrays) == 1:
        arrays = {ports[0].name: next(iter(arrays.values()))}
    before = len(faults)
    faults += [f"{file}: input {p.name!r} is missing" for p in ports if p.name not in arrays]
    known = {p.name for p in ports}
    faults += [f"{file}: the model has no input {n!r}" for n in arrays if n not in known]
    split = {p.name: _split(file, arrays[p.name], p, faults) for p in ports if p.name in arrays}
    counts = {name: len(parts) for name, parts in split.items()}
    if len(faults) == before and len(set(counts.values())) > 1:
        faults.append(f"{file}: different numbers of calls: {counts}")
    if len(faults) > before or not counts:
        return []
    return [dict(zip(split, parts, strict=True)) for parts in zip(*split.values(), strict=True)]


def _split(file: str, array: Array, port: Port, faults: list[str]) -> list[Array]:
    """Cut an array into calls, or report why it does not fit the port."""
    dtype = numpy_dtype(port.dtype)
    if array.dtype != dtype:
        if not (array.dtype == np.float64 and dtype.kind == "f") and not _lossless(array, dtype):
            faults.append(f"{file}: {port.name} is {array.dtype}, expected {port.dtype}")
            return []
        array = array.astype(dtype)
    rank = len(port.shape)
    if array.ndim == rank + 1 and _fits(array.shape[1:], port):
        return list(array)
    if array.ndim == rank and _fits(array.shape, port):
        return [array]
    batch = port.shape[0] if rank else None
    if array.ndim == rank and isinstance(batch, int) and array.shape[0] % batch == 0:
        parts = np.split(array, array.shape[0] // batch) if array.shape[0] else []
        if parts and all(_fits(p.shape, port) for p in parts):
            return list(parts)
    faults.append(f"{file}: {port.name} has shape {array.shape}, expected {port}")
    return []


def _lossless(array: Array, dtype: "np.dtype[Any]") -> bool:
    """Whether integers, such as numpy's default int64, keep their values in the port's type."""
    if array.dtype.kind not in "iu" or dtype.kind not in "iu":
        return False
    limits = np.iinfo(dtype)
    return bool(array.size == 0 or (array.min() >= limits.min and array.max() <= limits.max))


def _fits(shape: tuple[int, ...], port: Port) -> bool:
    pairs = itertools.zip_longest(shape, port.shape)
    return all(isinstance(want, str) or want == got for got, want in pairs)
