"""Find the original's answers to what a compile shall be checked on, running it where needed."""

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from npuc import answers, stored
from npuc import reference as references
from npuc import samples as sampling
from npuc.answers import Reference
from npuc.errors import ParityError, UsageError
from npuc.load import Loaded
from npuc.program import Port, Program, Tensors
from npuc.quantization import checkpoint
from npuc.signature import to_tensor

Calls = str | Path | Sequence[Tensors]
"""An .npz file or a folder of them, or calls in memory (input name → array)."""


TABLE = "a table"
"""What the fingerprint says of calibration where ranges come from a file: no sample was used."""


def find(
    loaded: Loaded, exported: Program, samples: Calls | None, calibration: Calls | None
) -> Reference:
    """Return the recorded answers, or those of the original run here on the samples given.

    Raises `ParityError` listing all faults where a recorded reference is of another program.
    """
    given = () if samples is None else read(samples, exported)
    data = () if calibration is None else read(calibration, exported)
    for what, calls, found in (("samples", samples, given), ("calibration", calibration, data)):
        if calls is not None and not found:
            place = f" in {calls}" if isinstance(calls, str | Path) else ""
            raise UsageError(f"--{what}: there is not one sample{place}")
    if given and loaded.program is None:
        recorded = loaded.reference.calibration if loaded.reference else ()
        reference = references.from_module(loaded, given, data or recorded)
    else:
        reference = references.of(loaded, exported, given, data)
    if data:
        # The id stays that of the recorded answers: they are what is compared with.
        fingerprint = {**reference.fingerprint, "calibration": "given"}
        reference = replace(reference, calibration=data, fingerprint=fingerprint)
    answers.check(reference, exported)
    return reference


def with_reference(loaded: Loaded, path: str | Path, samples: Calls | None = None) -> Loaded:
    """Return a loaded model with a reference that lies in a file of its own.

    A model that does not say what its inputs look like (weights, a module) takes the first
    recorded call as its example. Raises `UsageError` beside `samples`: recorded answers belong to
    recorded inputs.
    """
    if samples is not None:
        raise UsageError(
            "recorded answers belong to recorded inputs: there cannot be other samples",
            hint="leave one of --samples and --reference out",
        )
    reference = stored.read(Path(path))
    return replace(exemplified(loaded, reference), reference=reference)


def exemplified(loaded: Loaded, reference: Reference) -> Loaded:
    """Give a module without example inputs those of a reference, dynamic axes included."""
    module = loaded.script if loaded.script is not None else loaded.module
    if module is None or loaded.args or loaded.kwargs:
        return loaded
    call = reference.samples[0]
    known = _parameters(module)
    order = [name for name in known if name in call]
    strange = [name for name in call if name not in order]
    if strange:
        raise UsageError(
            f"{loaded.name}: recorded inputs that forward() does not have: {', '.join(strange)}",
            hint="--input name:1x3x224x224:float32 for each input",
        )
    tensors = {name: to_tensor(call[name]) for name in order}
    leading = order == known[: len(order)]
    args, kwargs = (tuple(tensors.values()), {}) if leading else ((), tensors)
    shapes = {name: dict(reference.axes.get(name, {})) or None for name in order}
    dynamic = shapes if any(shapes.values()) else None
    return replace(loaded, args=args, kwargs=kwargs, dynamic_shapes=dynamic)


def _parameters(module: Any) -> list[str]:
    if hasattr(module.forward, "schema"):  # TorchScript
        from npuc.torchscript import parameters

        return parameters(module)
    return list(inspect.signature(module.forward).parameters)


def spread_out(program: Program, reference: Reference) -> Program:
    """Return a compiled program's ports with the batch open, where recorded calls are larger.

    An artifact has fixed shapes and does not know which axis was the batch: it is the first axis
    of inputs that the reference calls dynamic, and the one axis of each output that differs. For
    `Validator`, which then runs recorded calls in parts. Raises `ParityError` listing every
    misfit.
    """
    call, answer = reference.samples[0], reference.outputs[0]
    free = {name for name, axes in reference.axes.items() if 0 in axes}

    def opened(port: Port, array: Any, allowed: bool) -> Port:
        if array is None or array.ndim != len(port.shape):
            return port
        pairs = enumerate(zip(array.shape, port.shape, strict=True))
        other = [axis for axis, (got, want) in pairs if got != want]
        if not allowed or len(other) != 1:
            return port
        shape = tuple(_BATCH if i in other else n for i, n in enumerate(port.shape))
        return replace(port, shape=shape)

    inputs = tuple(
        opened(p, call.get(p.name), p.name in free)
        if p.name in call and call[p.name].shape[:1] != p.shape[:1]
        else p
        for p in program.inputs
    )
    split = inputs != program.inputs
    outputs = tuple(opened(p, answer.get(p.name), split) for p in program.outputs)
    dynamic = replace(program, inputs=inputs, outputs=outputs)
    answers.check(reference, dynamic)
    return dynamic


