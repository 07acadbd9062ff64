"""The whole of npuc: load → export → passes → quantize → lower → artifact → report."""

import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from npuc import (
    inner,
    originals,
    outputs,
    partition,
    plugins,
    recheck,
    record,
    trust,
)
from npuc.answers import Reference
from npuc.asked import asked
from npuc.errors import NpucError, UsageError
from npuc.export import export
from npuc.front import Front
from npuc.kept import Kept
from npuc.load import Loaded, load
from npuc.mixed import auto
from npuc.originals import Calls
from npuc.passes import standard
from npuc.passes.base import run
from npuc.per_target import AUTO, Job, Looked, Placing, compile_for, traced, watching
from npuc.policy import Policy
from npuc.profile import Profile
from npuc.program import Program
from npuc.progress import Progress, Silent
from npuc.quantization import calibrator
from npuc.quantization import rounding as learned
from npuc.quantization.quantizer import Choices
from npuc.recheck import verify
from npuc.report import Compiled
from npuc.targets.base import LowerOptions, Target
from npuc.validate import Validator

if TYPE_CHECKING:
    import torch

    from npuc.cache.front import Fronts

__all__ = ["Compiled", "compile", "verify"]

ANY = Profile("any", "no target in particular", {}, {})
"""What the standard passes see: they are the same for every target, and shared."""

_NOT_ASKED = "target output layers dump timeout policy progress failed checks fronts"
"""Arguments that say where results go or who watches, not what is computed."""


def compile(
    source: "str | Path | torch.nn.Module | Loaded",
    *,
    target: str | Sequence[str],
    output: str | Path | None = None,
    precision: str | None = None,
    budget: float | None = None,
    dims: Mapping[str, int] | None = None,
    calibration: Calls | None = None,
    samples: Calls | None = None,
    reference: str | Path | None = None,
    strict: bool = False,
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
    layers: Looked = False,
    dump: str | Path | None = None,
    timeout: float = 3600.0,
    policy: Policy | None = None,
    progress: Progress | None = None,
    failed: Callable[[str, NpucError], None] | None = None,
    checks: Callable[[Program, Reference, Policy, Progress], Validator] = Validator,
    fronts: "Fronts | None" = None,
) -> list[Compiled]:
    """Compile a model for one or more targets and compare every step with the original.

    `source` is a file, ``zoo:NAME``, a torch module, or what `npuc.load.load` returned. `samples`
    and `calibration` are files or calls (input name → array); by default what was recorded with
    the model, or in a `reference` file; with `strict` a doubtful one is refused. `dims` gives
    dynamic dimensions their size, by default that of the first sample. What a device cannot run
    stays on its host, unless `host` is False; `on_target` says what must not
    (``Conv,MatMul=all``).
    With `layers` every report says what each layer loses, which takes some runs; with "failed"
    those do that did not pass.
    `budget` is how many seconds precision "auto" may search for each target, by default 300.
    Artifacts are written even where the report fails. Raises `NpucError`; parity is not raised
    but reported, unless a step that must keep the answer changed it. With `failed` one target's
    error is given to it, with the target's name, and the other targets go on. `checks` makes what
    judges the steps (`npuc.blame` has one that only collects them). `fronts` keeps what is the same
    for all targets, for calls with the same arguments.
    """
    call = asked(compile, locals(), without=_NOT_ASKED)
    shown = progress or Silent()
    names = (target,) if isinstance(target, str) else tuple(target)
    targets = [plugins.find(name) for name in names]
    label = source if isinstance(source, str | Path) else _label(source)
    paths = outputs.artifact_paths(str(label), names, None if output is None else Path(output))
    _check_precision(targets, precision)
    kinds = {precision or item.profile.precisions[0] for item in targets}
    table = calibrator.path_of(calibration_table, names, kinds)
    budget = _budget(precision, budget)
    wanted = Placing(host, partition.contract(on_target))
    options = LowerOptions(cpu=cpu, fallback=fallback, vendor=vendor, timeout=timeout)
    folder = None if dump is None else Path(dump)

    def opened() -> Loaded:
        shown.stage("load")
        found = source if isinstance(source, Loaded) else load(
            source, model=model, model_path=model_path, inputs=inputs,
            trust_pickle=trust_pickle, eval_mode=eval_mode,
        )  # fmt: skip
        if reference is None:
            return found
        if found.kind == "npuc":
            raise UsageError(f"{label} is an artifact: it carries its own reference")
        return originals.with_reference(found, reference, samples)

    def begun(loaded: Loaded) -> Front:
        shown.stage("export")
        exported = export(loaded, opset=opset, eval_mode=eval_mode)
        shown.stage("reference")
        found = _reference(loaded, exported, samples, calibration, table)
        trust.require(found, strict)
        bound, found = originals.bind(loaded, exported, found, dims or {})
        validator = checks(exported, found, policy or Policy(), shown)
        # What was answered here was answered twice already, to the bit.
        fresh = loaded.reference is None and "batches" not in found.fingerprint
        validator.export(originals.native(loaded), fresh)
        validator.notes += [*trust.notes(found), *inner.compare(found, exported)]
        return Front(validator, _simplified(exported, bound, validator, folder), bound)

    with fronts.found(policy or Policy(), shown) if fronts else nullcontext() as front:
        loaded = opened() if front is None or _takes_torch(targets) else None
        if loaded is not None and loaded.kind == "npuc":
            return [
                recheck.finish(Path(str(loaded.path)), t, path, options, policy, strict)
                for t, path in zip(targets, paths, strict=True)
            ]
        if front is None:
            assert loaded is not None
            front = begun(loaded)
            if fronts is not None:
                fronts.put(front)
    with tempfile.TemporaryDirectory(prefix="npuc-") as work:
        choices = Choices(
            observer, tuple(skip), equalize, correct_bias,
            table=table, rounding=rounding or learned.DEFAULT,
        )  # fmt: skip
        job = Job(
            str(label), front.program, front.validator, precision, choices, options, shown, folder,
            front.dims, _archive(loaded, front.validator.reference, Path(work), targets),
            wanted, budget, layers, call, _kept(fronts, targets),
        )  # fmt: skip
        return list(_each(zip(targets, paths, strict=True), job, failed))


