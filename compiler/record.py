"""Write and read the one file that carries a model and what it answered where it was trained.

The file is a torch.export archive, which torch.export.load reads, with two more members under
``npuc/``: ``reference.json`` (names, fingerprint, noise, hash of the other member) and
``samples.safetensors`` (inputs, outputs, calibration inputs and intermediates). Neither holds a
pickle. The same reference can be written to a file of its own, without the model (`npuc.stored`).
"""

import contextlib
import hashlib
import io
import json
import os
import random
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, cast

import numpy as np

from npuc import stored, summary, trust
from npuc.answers import Reference, from_program, run
from npuc.answers import record as record_reference
from npuc.atomic import atomic_write
from npuc.calls import as_call, as_samples
from npuc.capture import Captured, capture
from npuc.errors import ExportError, LoadError, UsageError
from npuc.program import Tensors
from npuc.quiet import quiet
from npuc.zips import open_zip, strip_root

if TYPE_CHECKING:
    import torch
    from torch.export import ExportedProgram

    from npuc.load import Loaded


def save(
    model: "torch.nn.Module",
    example_inputs: Any,
    path: str | os.PathLike[str],
    *,
    calibration: Any = None,
    samples: Any = None,
    dynamic_shapes: Any = None,
    intermediates: Sequence[str] = (),
    reference: str | os.PathLike[str] | None = None,
    max_bytes: int = stored.LIMIT,
    strict: bool = False,
) -> Reference:
    """Save a trained model with its own answers, for ``npuc compile`` on any machine.

    `example_inputs` is a tensor, a tuple of tensors, or a dict of keyword arguments. `samples`
    are inputs whose answers are recorded (default: the example), `calibration` inputs for
    quantization (default: the samples): an iterable of calls, such as a DataLoader, of which
    as many leading entries as the model has inputs are taken; or one tensor holding them along
    its first axis. `dynamic_shapes` as for torch.export, names allowed: ``{"x": {0: "batch"}}``.

    `intermediates` are modules (``"features.3"``) whose results are kept as well, of the first
    calls. With `reference` the answers are also written to that file alone, without the model,
    for ``npuc verify --reference``. With `strict` a reference that cannot be trusted as it is
    (TF32, autocast, …: `npuc.trust`) is refused.

    The model is copied first: its mode, device, gradients, buffers and the random states of
    torch, numpy and Python are as before. Raises `ExportError` for a model in train mode, with
    random operators, or that torch cannot capture, `UsageError` for more than `max_bytes` of
    inputs and answers, and `OutputError`; no file is touched then.
    """
    import torch

    args, kwargs = _alone(as_call(example_inputs))
    with _untouched():
        captured = capture(model, args, kwargs, dynamic_shapes)
        example = captured.signature.flatten(args, kwargs)
        chosen = tuple(as_samples(samples, captured, example, "samples")) or (example,)
        data = tuple(as_samples(calibration, captured, example, "calibration")) or chosen
        _foresee(captured, chosen, data, max_bytes)
        # The seed only here, where the training script may have set it. In a process that sets
        # none it is drawn at random, and a compile would not give the same bytes twice.
        found = record_reference(
            captured, chosen, data, "recorded by npuc.save", tuple(intermediates),
            seed=torch.initial_seed(),
        )  # fmt: skip
        stored.bounded(found, max_bytes)
        trust.require(found, strict)
        write(captured, found, Path(path))
    if summary.beside(Path(path)).exists():
        summary.write(found, Path(path))
    if reference is not None:
        write_reference(found, Path(reference))
    return found


def _alone(call: Any) -> Any:
    """Copy tensors that are a part of a larger one: a file would hold all of it, a data set say."""
    import torch
    from torch.utils import _pytree as pytree

    def copied(tensor: "torch.Tensor") -> "torch.Tensor":
        whole = tensor.untyped_storage().nbytes() <= tensor.numel() * tensor.element_size()
        return tensor if whole else tensor.clone()

    return pytree.tree_map_only(torch.Tensor, copied, call)


