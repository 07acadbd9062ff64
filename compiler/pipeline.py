"""The whole of npuc: load → export → passes → quantize → lower → artifact → report."""

import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from npuc import (
    artifact,
    estimate,
    originals,
    outputs,
    partition,
    plugins,
    recheck,
    record,
    source_lines,
    stored,
)
from npuc import samples as sampling
from npuc.answers import Reference
from npuc.errors import NpucError, OutputError, UsageError
from npuc.export import export
from npuc.jsonable import canonical
from npuc.layers import measure as layers
from npuc.load import Loaded, load
from npuc.manifest import Manifest
from npuc.members import PARITY, REFERENCE
from npuc.mixed import auto
from npuc.mixed.outcome import Mixed
from npuc.originals import Calls
from npuc.passes import standard
from npuc.passes.base import Pass, Watch, run
from npuc.policy import Policy
from npuc.profile import FLOATS, Profile
from npuc.program import Program, Tensors
from npuc.progress import Progress, Silent
from npuc.quantization import calibrator
from npuc.quantization import rounding as learned
from npuc.quantization.coders import Coder, coder
from npuc.quantization.quantizer import Choices, Quantizer
from npuc.recheck import verify
from npuc.report import Compiled
from npuc.runners import OnnxRunner
from npuc.targets.base import Handover, LowerOptions, Target
from npuc.validate import Validator

if TYPE_CHECKING:
    import torch

__all__ = ["Compiled", "compile", "verify"]

ANY = Profile("any", "no target in particular", {}, {})
"""What the standard passes see: they are the same for every target, and shared."""

HELD_OUT = 16
"""Calls that ranges are held against after calibration: a misfit shows on the first few."""

STORED = 16
"""Calls an artifact carries, to be checked on again: it should not grow with the test set."""

AUTO = "auto"
"""The precision that is searched for: int8, and float where the policy needs it."""

CALIBRATION = 64
"""Recorded samples that quantization looks at; more rarely moves a range. All that the user gives
for calibration are looked at."""


@dataclass(frozen=True, slots=True)
class Placing:
    """What the user allows to stay on the host (see `npuc.partition.require`)."""

    host: bool
    contract: Mapping[str, int | None]


@dataclass(frozen=True, slots=True)
class _Job:
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
    layers: bool = False


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


def compile(
    source: "str | Path | torch.nn.Module",
    *,
    target: str | Sequence[str],
    output: str | Path | None = None,
    precision: str | None = None,
    budget: float | None = None,
    dims: Mapping[str, int] | None = None,
    calibration: Calls | None = None,
    samples: Calls | None = None,
    observer: str | None = None,
    calibration_table: str | Path | None = None,
    rounding: str | None = None,
    inputs: Sequence[str] = (),
    model: str = "",
    model_path: str = "",
    trust_pickle: bool = False,
    eval_mode: bool = False,
    opset: int = 20,
    cpu: str = "native",
    fallback: str = "",
    host: bool = True,
    on_target: Sequence[str] = (),
    vendor: Literal["use", "require", "skip"] = "use",
    skip: Sequence[str] = (),
    equalize: bool = True,
    correct_bias: bool = True,
    layers: bool = False,
    dump: str | Path | None = None,
    timeout: float = 3600.0,
    policy: Policy | None = None,
    progress: Progress | None = None,
    failed: Callable[[str, NpucError], None] | None = None,
) -> list[Compiled]:
    """Compile a model for one or more targets and compare every step with the original.

    `source` is a file, ``zoo:NAME`` or a torch module. `samples` and `calibration` are files or
    calls (input name → array); by default what was recorded with the model. `dims` gives dynamic
    dimensions their size, by default that of the first sample. What a device cannot run stays on
    its host, unless `host` is False; `on_target` says what must not (``Conv,MatMul=all``).
    With `layers` every report says what each layer loses, which takes some runs.
    `budget` is how many seconds precision "auto" may search for each target, by default 300.
    Artifacts are written even where the report fails. Raises `NpucError`; parity is not raised
    but reported, unless a step that must keep the answer changed it. With `failed` one target's
    error is given to it, with the target's name, and the other targets go on.
    """
    shown = progress or Silent()
    names = (target,) if isinstance(target, str) else tuple(target)
    targets = [plugins.find(name) for name in names]
    label = source if isinstance(source, str | Path) else type(source).__name__
    paths = outputs.artifact_paths(str(label), names, None if output is None else Path(output))
    _check_precision(targets, precision)
    kinds = {precision or item.profile.precisions[0] for item in targets}
    table = calibrator.path_of(calibration_table, names, kinds)
    budget = _budget(precision, budget)
    wanted = Placing(host, partition.contract(on_target))
    options = LowerOptions(cpu=cpu, fallback=fallback, vendor=vendor, timeout=timeout)
    shown.stage("load")
    loaded = load(
        source, model=model, model_path=model_path, inputs=inputs,
        trust_pickle=trust_pickle, eval_mode=eval_mode,
    )  # fmt: skip
    if loaded.kind == "npuc":
        pairs = zip(targets, paths, strict=True)
        return [recheck.finish(Path(str(source)), t, path, options, policy) for t, path in pairs]

    shown.stage("export")
    exported = export(loaded, opset=opset, eval_mode=eval_mode)
    shown.stage("reference")
    reference = originals.find(loaded, exported, samples, calibration)
    if table is not None and table.exists() and calibration is None:
        fingerprint = {**reference.fingerprint, "calibration": originals.TABLE}
        reference = replace(reference, fingerprint=fingerprint)
    bound, reference = originals.bind(loaded, exported, reference, dims or {})

    validator = Validator(exported, reference, policy or Policy(), shown)
    validator.export(originals.native(loaded))
    watch = _watching(validator, None if dump is None else Path(dump))
    program = run(exported, _traced(standard(bound), shown), ANY, watch)
    validator.settle(program)

    with tempfile.TemporaryDirectory(prefix="npuc-") as work:
        takes_torch = any("torch" in t.profile.get("compiler.inputs", ()) for t in targets)
        choices = Choices(
            observer, tuple(skip), equalize, correct_bias,
            table=table, rounding=rounding or learned.DEFAULT,
        )  # fmt: skip
        job = _Job(
            str(label), program, validator, precision, choices, options, shown,
            None if dump is None else Path(dump), bound,
            _archive(loaded, reference, Path(work)) if takes_torch else None, wanted, budget,
            layers,
        )  # fmt: skip
        return list(_each(zip(targets, paths, strict=True), job, failed))


