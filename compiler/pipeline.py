"""The whole of npuc: load → export → passes → quantize → lower → artifact → report."""

import difflib
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, cast, runtime_checkable

from npuc import artifact, calibrate, originals, outputs, plugins, record, stored
from npuc import samples as sampling
from npuc.answers import Reference
from npuc.artifact import Artifact
from npuc.errors import ArtifactError, OutputError, UsageError
from npuc.export import export
from npuc.jsonable import canonical
from npuc.load import Loaded, load
from npuc.manifest import Manifest
from npuc.members import PARITY, REFERENCE
from npuc.originals import Calls
from npuc.passes import standard
from npuc.passes.base import Pass, Watch, run
from npuc.policy import Policy
from npuc.profile import GRADES, Profile
from npuc.program import Program, Tensors
from npuc.progress import Progress, Silent
from npuc.report import Report, describe
from npuc.runners import OnnxRunner
from npuc.targets.base import Evidence, LowerOptions, Payload, Target
from npuc.validate import Validator

if TYPE_CHECKING:
    import torch

ANY = Profile("any", "no target in particular", {}, {})
"""What the standard passes see: they are the same for every target, and shared."""

STORED = 16
"""Calls an artifact carries, to be checked on again: it should not grow with the test set."""

CALIBRATION = 64
"""Recorded calls that quantization looks at unless told otherwise; more rarely moves a range."""


@runtime_checkable
class Finisher(Protocol):
    """A target whose vendor compiler can work from an artifact alone."""

    def finish(self, files: Mapping[str, bytes], options: LowerOptions, workdir: Path) -> Payload:
        """Return all members with the vendor's binary added."""
        ...


@dataclass(frozen=True, slots=True)
class Compiled:
    """One artifact and its parity report. A failed one is written too, to be looked into."""

    artifact_path: Path
    report: Report

    @property
    def passed(self) -> bool:
        """Whether every bar held."""
        return self.report.passed


@dataclass(frozen=True, slots=True)
class _Job:
    """What is common to all targets of one call."""

    name: str
    loaded: Loaded
    program: Program
    validator: Validator
    precision: str | None
    observer: str | None
    skip: tuple[str, ...]
    lowering: LowerOptions
    progress: Progress
    dump: Path | None
    dims: Mapping[str, int]


def compile(
    source: "str | Path | torch.nn.Module",
    *,
    target: str | Sequence[str],
    output: str | Path | None = None,
    precision: str | None = None,
    dims: Mapping[str, int] | None = None,
    calibration: Calls | None = None,
    samples: Calls | None = None,
    observer: str | None = None,
    inputs: Sequence[str] = (),
    model: str = "",
    model_path: str = "",
    trust_pickle: bool = False,
    eval_mode: bool = False,
    opset: int = 20,
    cpu: str = "native",
    fallback: str = "",
    require_vendor: bool = False,
    skip: Sequence[str] = (),
    dump: str | Path | None = None,
    timeout: float = 3600.0,
    policy: Policy | None = None,
    progress: Progress | None = None,
) -> list[Compiled]:
    """Compile a model for one or more targets and compare every step with the original.

    `source` is a file, ``zoo:NAME`` or a torch module. `samples` and `calibration` are files or
    calls (input name → array); by default what was recorded with the model. `dims` gives dynamic
    dimensions their size, by default that of the first sample. Artifacts are written even where
    the report fails. Raises `NpucError`; parity is not raised but reported, unless a step that
    must keep the answer changed it.
    """
    shown = progress or Silent()
    names = (target,) if isinstance(target, str) else tuple(target)
    targets = [plugins.find(name) for name in names]
    label = source if isinstance(source, str | Path) else type(source).__name__
    paths = outputs.artifact_paths(str(label), names, None if output is None else Path(output))
    _check_precision(targets, precision)
    options = LowerOptions(
        cpu=cpu, fallback=fallback, require_vendor=require_vendor, timeout=timeout
    )
    shown.stage("load")
    loaded = load(
        source, model=model, model_path=model_path, inputs=inputs,
        trust_pickle=trust_pickle, eval_mode=eval_mode,
    )  # fmt: skip
    if loaded.kind == "npuc":
        pairs = zip(targets, paths, strict=True)
        return [finish(Path(str(source)), t, path, options, policy) for t, path in pairs]

    shown.stage("export")
    exported = export(loaded, opset=opset, eval_mode=eval_mode)
    shown.stage("reference")
    reference = originals.find(loaded, exported, samples, calibration)
    bound, reference = originals.bind(loaded, exported, reference, dims or {})

    validator = Validator(exported, reference, policy or Policy(), shown)
    validator.export(originals.native(loaded))
    watch = _watching(validator, None if dump is None else Path(dump))
    program = run(exported, _traced(standard(bound), shown), ANY, watch)
    validator.settle(program)

    with tempfile.TemporaryDirectory(prefix="npuc-") as work:
        if any("torch" in t.profile.get("compiler.inputs", ()) for t in targets):
            options = replace(options, archive=_archive(loaded, reference, Path(work)))
        job = _Job(
            str(label), loaded, program, validator, precision, observer, tuple(skip),
            options, shown, None if dump is None else Path(dump), bound,
        )  # fmt: skip
        return [_compile_for(t, path, job) for t, path in zip(targets, paths, strict=True)]