def record(
    loaded: "Loaded",
    inputs: "Path | Sequence[Tensors]",
    out: Path | None = None,
    calibration: "Path | Sequence[Tensors]" = (),
    *,
    reference: Path | None = None,
    intermediates: Sequence[str] = (),
    max_bytes: int = stored.LIMIT,
    strict: bool = False,
) -> Reference:
    """Record a loaded model's answers on `inputs` (an .npz path or arrays, as `calibration`).

    With the model into `out`, alone into `reference`, each with its summary beside it. An ONNX
    model has a reference alone. Raises as `save` does.
    """
    if out is not None and loaded.program is not None:
        raise UsageError(
            f"-o {out} is for torch models; {loaded.name} is ONNX",
            hint="record its answers alone: --reference FILE",
        )
    found = answered(loaded, inputs, calibration, intermediates, max_bytes)
    stored.bounded(found, max_bytes)
    trust.require(found, strict)
    if out is not None:
        with _untouched():
            write(loaded.captured, found, out)
        summary.write(found, out)
    if reference is not None:
        write_reference(found, reference)
    return found


def answered(
    loaded: "Loaded",
    inputs: "Path | Sequence[Tensors]",
    calibration: "Path | Sequence[Tensors]" = (),
    intermediates: Sequence[str] = (),
    max_bytes: int = stored.LIMIT,
) -> Reference:
    """Answer `inputs` with a loaded model; nothing is written."""
    from npuc.samples import load_inputs

    if isinstance(inputs, Path):
        inputs = load_inputs(inputs, ports_of(loaded))
    if isinstance(calibration, Path):
        calibration = load_inputs(calibration, ports_of(loaded))
    samples, what = tuple(inputs), "recorded by npuc record"
    data = tuple(calibration) or samples
    if not samples:
        raise UsageError("there is not one sample to record")
    if loaded.program is None:
        with _untouched():
            _foresee(loaded.captured, samples, data, max_bytes)
            return record_reference(loaded.captured, samples, data, what, tuple(intermediates))
    if intermediates:
        raise UsageError(
            f"{loaded.name} is ONNX: it has no modules, and so no intermediates to record"
        )
    return from_program(loaded.program, samples, data, what)


def _foresee(
    captured: Captured, samples: tuple[Tensors, ...], data: tuple[Tensors, ...], limit: int
) -> None:
    """Raise `UsageError` before the long work where one call shows that all would be too large."""
    first = run(captured, samples[0])
    stored.bounded(Reference(samples, (first,) * len(samples), {}, {}, data), limit)


def write_reference(reference: Reference, path: Path) -> None:
    """Write a reference to a file of its own, and its summary beside it."""
    stored.write(reference, path)
    summary.write(reference, path)


def ports_of(loaded: "Loaded") -> "tuple[Any, ...]":
    """Return the input ports of a loaded model."""
    return ports(loaded.captured) if loaded.program is None else loaded.program.inputs


def ports(captured: Captured) -> "tuple[Any, ...]":
    """Return the input ports of a captured model."""
    from npuc.program import Port

    found = {n.name: n.meta["val"] for n in captured.program.graph.nodes if n.op == "placeholder"}
    return tuple(
        Port(
            name,
            str(found[name].dtype).removeprefix("torch."),
            tuple(
                captured.axes.get(name, {}).get(axis, str(size))
                if not isinstance(size, int)
                else size
                for axis, size in enumerate(found[name].shape)
            ),
        )
        for name in captured.signature.input_names
    )


