"""One target's part of the pipeline: prepare, quantize, lower, check, write."""

import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from npuc import (
    artifact,
    estimate,
    originals,
    partition,
    source_lines,
    stored,
)
from npuc import samples as sampling
from npuc.beside import beside
from npuc.errors import NpucError, OutputError
from npuc.jsonable import canonical
from npuc.kept import Kept
from npuc.layers import measure as layers
from npuc.manifest import Manifest
from npuc.members import PARITY, REFERENCE
from npuc.mixed import auto
from npuc.mixed.outcome import Mixed
from npuc.passes.base import Pass, Watch, run
from npuc.profile import FLOATS, UNCODED, Profile
from npuc.program import Program, Tensors
from npuc.progress import Progress
from npuc.quantization.coders import Coder, coder
from npuc.quantization.quantizer import Choices, Quantizer
from npuc.report import Compiled
from npuc.runners import OnnxRunner
from npuc.targets.base import Handover, LowerOptions, Target
from npuc.validate import Validator

AUTO = "auto"
"""The precision that is searched for: int8, and float where the policy needs it."""

HELD_OUT = 16
"""Calls that ranges are held against after calibration: a misfit shows on the first few."""

STORED = 16
"""Calls an artifact carries, to be checked on again: it should not grow with the test set."""

CODED = 64
"""Calls of calibration whose ranges the codes are held to: all that are recorded."""

Looked = bool | Literal["failed"]
"""Whether layers are measured: of every program, of none, or of those that do not pass."""

CALIBRATION = 64
"""Recorded samples that quantization looks at; more rarely moves a range. All that the user gives
for calibration are looked at."""


@dataclass(frozen=True, slots=True)
class Placing:
    """What the user allows to stay on the host (see `npuc.partition.require`)."""

    host: bool
    contract: Mapping[str, int | None]


@dataclass(frozen=True, slots=True)
class Job:
    """What is common to all targets of one call."""

    name: str
    program: Program
    validator: Validator
    precision: str | None
    choices: Choices
    lowering: LowerOptions
    progress: Progress
    dump: Path | None
    dims: Mapping[str, int]
    archive: Path | None
    placing: Placing
    budget: float | None = None
    layers: Looked = False
    call: Mapping[str, Any] = field(default_factory=dict)
    kept: Kept | None = None


@dataclass(frozen=True, slots=True)
class _Placed:
    """A float program as one target takes it, before quantization."""

    target: Target
    path: Path
    profile: Profile
    precision: str
    program: Program
    calls: Sequence[Tensors]
    numerics: Sequence[Pass]


def compile_for(target: Target, path: Path, job: Job) -> Compiled:
    """Take the common program the rest of the way for one target."""
    shown, precision = job.progress, job.precision or target.profile.precisions[0]
    precision = "int8" if precision == AUTO else precision
    profile = target.profile.at(precision)
    validator = job.validator.fork()
    watch = watching(validator, job.dump and job.dump / target.name)

    program = run(job.program, traced(prepare(target), shown), profile, watch)
    partition.require(
        program.model, target.name, fallback=job.placing.host, contract=job.placing.contract
    )
    reference = job.validator.reference
    calls = _parts(reference.calibration, program, job.validator.exported)
    if "calibration" not in reference.fingerprint:
        calls = calls[:CALIBRATION]
    numerics = target.numerics(precision)
    placed = _Placed(target, path, profile, precision, program, calls, numerics)
    if precision in UNCODED:
        return _finish(job, placed, validator)
    if precision in FLOATS:
        floats = coder(precision, program, calls, profile, job.choices, shown)
        return _finish(job, placed, validator, floats)
    seen = () if reference.fingerprint.get("calibration") == originals.TABLE else calls
    quantizer = Quantizer(
        program, seen, profile, job.choices, watch=watch, progress=shown, kept=job.kept
    )
    placed = replace(placed, program=quantizer.prepared)
    if job.budget is None:
        return _finish(job, placed, validator, quantizer)

    def keep(found: Mixed) -> None:  # whatever ends the search, there is an artifact
        quick = replace(job, dump=None, lowering=replace(job.lowering, vendor="skip"), layers=False)
        _finish(quick, placed, validator, quantizer, found)

    fixed = None if not job.placing.host else tuple(job.placing.contract)
    mixed = auto.find(quantizer, numerics, validator, job.budget, keep, shown, fixed)
    return _finish(job, placed, validator, quantizer, mixed)