def _compile_for(target: Target, path: Path, job: _Job) -> Compiled:
    """Take the common program the rest of the way for one target."""
    profile, shown = target.profile, job.progress
    precision = job.precision or profile.precisions[0]
    validator = job.validator.fork()
    watch = _watching(validator, job.dump and job.dump / target.name)

    program = run(job.program, _traced(_prepare(target), shown), profile, watch)
    if precision == "int8":
        quantize = _quantize(program, profile, job)
        program = run(program, _traced([quantize], shown), profile, watch)
    quantized = program
    numerics = target.numerics(precision)
    program = run(program, _traced(numerics, shown), profile, watch)
    validator.settle(program)

    shown.stage(f"lower for {target.name}")
    options = replace(job.lowering, precision=precision)
    with tempfile.TemporaryDirectory(prefix="npuc-") as work:
        payload = target.lower(program, options, Path(work))
    loss = precision == "int8" or bool(numerics)
    validator.artifact(target.runner(payload.files, program), program, loss)
    _alternatives(quantized, profile, numerics, validator)

    report = _report(job.name, target, precision, payload, validator, job.dims)
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
            PARITY: canonical(report.to_json()),
        }
        artifact.write(path, manifest, files)
    return Compiled(path, report)


def finish(
    source: Path, target: Target, path: Path, options: LowerOptions, policy: Policy | None = None
) -> Compiled:
    """Let the vendor's compiler finish an artifact's hand-over kit, and check the result again.

    Raises `UsageError` where the artifact is for another target or nothing is left to do,
    `ToolchainError` where the vendor's compiler is missing or fails.
    """
    opened = artifact.read(source)
    opened.verify()
    if opened.manifest.target != target.name:
        raise UsageError(
            f"{source} is compiled for {opened.manifest.target}, not for {target.name}",
            hint=f"compile the model itself: npuc compile MODEL --target {target.name}",
        )
    if not isinstance(target, Finisher):
        raise UsageError(f"{source}: for target {target.name} nothing is left to do")
    options = replace(options, precision=opened.manifest.precision)
    with tempfile.TemporaryDirectory(prefix="npuc-") as work:
        payload = target.finish(dict(opened), options, Path(work))
    manifest = replace(
        opened.manifest,
        evidence=payload.evidence,
        vendor=payload.vendor,
        toolchain={**opened.manifest.toolchain, **payload.toolchain},
        settings={**opened.manifest.settings, **payload.settings},
    )
    with tempfile.TemporaryDirectory(prefix="npuc-") as work:
        draft = artifact.write(Path(work) / "draft.npuc", manifest, payload.files)
        report = _verified(str(source), draft, target, artifact.program(draft), policy=policy)
        artifact.write(path, manifest, {**payload.files, PARITY: canonical(report.to_json())})
    return Compiled(path, report)


def verify(
    path: str | Path,
    *,
    samples: Calls | None = None,
    against: str | Path | None = None,
    policy: Policy | None = None,
) -> Report:
    """Check every byte of an artifact, run it, and compare it with the original's answers.

    The original's are those stored with the artifact; or, with `against`, those of a model file
    run here on the stored samples or on `samples`. Raises `ArtifactError` where it is damaged.
    """
    opened = artifact.read(Path(path))
    opened.verify()
    program = artifact.program(opened)
    reference = _stored(opened)
    if against is not None or samples is not None:
        if against is None:
            raise UsageError(
                "other samples need the original to answer them", hint="add --against MODEL"
            )
        loaded = load(str(against))
        calls = reference.samples if samples is None else originals.read(samples, program)
        reference = originals.answered(loaded, export(loaded), calls, ())
    target = plugins.find(opened.manifest.target)
    return _verified(str(path), opened, target, program, reference, policy)


