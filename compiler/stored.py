"""References as bytes and files of their own: read back without torch.

Safetensors with one metadata entry. Tensors are named ``sample/<call>/<input>``,
``output/<call>/<output>``, ``calibration/<call>/<input>`` and ``inner/<call>/<module>``.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from npuc.answers import Floor, Noise, Reference, identified
from npuc.atomic import atomic_write
from npuc.errors import ArtifactError, LoadError, UsageError
from npuc.inputs import numpy_dtype
from npuc.jsonable import canonical, plain
from npuc.program import Tensors
from npuc.text import size

FORMAT = 2
"""1 kept neither the two parts of the noise nor intermediates, and had no id."""

LIMIT = 256_000_000
"""Bytes of inputs and answers in a reference: it is committed, copied and loaded as a whole."""

_HEADER = 100_000_000  # bytes, safetensors' own limit
_KEY = "npuc"  # one metadata entry: safetensors writes several in random order


def encode(reference: Reference) -> bytes:
    """Return a reference as safetensors; equal values, equal bytes."""
    from safetensors.numpy import save

    return bytes(save(tensors(reference), {_KEY: canonical(about(reference)).decode()}))


def decode(data: bytes) -> Reference:
    """Read `encode`'s bytes; raises `ArtifactError` where they are not."""
    try:
        length = int.from_bytes(data[:8], "little")
        stated = json.loads(json.loads(data[8 : 8 + length])["__metadata__"][_KEY])
        return build(stated, arrays(data))
    except Exception as error:  # safetensors' own error type is not public
        raise ArtifactError(f"the stored reference is malformed: {error!r}") from error


def write(reference: Reference, path: Path) -> None:
    """Write a file that holds a reference and no model; raises `OutputError`."""
    with atomic_write(path) as part:
        part.write_bytes(encode(reference))


def read(path: Path) -> Reference:
    """Read a reference from its own file, or from a recorded model, whose model is not opened.

    Raises `UsageError` where there is no such file, `LoadError` where it is damaged or has none.
    """
    from npuc import record

    try:
        data = path.read_bytes()
    except OSError as error:
        raise UsageError(f"cannot read {path}: {error.strerror}") from error
    if data.startswith(b"PK"):
        found = record.read(path)
        if found is None:
            raise LoadError(
                f"{path} holds no recorded answers",
                hint=f"npuc record {path} --inputs X.npz --reference {path.stem}.ref",
            )
        return found
    try:
        return verified(decode(data))
    except (ArtifactError, ValueError) as error:
        raise LoadError(
            f"{path} is no reference, or damaged: {error}",
            hint="copy it again, or record it again: npuc record MODEL --inputs X.npz "
            f"--reference {path.name}",
        ) from error


def is_reference(path: Path) -> bool:
    """Whether a file is one that `write` wrote; only its header is read."""
    if not path.is_file():
        return False
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if not 2 <= length <= _HEADER:
            return False
        try:
            head = json.loads(file.read(length))
        except (ValueError, RecursionError):
            return False
    stated = head.get("__metadata__") if isinstance(head, dict) else None
    return isinstance(stated, dict) and _KEY in stated


def verified(reference: Reference) -> Reference:
    """Return it; raises `ValueError` where its content is not what its id says."""
    stated = reference.fingerprint.get("id")
    found = identified(reference).id
    if stated is not None and stated != found:
        raise ValueError(f"its content has id {found[:12]}, it was recorded as {stated[:12]}")
    return reference


def about(reference: Reference) -> dict[str, Any]:
    """Return all of a reference but its tensors, in JSON types."""
    shared = reference.calibration is reference.samples
    inside = reference.intermediates
    return {
        "format": FORMAT,
        "inputs": list(reference.samples[0]),
        "outputs": list(reference.outputs[0]),
        "calls": len(reference.samples),
        "calibration": None if shared else len(reference.calibration),
        "axes": {n: {str(a): d for a, d in x.items()} for n, x in reference.axes.items()},
        "floor": plain(_floors(reference.floor)),
        "noise": _noise(reference.noise),
        "inner": [list(call) for call in inside],
        "inner_noise": _noise(reference.inner),
        "fingerprint": plain(reference.fingerprint),
    }


