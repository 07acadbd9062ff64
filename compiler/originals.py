"""Find the original's answers to what a compile shall be checked on, running it where needed."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from npuc import answers
from npuc import reference as references
from npuc import samples as sampling
from npuc.answers import Reference
from npuc.errors import ParityError, UsageError
from npuc.load import Loaded
from npuc.program import Program, Tensors
from npuc.quantization import checkpoint
from npuc.runners import OnnxRunner

Calls = str | Path | Sequence[Tensors]
"""An .npz file or a folder of them, or calls in memory (input name → array)."""


TABLE = "a table"
"""What the fingerprint says of calibration where ranges come from a file: no sample was used."""


def find(
    loaded: Loaded, exported: Program, samples: Calls | None, calibration: Calls | None
) -> Reference:
    """Return the recorded answers, or those of the original run here on the samples given."""
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
        fingerprint = {**reference.fingerprint, "calibration": "given"}
        reference = replace(reference, calibration=data, fingerprint=fingerprint)
    answers.check(reference, exported)
    return reference


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

    def sized(call: Tensors) -> Tensors:
        for symbol, size in bound.items():
            call = sampling.resize(call, exported, symbol, size)
        return call

    calls = tuple(map(sized, reference.samples))
    data = tuple(map(sized, reference.calibration))
    again = answered(loaded, exported, calls, data)
    kept = {k: v for k, v in reference.fingerprint.items() if k == "calibration"}
    what = f"{reference.fingerprint.get('inputs', 'given')}, resized and answered here"
    return bound, replace(again, fingerprint={**again.fingerprint, **kept, "inputs": what})


def answered(
    loaded: Loaded, exported: Program, calls: Sequence[Tensors], data: Sequence[Tensors]
) -> Reference:
    """Run the original here."""
    if loaded.program is not None:
        return answers.from_program(exported, calls, data)
    return references.from_module(loaded, calls, data)


def cut(reference: Reference, program: Program, exported: Program, limit: int) -> Reference:
    """Return the first `limit` calls and answers, at the program's fixed shapes."""
    split = sampling.Rebatched(OnnxRunner(program), program, exported)
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
    rebatched: Any = sampling.Rebatched(_nobody, fixed, exported)  # type: ignore[arg-type]
    try:
        for call in (*reference.samples, *reference.calibration):
            rebatched.parts(call, call)
    except ParityError:
        return False
    return True


def _nobody(inputs: Tensors) -> Tensors:
    raise AssertionError("only the shapes are asked for")


def held_out(reference: Reference, limit: int) -> list[Tensors]:
    """Return of the first `limit` samples those that calibration did not look at."""
    if reference.fingerprint.get("calibration") == TABLE:
        return list(reference.samples[:limit])
    seen = {checkpoint.key((), [call]) for call in reference.calibration}
    return [c for c in reference.samples[:limit] if checkpoint.key((), [c]) not in seen]
