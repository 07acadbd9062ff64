"""Defects of the runtime or the device: memory, dice, batches, wrong buffers."""

from collections.abc import Callable
from typing import Any

import numpy as np
from seams import Answer, Fault, running

from npuc.program import Tensors

Runner = Callable[[Tensors], Tensors]


def _fault(
    name: str, model: str, what: str, like: str, make: Callable[[], Answer],
    precision: str = "float", **call: Any,
) -> Fault:  # fmt: skip
    return Fault(
        name,
        model,
        "cpu",
        precision,
        "lowering",
        "artifact",
        what,
        like,
        running(make),
        call,
        sited=False,
    )


def _keeps_state() -> Answer:
    """Add a thousandth of the answer before, as a buffer that is not cleared does."""
    before: dict[str, Any] = {}

    def answer(inputs: Tensors, inner: Runner) -> Tensors:
        found = dict(inner(inputs))
        for name, array in found.items():
            kept = before.get(name)
            before[name] = array
            if kept is not None and kept.shape == array.shape:
                found[name] = array + np.asarray(1e-3 * kept, array.dtype)
        return found

    return answer


def _stale_input() -> Answer:
    """Read the call before where the shape is the same: the new one was not copied yet."""
    kept: list[Tensors] = []

    def answer(inputs: Tensors, inner: Runner) -> Tensors:
        kept.append(inputs)
        return inner(kept[-2] if len(kept) > 1 else inputs)

    return answer


def _races() -> Answer:
    """On every other run one value misses its last addend."""
    runs = [0]

    def answer(inputs: Tensors, inner: Runner) -> Tensors:
        found = {name: np.array(array) for name, array in inner(inputs).items()}
        runs[0] += 1
        if runs[0] % 2 == 0:
            first = next(iter(found.values())).reshape(-1)
            first[0] -= np.abs(first).max() * 2e-3
        return found

    return answer


def _second_of_batch() -> Answer:
    def answer(inputs: Tensors, inner: Runner) -> Tensors:
        found = {name: np.array(array) for name, array in inner(inputs).items()}
        for array in found.values():
            if len(array) > 1:
                array[1] = array[0]
        return found

    return answer


def _nan_masked() -> Answer:
    """Answer 0 where a value came out as no number: the largest of a call, by overflow."""

    def answer(inputs: Tensors, inner: Runner) -> Tensors:
        found = {name: np.array(array) for name, array in inner(inputs).items()}
        for array in found.values():
            flat = array.reshape(-1)
            flat[int(np.abs(flat).argmax())] = 0
        return found

    return answer


def _as_half() -> Answer:
    """Hand results over in half precision."""

    def answer(inputs: Tensors, inner: Runner) -> Tensors:
        return {n: a.astype(np.float16).astype(a.dtype) for n, a in inner(inputs).items()}

    return answer


def _neighbour_rows() -> Answer:
    """Read two results of one size from each other's place."""

    def answer(inputs: Tensors, inner: Runner) -> Tensors:
        found = {name: np.array(array) for name, array in inner(inputs).items()}
        for array in found.values():
            array[..., [0, 1]] = array[..., [1, 0]]
        return found

    return answer


FAULTS: tuple[Fault, ...] = (
    _fault(
        "keeps-state", "digits-lstm", "something of the call before is left in a buffer",
        "AWS Neuron: KV cache not cleared", _keeps_state, "int8",
    ),
    _fault(
        "stale-input", "digits-resnet", "the runtime computes on the input of the call before",
        "tinygrad/tinygrad#7606", _stale_input,
    ),
    _fault(
        "races", "chirp-keyword", "two threads add into one value",
        "NVIDIA/TensorRT#4730: not the same twice", _races, "int8",
    ),
    _fault(
        "second-of-batch", "digits-resnet", "the second sample of a batch gets the first's answer",
        "NVIDIA/TensorRT#4607: one sample only", _second_of_batch, "int8", dims={"batch": 2},
    ),
    _fault(
        "nan-masked", "digits-detector", "a value that overflowed is handed over as 0",
        "pytorch/executorch: nan_to_num in a delegate", _nan_masked,
    ),
    _fault(
        "results-in-half", "digits-unet", "results are handed over in half precision",
        "openvinotoolkit/openvino#30666: inference precision hint", _as_half,
    ),
    _fault(
        "neighbours-swapped", "digits-detector", "two channels of a result change places",
        "OODTE: outputs swapped", _neighbour_rows, "int8",
    ),
)  # fmt: skip