def tensors(reference: Reference) -> dict[str, "np.ndarray[Any, Any]"]:
    """Return the tensors of a reference by the names they are stored under."""
    shared = reference.calibration is reference.samples
    groups = {
        "sample": reference.samples,
        "output": reference.outputs,
        "calibration": () if shared else reference.calibration,
        "inner": reference.intermediates,
    }
    return {
        f"{group}/{index}/{name}": np.ascontiguousarray(array).reshape(array.shape)
        for group, calls in groups.items()
        for index, call in enumerate(calls)
        for name, array in call.items()
    }


def build(stated: Mapping[str, Any], found: Mapping[str, "np.ndarray[Any, Any]"]) -> Reference:
    """Put a reference together again; raises `ValueError` for another format."""
    version = stated.get("format", 1)
    if version not in (1, FORMAT):
        raise ValueError(f"format {version!r}, this npuc reads {FORMAT} and older")
    count = stated["calls"] if "calls" in stated else stated["samples"]
    samples = _calls(found, "sample", count, stated["inputs"])
    data = stated.get("calibration", 0)
    inside = stated.get("inner", [])
    return Reference(
        samples=samples,
        outputs=_calls(found, "output", count, stated["outputs"]),
        floor=_read_floors(stated["floor"]),
        fingerprint=stated["fingerprint"],
        calibration=samples
        if data is None
        else _calls(found, "calibration", data, stated["inputs"]),
        axes={n: {int(a): d for a, d in x.items()} for n, x in stated.get("axes", {}).items()},
        noise=_read_noise(stated.get("noise")),
        intermediates=tuple(
            {name: found[f"inner/{i}/{name}"] for name in names} for i, names in enumerate(inside)
        ),
        inner=_read_noise(stated.get("inner_noise")),
    )


def arrays(data: bytes) -> dict[str, "np.ndarray[Any, Any]"]:
    """Read safetensors' bytes; raises whatever safetensors does where they are damaged."""
    import safetensors

    deserialize: Callable[[bytes], Any] = safetensors.deserialize
    return {name: _array(**parts) for name, parts in deserialize(data)}


def bounded(reference: Reference, limit: int) -> None:
    """Raise `UsageError` where a reference is larger than `limit` bytes; says what would fit."""
    pairs = zip(reference.samples, reference.outputs, strict=True)
    per = [sum(a.nbytes for call in pair for a in call.values()) for pair in pairs]
    total = sum(a.nbytes for a in tensors(reference).values())
    if total <= limit:
        return
    fixed = total - sum(per)
    fit, used = 0, fixed
    while fit < len(per) and used + per[fit] <= limit:
        used, fit = used + per[fit], fit + 1
    parts = f"{len(per)} samples with their answers, {size(sum(per))}"
    parts += f", and {size(fixed)} of calibration inputs and intermediates" if fixed else ""
    fewer = f"record the first {fit}" if fit else "fewer calibration inputs or intermediates"
    needed = -(-total // 10**6)
    raise UsageError(
        f"the reference is {size(total)}, more than the {size(limit)} allowed: {parts}\n  "
        f"{fit} of the {len(per)} samples would fit",
        hint=f"{fewer}, or allow more: --max-size {needed}MB, max_bytes={needed}_000_000",
    )


def _floors(floors: Mapping[str, Floor]) -> dict[str, Any]:
    return {name: asdict(floor) for name, floor in floors.items()}


def _read_floors(stated: Mapping[str, Any]) -> dict[str, Floor]:
    return {n: Floor(**{k: float(v) for k, v in parts.items()}) for n, parts in stated.items()}


def _noise(noise: Noise | None) -> Any:
    if noise is None:
        return None
    return plain({"rounding": _floors(noise.rounding), "spread": _floors(noise.spread)})


def _read_noise(stated: Mapping[str, Any] | None) -> Noise | None:
    if stated is None:
        return None
    return Noise(_read_floors(stated["rounding"]), _read_floors(stated["spread"]))


def _array(dtype: str, shape: Sequence[int], data: bytes) -> "np.ndarray[Any, Any]":
    """Read one tensor; safetensors' own numpy loader does not know bfloat16."""
    kind = {"F": "float", "I": "int", "U": "uint", "C": "complex", "BF": "bfloat"}
    letters = dtype.rstrip("0123456789")
    name = "bool" if dtype == "BOOL" else kind[letters] + dtype[len(letters) :]
    return np.frombuffer(data, numpy_dtype(name)).reshape(shape).copy()


def _calls(
    found: Mapping[str, "np.ndarray[Any, Any]"], group: str, count: int, names: Sequence[str]
) -> tuple[Tensors, ...]:
    return tuple({name: found[f"{group}/{i}/{name}"] for name in names} for i in range(count))