_BATCH = "batch"


def read(calls: Calls, program: Program) -> tuple[Tensors, ...]:
    """Read calls from files, or check those in memory; raises `UsageError` for misfits and NaN."""
    if isinstance(calls, str | Path):
        found = tuple(sampling.load_inputs(Path(calls), program.inputs))
    else:
        found = tuple(calls)
    for call in found:
        sampling.bind_check(call, program)
    # Not Inf, which a mask may hold: NaN is nothing that an answer could be compared on.
    faults = [
        f"call {index}: {name} holds {bad} NaN"
        for index, call in enumerate(found)
        for name, array in call.items()
        if (bad := int((array != array).sum()))
    ]
    if faults:
        place = f"{calls}: " if isinstance(calls, str | Path) else ""
        raise UsageError(
            f"{place}inputs that are no numbers:\n  " + "\n  ".join(faults),
            hint="leave these calls out, or find out where their NaN comes from",
        )
    return found


def native(loaded: Loaded) -> Callable[[Tensors], Tensors] | None:
    """Return a function that answers as the original does; None where that is an ONNX file."""
    if loaded.program is not None:
        return None
    captured = loaded.captured
    return lambda call: answers.run(captured, call)


def bind(
    loaded: Loaded, exported: Program, reference: Reference, dims: Mapping[str, int]
) -> tuple[Mapping[str, int], Reference]:
    """Give every dynamic dimension a size, and return a reference that can be checked at it.

    The user's `dims` come first, then the sizes of the first sample. Where recorded calls cannot
    be cut into calls of that size, the original is run here on the same data at that size.
    """
    sizes = sampling.sizes_of(reference.samples[0], exported)
    bound = {**sizes, **dims}
    fixed = replace(
        exported,
        inputs=tuple(
            replace(p, shape=tuple(bound.get(d, d) if isinstance(d, str) else d for d in p.shape))
            for p in exported.inputs
        ),
    )
    unknown = [name for name in dims if name not in sizes]
    if unknown or _fits(reference, exported, fixed):
        return bound, reference  # an unknown name is for FixShapes to explain

    def sized(every: Sequence[Tensors]) -> tuple[Tensors, ...]:
        """Give calls the bound sizes; where one grows, by what the calls after it hold."""
        found = []
        for index, call in enumerate(every):
            others = (*every[index + 1 :], *every[:index])
            for symbol, size in bound.items():
                call = sampling.resize(call, exported, symbol, size, others)
            found.append(call)
        return tuple(found)

    calls, data = sized(reference.samples), sized(reference.calibration)
    again = answered(loaded, exported, calls, data)
    kept = {k: v for k, v in reference.fingerprint.items() if k == "calibration"}
    what = f"{reference.fingerprint.get('inputs', 'given')}, resized and answered here"
    again = replace(again, fingerprint={**again.fingerprint, **kept, "inputs": what})
    return bound, answers.identified(again)


def answered(
    loaded: Loaded, exported: Program | None, calls: Sequence[Tensors], data: Sequence[Tensors]
) -> Reference:
    """Run the original here; `exported` is what runs of an ONNX file, and of no other model."""
    if loaded.program is not None and exported is not None:
        return answers.from_program(exported, calls, data)
    return references.from_module(loaded, calls, data)


def cut(reference: Reference, program: Program, exported: Program, limit: int) -> Reference:
    """Return the first `limit` calls and answers, at the program's fixed shapes."""
    split = sampling.Rebatched(nobody, program, exported)
    samples: list[Tensors] = []
    outputs: list[Tensors] = []
    for call, answer in zip(reference.samples, reference.outputs, strict=True):
        samples += split.parts(call, call)
        outputs += split.parts(call, answer)
        if len(samples) >= limit:
            break
    return replace(
        reference, samples=tuple(samples[:limit]), outputs=tuple(outputs[:limit]), calibration=()
    )


def _fits(reference: Reference, exported: Program, fixed: Program) -> bool:
    rebatched = sampling.Rebatched(nobody, fixed, exported)
    try:
        for call in (*reference.samples, *reference.calibration):
            rebatched.parts(call, call)
    except ParityError:
        return False
    return True


class _Nobody:
    """Stands where a call is cut into parts and not run."""

    name = "nobody"

    def __call__(self, inputs: Tensors) -> Tensors:
        raise AssertionError("only the shapes are asked for")


nobody = _Nobody()


def held_out(reference: Reference, limit: int) -> list[Tensors]:
    """Return of the first `limit` samples those that calibration did not look at."""
    if reference.fingerprint.get("calibration") == TABLE:
        return list(reference.samples[:limit])
    seen = {checkpoint.key((), [call]) for call in reference.calibration}
    return [c for c in reference.samples[:limit] if checkpoint.key((), [c]) not in seen]
