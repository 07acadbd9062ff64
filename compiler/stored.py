"""The reference an artifact carries: what it was checked on, read back without torch."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from npuc.errors import ArtifactError
from npuc.inputs import numpy_dtype
from npuc.jsonable import canonical, plain
from npuc.program import Tensors
from npuc.reference import Floor, Reference

_KEY = "npuc"  # one metadata entry: safetensors writes several in random order


def encode(reference: Reference) -> bytes:
    """Return samples, outputs, floor and fingerprint as safetensors; equal values, equal bytes.

    Tensors are named ``sample/<call>/<input>`` and ``output/<call>/<output>``. Calibration inputs
    are left out: they are not needed to check the artifact again.
    """
    from safetensors.numpy import save

    groups = {"sample": reference.samples, "output": reference.outputs}
    tensors = {
        f"{group}/{index}/{name}": np.ascontiguousarray(array).reshape(array.shape)
        for group, calls in groups.items()
        for index, call in enumerate(calls)
        for name, array in call.items()
    }
    about = {
        "inputs": list(reference.samples[0]),
        "outputs": list(reference.outputs[0]),
        "calls": len(reference.samples),
        "floor": plain({name: asdict(floor) for name, floor in reference.floor.items()}),
        "fingerprint": plain(reference.fingerprint),
    }
    return bytes(save(tensors, {_KEY: canonical(about).decode()}))


def decode(data: bytes) -> Reference:
    """Read `encode`'s bytes; raises `ArtifactError` where they are not."""
    import safetensors

    deserialize: Callable[[bytes], Any] = safetensors.deserialize
    try:
        length = int.from_bytes(data[:8], "little")
        about = json.loads(json.loads(data[8 : 8 + length])["__metadata__"][_KEY])
        tensors = {name: _array(**parts) for name, parts in deserialize(data)}
        count = about["calls"]
        floor = {
            name: Floor(**{k: float(v) for k, v in parts.items()})
            for name, parts in about["floor"].items()
        }
        return Reference(
            samples=_calls(tensors, "sample", count, about["inputs"]),
            outputs=_calls(tensors, "output", count, about["outputs"]),
            floor=floor,
            fingerprint=about["fingerprint"],
        )
    except Exception as error:  # safetensors' own error type is not public
        raise ArtifactError(f"the stored reference is malformed: {error!r}") from error


def _array(dtype: str, shape: Sequence[int], data: bytes) -> np.ndarray[Any, Any]:
    """Read one tensor; safetensors' own numpy loader does not know bfloat16."""
    kind = {"F": "float", "I": "int", "U": "uint", "C": "complex", "BF": "bfloat"}
    letters = dtype.rstrip("0123456789")
    name = "bool" if dtype == "BOOL" else kind[letters] + dtype[len(letters) :]
    return np.frombuffer(data, numpy_dtype(name)).reshape(shape)


def _calls(
    tensors: Mapping[str, np.ndarray[Any, Any]], group: str, count: int, names: Sequence[str]
) -> tuple[Tensors, ...]:
    return tuple({name: tensors[f"{group}/{i}/{name}"] for name in names} for i in range(count))