def _label(source: "torch.nn.Module | Loaded") -> str:
    return source.name if isinstance(source, Loaded) else type(source).__name__


def _simplified(
    exported: Program, dims: Mapping[str, int], validator: Validator, dump: Path | None
) -> Program:
    """Run the passes that are the same for every target."""
    passes = traced(standard(dims), validator.progress)
    program = run(exported, passes, ANY, watching(validator, dump))
    validator.settle(program)
    return program


def _reference(
    loaded: Loaded,
    exported: Program,
    samples: Calls | None,
    calibration: Calls | None,
    table: Path | None,
) -> Reference:
    """Return the original's answers; a calibration table stands in for calibration calls."""
    found = originals.find(loaded, exported, samples, calibration)
    if table is None or not table.exists() or calibration is not None:
        return found
    return replace(found, fingerprint={**found.fingerprint, "calibration": originals.TABLE})


def _each(
    targets: Iterable[tuple[Target, Path]],
    job: Job,
    failed: Callable[[str, NpucError], None] | None,
) -> Iterator[Compiled]:
    for target, path in targets:
        try:
            yield compile_for(target, path, job)
        except NpucError as error:
            if failed is None:
                raise
            failed(target.name, error)


def _kept(fronts: "Fronts | None", targets: Sequence[Target]) -> Kept | None:
    """Return what keeps the stages of targets: it costs a hash of all weights."""
    return fronts.stages if fronts else Kept() if len(targets) > 1 else None


def _takes_torch(targets: Sequence[Target]) -> bool:
    return any("torch" in t.profile.get("compiler.inputs", ()) for t in targets)


def _archive(
    loaded: Loaded | None, reference: Reference, folder: Path, targets: Sequence[Target]
) -> Path | None:
    """Return a torch.export archive of the original, written here where the source is none.

    Only where a target's compiler takes torch.
    """
    if loaded is None or not _takes_torch(targets):
        return None
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