def _each(
    targets: Iterable[tuple[Target, Path]],
    job: _Job,
    failed: Callable[[str, NpucError], None] | None,
) -> Iterator[Compiled]:
    for target, path in targets:
        try:
            yield _compile_for(target, path, job)
        except NpucError as error:
            if failed is None:
                raise
            failed(target.name, error)


def _compile_for(target: Target, path: Path, job: _Job) -> Compiled:
    """Take the common program the rest of the way for one target."""
    shown, precision = job.progress, job.precision or target.profile.precisions[0]
    precision = "int8" if precision == AUTO else precision
    profile = target.profile.at(precision)
    validator = job.validator.fork()
    watch = _watching(validator, job.dump and job.dump / target.name)

    program = run(job.program, _traced(prepare(target), shown), profile, watch)
    partition.require(
        program.model, target.name, fallback=job.placing.host, contract=job.placing.contract
    )
    reference = job.validator.reference
    calls = _parts(reference.calibration, program, job.validator.exported)
    if "calibration" not in reference.fingerprint:
        calls = calls[:CALIBRATION]
    numerics = target.numerics(precision)
    placed = _Placed(target, path, profile, precision, program, calls, numerics)
    if precision == "float":
        return _finish(job, placed, validator)
    if precision in FLOATS:
        floats = coder(precision, program, calls, profile, job.choices, shown)
        return _finish(job, placed, validator, floats)
    seen = () if reference.fingerprint.get("calibration") == originals.TABLE else calls
    quantizer = Quantizer(program, seen, profile, job.choices, watch=watch, progress=shown)
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
    job: _Job,
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
    watch = _watching(validator, job.dump and job.dump / target.name)
    handover = Handover(program, at.calls, precision, archive=job.archive)
    if quantizer is not None:
        program = quantizer.program(names, watch)
        others = originals.held_out(validator.reference, HELD_OUT)
        validator.notes += quantizer.notes(_parts(others, at.program, validator.exported))
        handover = replace(handover, quantized=program)
    quantized = program
    program = run(program, _traced(numerics, shown), profile, watch)
    validator.settle(program)

    shown.stage(f"lower for {target.name}")
    options = replace(job.lowering, precision=precision, handover=handover)
    with tempfile.TemporaryDirectory(prefix="npuc-") as work:
        payload = target.lower(program, options, Path(work))
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
    report = replace(report, crossings=crossing, estimate=bound, mixed=mixed)
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
    if job.layers:  # not in the artifact, which is the same whether anyone looked or not
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


def prepare(target: Target) -> tuple[Pass, ...]:
    """Return the passes that a target needs before quantization."""
    from npuc.passes.lower_opset import LowerOpset
    from npuc.passes.place import Place

    limit = target.profile.opset_max
    return (*target.legalise(), *([LowerOpset(limit)] if limit else []), Place())


def _parts(calls: Sequence[Tensors], program: Program, exported: Program) -> list[Tensors]:
    """Cut calls into the program's fixed shapes."""
    cut = sampling.Rebatched(OnnxRunner(program), program, exported)
    return [part for call in calls for part in cut.parts(call, call)]


def _watching(validator: Validator, dump: Path | None) -> Watch:
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


def _traced(passes: Iterable[Pass], shown: Progress) -> Iterator[Pass]:
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


def _archive(loaded: Loaded, reference: Reference, folder: Path) -> Path | None:
    """Return a torch.export archive of the original, written here where the source is none."""
    if loaded.kind == "pt2":
        return loaded.path
    if loaded.program is not None:
        return None
    path = folder / "model.pt2"
    record.write(loaded.captured, reference, path)
    return path


def _budget(precision: str | None, seconds: float | None) -> float | None:
    """Return the seconds that a search may take, None where there is none."""
    if precision != AUTO and seconds is not None:
        raise UsageError("--budget is for --precision auto: nothing else searches")
    if seconds is not None and not seconds > 0:
        raise UsageError(f"--budget {seconds:g}: a search needs some time")
    return None if precision != AUTO else auto.BUDGET if seconds is None else seconds


def _check_precision(targets: Sequence[Target], precision: str | None) -> None:
    def known(target: Target) -> tuple[str, ...]:
        named = target.profile.precisions
        return (*named, AUTO) if "int8" in named else named

    wrong = [t for t in targets if precision and precision not in known(t)]
    if wrong:
        listed = "; ".join(f"{t.name} has {', '.join(known(t))}" for t in wrong)
        raise UsageError(f"precision {precision!r} is not available: {listed}")
