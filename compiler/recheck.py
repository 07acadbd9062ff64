"""Look at an artifact again: check it, or let the vendor's compiler finish it."""

import tempfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Protocol, cast, runtime_checkable

from npuc import artifact, originals, plugins, stored
from npuc.answers import Reference
from npuc.artifact import Artifact
from npuc.errors import ArtifactError, UsageError
from npuc.export import export
from npuc.jsonable import canonical
from npuc.load import load
from npuc.members import PARITY, REFERENCE
from npuc.originals import Calls
from npuc.policy import Policy
from npuc.program import Program
from npuc.progress import Silent
from npuc.report import Compiled, Report
from npuc.targets.base import Evidence, LowerOptions, Payload, Target
from npuc.validate import Validator


@runtime_checkable
class Finisher(Protocol):
    """A target whose vendor compiler can work from an artifact alone."""

    def finish(self, files: Mapping[str, bytes], options: LowerOptions, workdir: Path) -> Payload:
        """Return all members with the vendor's binary added."""
        ...


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
    floats = any(step.name == "round-floats" for step in manifest.steps)
    loss = manifest.precision != "float" or floats
    validator.artifact(target.runner(opened, program), program, loss, floats)
    payload = Payload(
        {}, cast(Evidence, manifest.evidence), manifest.toolchain, manifest.vendor,
        manifest.placement, manifest.notes,
    )  # fmt: skip
    return validator.report(name, target.profile, manifest.precision, payload, {})
