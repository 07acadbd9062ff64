"""Write and read the one file that carries a model and what it answered where it was trained.

The file is a torch.export archive, which torch.export.load reads, with two more members under
``npuc/``: ``reference.json`` (names, fingerprint, noise floor, hash of the other member) and
``samples.safetensors`` (inputs, outputs and calibration inputs). Neither holds a pickle.
"""

import contextlib
import hashlib
import io
import json
import os
import random
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, cast

import numpy as np

from npuc.answers import Floor, Reference
from npuc.answers import record as record_reference
from npuc.atomic import atomic_write
from npuc.calls import as_call, as_samples
from npuc.capture import Captured, capture
from npuc.errors import LoadError
from npuc.program import Tensors
from npuc.quiet import quiet
from npuc.zips import open_zip, strip_root

if TYPE_CHECKING:
    import torch

    from npuc.load import Loaded

FORMAT = 1


def save(
    model: "torch.nn.Module",
    example_inputs: Any,
    path: str | os.PathLike[str],
    *,
    calibration: Any = None,
    samples: Any = None,
    dynamic_shapes: Any = None,
) -> Reference:
    """Save a trained model with its own answers, for ``npuc compile`` on any machine.

    `example_inputs` is a tensor, a tuple of tensors, or a dict of keyword arguments. `samples`
    are inputs whose answers are recorded (default: the example), `calibration` inputs for
    quantization (default: the samples): an iterable of calls, such as a DataLoader, of which
    as many leading entries as the model has inputs are taken; or one tensor holding them along
    its first axis. `dynamic_shapes` as for torch.export, names allowed: ``{"x": {0: "batch"}}``.

    The model is copied first: its mode, device, gradients, buffers and the random states of
    torch, numpy and Python are as before. Raises `ExportError` for a model in train mode, with
    random operators, or that torch cannot capture, and `OutputError`; `path` then is untouched.
    """
    args, kwargs = as_call(example_inputs)
    with _untouched():
        captured = capture(model, args, kwargs, dynamic_shapes)
        example = captured.signature.flatten(args, kwargs)
        chosen = tuple(as_samples(samples, captured, example, "samples")) or (example,)
        data = tuple(as_samples(calibration, captured, example, "calibration")) or chosen
        what = "recorded by npuc.save"
        reference = _seeded(record_reference(captured, chosen, data, what))
        write(captured, reference, Path(path))
    return reference


def _seeded(reference: Reference) -> Reference:
    """Note torch's seed, which the training script may have set.

    Only here: in a process that sets none it is drawn at random, and a compile would not give
    the same bytes twice.
    """
    import torch

    return replace(reference, fingerprint={**reference.fingerprint, "seed": torch.initial_seed()})


def record(
    loaded: "Loaded",
    inputs: "Path | Sequence[Tensors]",
    out: Path,
    calibration: Sequence[Tensors] = (),
) -> Reference:
    """Record a loaded model's answers on `inputs` (an .npz path or arrays) into `out`."""
    from npuc.samples import load_inputs

    captured = loaded.captured
    if isinstance(inputs, Path):
        inputs = load_inputs(inputs, ports(captured))
    samples = tuple(inputs)
    with _untouched():
        reference = record_reference(
            captured, samples, tuple(calibration) or samples, "recorded by npuc record"
        )
        write(captured, reference, out)
    return reference


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
    """Write the archive atomically; raises `OutputError`."""
    import torch

    tensors, header = _encode(reference)
    with atomic_write(path) as part:
        with part.open("wb") as file:
            sink = _Sink(file)
            with quiet():
                torch.export.save(captured.program, cast(IO[bytes], sink))
            if sink.error is not None:
                raise sink.error
        with zipfile.ZipFile(part, "a", zipfile.ZIP_STORED) as archive:
            root = archive.namelist()[0].split("/")[0]
            for name, data in (("reference.json", header), ("samples.safetensors", tensors)):
                # A fixed date: the same model gives the same bytes.
                archive.writestr(zipfile.ZipInfo(f"{root}/npuc/{name}"), data)


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
        except (ValueError, KeyError, TypeError, RecursionError, zipfile.BadZipFile) as error:
            raise LoadError(
                f"{path}: the recorded reference is damaged: {type(error).__name__}: {error}",
                hint="save the model again with npuc.save",
            ) from error


def _encode(reference: Reference) -> tuple[bytes, bytes]:
    from safetensors.torch import save as dump

    from npuc.signature import to_tensor

    shared = reference.calibration is reference.samples
    groups = {
        "sample": reference.samples,
        "output": reference.outputs,
        "calibration": () if shared else reference.calibration,
    }
    tensors = dump(
        {
            f"{group}/{index}/{name}": to_tensor(array).contiguous()
            for group, calls in groups.items()
            for index, call in enumerate(calls)
            for name, array in call.items()
        }
    )
    header = {
        "format": FORMAT,
        "inputs": list(reference.samples[0]),
        "outputs": list(reference.outputs[0]),
        "samples": len(reference.samples),
        "calibration": None if shared else len(reference.calibration),
        "axes": reference.axes,
        "floor": {name: asdict(floor) for name, floor in reference.floor.items()},
        "fingerprint": reference.fingerprint,
        "sha256": hashlib.sha256(tensors).hexdigest(),
    }
    return tensors, json.dumps(header, indent=1, sort_keys=True).encode()


def _decode(header: Mapping[str, Any], data: bytes) -> Reference:
    from safetensors.torch import load as parse

    from npuc.signature import to_array

    if header["format"] != FORMAT:
        raise ValueError(f"format {header['format']!r}, this npuc reads {FORMAT}")
    if hashlib.sha256(data).hexdigest() != header["sha256"]:
        raise ValueError("its samples have another hash than recorded")
    tensors = parse(data)

    def calls(group: str, count: int, names: Sequence[str]) -> tuple[Tensors, ...]:
        return tuple(
            {name: to_array(tensors[f"{group}/{i}/{name}"]) for name in names} for i in range(count)
        )

    samples = calls("sample", header["samples"], header["inputs"])
    shared = header["calibration"] is None
    return Reference(
        samples=samples,
        outputs=calls("output", header["samples"], header["outputs"]),
        floor={name: Floor(**floor) for name, floor in header["floor"].items()},
        fingerprint=header["fingerprint"],
        calibration=samples
        if shared
        else calls("calibration", header["calibration"], header["inputs"]),
        axes={n: {int(a): d for a, d in axes.items()} for n, axes in header["axes"].items()},
    )


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