def _prepare(target: Target) -> tuple[Pass, ...]:
    """Return the passes that a target needs before quantization."""
    from npuc.passes.lower_opset import LowerOpset

    limit = target.profile.opset_max
    return (*target.legalise(), *([LowerOpset(limit)] if limit else []))


def _quantize(program: Program, profile: Profile, job: _Job) -> Pass:
    from npuc.passes.quantize import Quantize

    scheme = profile.int_scheme
    if scheme is None:
        raise UsageError(f"target {profile.name!r} has no integer scheme")
    names = [node.name or "" for node in program.model.graph.all_nodes()]
    if unknown := [name for name in job.skip if name not in names]:
        near = [f"did you mean {n!r}?" for n in difflib.get_close_matches(unknown[0], names, 1)]
        hint = "".join(near) or "--dump FOLDER writes every program"
        raise UsageError(f"--skip: there is no node {', '.join(map(repr, unknown))}", hint=hint)
    job.progress.stage(f"calibrate for {profile.name}")
    reference = job.validator.reference
    calls = _parts(reference.calibration[:CALIBRATION], program, job.validator.exported)
    ranges = calibrate.collect(
        program, calls, scheme, observer=job.observer, progress=job.progress.advance
    )
    return Quantize(ranges, job.skip)


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


def _report(
    name: str, target: Target, precision: str, payload: Payload, validator: Validator,
    dims: Mapping[str, int],
) -> Report:  # fmt: skip
    fingerprint = validator.reference.fingerprint
    notes = [*payload.notes, *validator.notes]
    if str(fingerprint.get("inputs")).startswith("random inputs"):
        notes.append("answers are compared on RANDOM inputs: give real ones with --samples")
        if precision == "int8" and "calibration" not in fingerprint:
            notes.append(
                "ranges come from RANDOM inputs: they say nothing about real data; "
                "give --calibration"
            )
    return Report(
        model=name, target=target.name, precision=precision, evidence=payload.evidence,
        vendor=payload.vendor, reference=describe(fingerprint), rows=tuple(validator.rows),
        assumed=_assumed(target.profile, precision), notes=tuple(notes), dims=dims,
        placement=payload.placement, fingerprint=fingerprint,
    )  # fmt: skip


def _assumed(profile: Profile, precision: str) -> Mapping[str, str]:
    """Return what the numbers rest on that no public source states."""
    kinds = ("float.", "int8.") if precision == "int8" else ("float.",)
    return {
        key: f"{fact.value} ({GRADES[fact.grade]})"
        for key, fact in profile.assumed.items()
        if key.startswith(kinds)
    }


def _stored(opened: Artifact) -> Reference:
    if REFERENCE not in opened:
        raise ArtifactError(f"{opened.path} holds no reference to compare with")
    return stored.decode(opened[REFERENCE])


def _verified(
    name: str, opened: Artifact, target: Target, program: Program,
    reference: Reference | None = None, policy: Policy | None = None,
) -> Report:  # fmt: skip
    """Run an artifact and its stored program on stored calls."""
    manifest = opened.manifest
    validator = Validator(program, reference or _stored(opened), policy or Policy(), Silent())
    loss = manifest.precision == "int8" or any(s.name == "round-floats" for s in manifest.steps)
    validator.artifact(target.runner(opened, program), program, loss)
    payload = Payload(
        {}, cast(Evidence, manifest.evidence), manifest.toolchain, manifest.vendor,
        manifest.placement, manifest.notes,
    )  # fmt: skip
    return _report(name, target, manifest.precision, payload, validator, {})


def _archive(loaded: Loaded, reference: Reference, folder: Path) -> Path | None:
    """Return a torch.export archive of the original, written here where the source is none."""
    if loaded.kind == "pt2":
        return loaded.path
    if loaded.program is not None:
        return None
    path = folder / "model.pt2"
    record.write(loaded.captured, reference, path)
    return path


def _check_precision(targets: Sequence[Target], precision: str | None) -> None:
    wrong = [t for t in targets if precision and precision not in t.profile.precisions]
    if wrong:
        listed = "; ".join(f"{t.name} has {', '.join(t.profile.precisions)}" for t in wrong)
        raise UsageError(f"precision {precision!r} is not available: {listed}")