def _finish(
    job: Job,
    at: _Placed,
    validator: Validator,
    quantizer: Quantizer | Coder | None = None,
    mixed: Mixed | None = None,
) -> Compiled:
    """Quantize, lower, check and write one program; the report is its own."""
    target, path, profile, precision = at.target, at.path, at.profile, at.precision
    names = () if mixed is None else mixed.names
    if isinstance(quantizer, Quantizer):
        at = replace(at, program=quantizer.floats(names))
    shown, program, numerics, validator = job.progress, at.program, at.numerics, validator.fork()
    later = _Later(watching(validator, job.dump and job.dump / target.name))
    handover = Handover(program, at.calls, precision, archive=job.archive)
    if quantizer is not None:
        program = quantizer.program(names, later)
        handover = replace(handover, quantized=program)
    quantized = program
    program = later.run(program, numerics, profile, shown)
    options = replace(job.lowering, precision=precision, handover=handover)
    shown.stage(f"lower for {target.name}")
    with (
        tempfile.TemporaryDirectory(prefix="npuc-") as work,
        beside(lambda: target.lower(program, options, Path(work))) as lowered,
    ):
        if quantizer is not None:
            others = originals.held_out(validator.reference, HELD_OUT)
            validator.notes += quantizer.notes(_parts(others, at.program, validator.exported))
        later.check()
        validator.settle(program)
        if isinstance(quantizer, Quantizer):
            validator.coded(at.program, quantized, at.calls[:CODED], quantizer.scheme)
        shown.stage(f"lower for {target.name}")
        payload = lowered()
    loss = precision != "float" or bool(numerics)
    if payload.runs_here:
        floats = any(item.name == "round-floats" for item in numerics)
        validator.artifact(target.runner(payload.files, program), program, loss, floats)
    else:
        validator.unrun(f"compiled for another CPU ({options.cpu}); this machine cannot run it")
    _alternatives(quantized, profile, numerics, validator)

    if mixed is not None and payload.vendor:
        validator.notes += mixed.handed()
    report = validator.report(job.name, profile, precision, payload, job.dims)
    bound = estimate.estimate(handover.program, profile, precision)
    crossing = partition.crossings(at.program.model)
    report = replace(report, crossings=crossing, estimate=bound, mixed=mixed, call=job.call)
    shown.stage(f"write {path.name}")
    stored_calls = originals.cut(validator.reference, program, validator.exported, STORED)
    manifest = Manifest(
        target.name, precision, payload.evidence, program.inputs, program.outputs,
        vendor=payload.vendor, toolchain=payload.toolchain, steps=program.steps,
        placement=payload.placement, notes=payload.notes, settings=payload.settings,
    )  # fmt: skip
    with tempfile.TemporaryDirectory(prefix="npuc-") as work:
        files: dict[str, bytes | Path] = {
            **artifact.model_files(program, Path(work)),
            **payload.files,
            REFERENCE: stored.encode(stored_calls),
            PARITY: canonical(report.timeless.to_json()),
        }
        artifact.write(path, manifest, files)
    # Not in the artifact, which is the same whether anyone looked or not.
    if job.layers is True or (job.layers == "failed" and not report.passed):
        shown.stage("measure layers")
        report = replace(report, layers=_layers(at, quantized, program, validator, quantizer))
    return Compiled(path, report)


def _layers(
    at: _Placed,
    quantized: Program,
    program: Program,
    validator: Validator,
    quantizer: Quantizer | Coder | None,
) -> layers.Layers:
    """Compare what runs with the float program, on what the report's numbers are of."""
    samples = validator.reference.samples[: layers.CALLS]
    calls = _parts(samples, at.program, validator.exported)[: layers.CALLS]
    places = source_lines.known(validator.exported.model)
    if quantizer is None:
        return layers.measure(at.program, program, calls, places=places)
    observer = quantizer.ranges.observer if isinstance(quantizer, Quantizer) else layers.FLOATS
    return layers.measure(
        at.program, quantized, calls, device=program if at.numerics else None,
        observer=observer, places=places,
    )  # fmt: skip


@dataclass
class _Later:
    """Keeps the steps of passes that no check can undo: lowering need not wait for their checks."""

    watch: Watch
    steps: list[tuple[Pass, Program, Program]] = field(default_factory=list)

    def __call__(self, item: Pass, before: Program, after: Program) -> None:
        self.steps.append((item, before, after))

    def run(
        self, program: Program, passes: Sequence[Pass], profile: Profile, shown: Progress
    ) -> Program:
        """Run a device's own passes; where a check may undo one, everything is checked now."""
        if not any(item.optional for item in passes):
            return run(program, traced(passes, shown), profile, self)
        self.check()
        return run(program, traced(passes, shown), profile, self.watch)

    def check(self) -> None:
        """Check all steps since the last time, in order; raises what `watch` raises."""
        steps, self.steps = self.steps, []
        for item, before, after in steps:
            try:
                self.watch(item, before, after)
            except NpucError as error:
                error.add_note(f"in pass {item.name!r}, after {[s.name for s in before.steps]}")
                raise


def prepare(target: Target) -> tuple[Pass, ...]:
    """Return the passes that a target needs before quantization."""
    from npuc.passes.lower_opset import LowerOpset
    from npuc.passes.place import Place

    limit = target.profile.opset_max
    return (*target.legalise(), *([LowerOpset(limit)] if limit else []), Place())


def _parts(calls: Sequence[Tensors], program: Program, exported: Program) -> list[Tensors]:
    """Cut calls into the program's fixed shapes."""
    cut = sampling.Rebatched(originals.nobody, program, exported)
    return [part for call in calls for part in cut.parts(call, call)]


def watching(validator: Validator, dump: Path | None) -> Watch:
    """Return the hook that checks every pass, and writes each program where that is asked for."""
    if dump is None:
        return validator.watch

    def watch(item: Pass, before: Program, after: Program) -> None:
        validator.watch(item, before, after)
        try:
            dump.mkdir(parents=True, exist_ok=True)
            after.save(dump / f"{len(after.steps):02}-{item.name}.onnx")
        except OSError as error:
            raise OutputError(f"cannot write {dump}: {error.strerror}") from error

    return watch


def traced(passes: Iterable[Pass], shown: Progress) -> Iterator[Pass]:
    for item in passes:
        shown.stage(item.name)
        yield item


def _alternatives(
    quantized: Program, profile: Profile, numerics: Sequence[Pass], validator: Validator
) -> None:
    """Show what the device's other possible float formats would answer (ONNX Runtime runs them)."""
    from npuc.passes.round_floats import RoundFloats

    for form in profile.float_formats[1:] if numerics else ():
        other = run(quantized, [RoundFloats(form)], profile)
        runner = OnnxRunner(other, form.name)
        answered = validator.answers(runner, other, validator.reference.samples)
        validator.add(f"if floats are {form.name}", answered, None)