def write(captured: Captured, reference: Reference, path: Path) -> None:
    """Write the archive atomically, as a model on the CPU; raises `OutputError`, `ExportError`."""
    import torch

    _to_cpu(captured.program)
    tensors, header = _encode(reference)
    with atomic_write(path) as part:
        with part.open("wb") as file:
            sink = _Sink(file)
            try:
                with quiet():
                    torch.export.save(captured.program, cast(IO[bytes], sink))
            except NotImplementedError as error:  # containers that have no name in a file
                raise ExportError(
                    f"torch cannot save what the model takes or returns: {error}",
                    hint="return plain tuples or dicts: tuple(torch.topk(x, 3))",
                ) from error
            if sink.error is not None:
                raise sink.error
        with zipfile.ZipFile(part, "a", zipfile.ZIP_STORED) as archive:
            root = archive.namelist()[0].split("/")[0]
            for name, data in (("reference.json", header), ("samples.safetensors", tensors)):
                # A fixed date: the same model gives the same bytes.
                archive.writestr(zipfile.ZipInfo(f"{root}/npuc/{name}"), data)


def _to_cpu(program: "ExportedProgram") -> None:
    """Move a program that was captured on a GPU: torch loads it only where it finds the device."""
    import torch
    from torch.utils import _pytree as pytree

    held = (program.state_dict, program.constants, program.example_inputs)
    devices = {t.device.type for t in pytree.tree_leaves(held) if isinstance(t, torch.Tensor)}
    devices |= {
        torch.device(node.kwargs["device"]).type
        for node in program.graph.nodes
        if node.kwargs.get("device") is not None
    }
    if devices - {"cpu", "meta"}:
        from torch.export.passes import move_to_device_pass

        move_to_device_pass(program, "cpu")


class _Sink(io.RawIOBase):
    """Passes bytes on to a file and keeps its first error for later.

    torch's C++ archive writer ends the whole process (std::terminate) when a write fails.
    """

    def __init__(self, file: IO[bytes]) -> None:
        self.file = file
        self.error: OSError | None = None

    def writable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = 0) -> int:
        return 0  # torch rewinds for a reader; there is none

    def write(self, data: Any) -> int:
        if self.error is None:
            try:
                self.file.write(data)
            except OSError as error:
                self.error = error
        return memoryview(data).nbytes


def read(path: Path) -> Reference | None:
    """Read what `save` recorded; None for an archive without it, `LoadError` if damaged."""
    with open_zip(path) as archive:
        root, names = strip_root(archive.namelist())
        if "npuc/reference.json" not in names:
            return None
        try:
            header = json.loads(archive.read(f"{root}/npuc/reference.json"))
            data = archive.read(f"{root}/npuc/samples.safetensors")
            return _decode(header, data)
        except (*_DAMAGED, zipfile.BadZipFile, _unreadable()) as error:
            raise LoadError(
                f"{path}: the recorded reference is damaged: {type(error).__name__}: {error}",
                hint="save the model again with npuc.save",
            ) from error


_DAMAGED = (ValueError, KeyError, TypeError, AttributeError, RecursionError)


def _unreadable() -> type[Exception]:
    from safetensors import SafetensorError

    return SafetensorError


def _encode(reference: Reference) -> tuple[bytes, bytes]:
    from safetensors.numpy import save as dump

    data = bytes(dump(stored.tensors(reference)))
    header = {**stored.about(reference), "sha256": hashlib.sha256(data).hexdigest()}
    return data, json.dumps(header, indent=1, sort_keys=True).encode()


def _decode(header: Mapping[str, Any], data: bytes) -> Reference:
    if hashlib.sha256(data).hexdigest() != header["sha256"]:
        raise ValueError("its samples have another hash than recorded")
    return stored.verified(stored.build(header, stored.arrays(data)))


@contextlib.contextmanager
def _untouched() -> Iterator[None]:
    """Give back the random states of Python, numpy and torch as they were."""
    import torch

    python, numpy = random.getstate(), np.random.get_state()
    cpu = torch.get_rng_state()
    live = torch.cuda.is_initialized()  # type: ignore[no-untyped-call]
    cuda = torch.cuda.get_rng_state_all() if live else []
    try:
        yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)
        torch.set_rng_state(cpu)
        if cuda:
            torch.cuda.set_rng_state_all(cuda)
