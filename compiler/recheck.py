"""Look at an artifact again: check it, or let the vendor's compiler finish it."""

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Protocol, cast, runtime_checkable

from npuc import artifact, originals, plugins, stored, trust
from npuc.answers import Reference
from npuc.artifact import Artifact
from npuc.errors import ArtifactError, UsageError
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
    reference: str | Path | None = None,
    strict: bool = False,
    policy: Policy | None = None,
) -> Report:
    """Check every byte of an artifact, run it, and compare it with the original's answers.

    The original's are those stored with the artifact (a few); those of a `reference` file, all of
    them, for which neither torch nor the model is needed; or, with `against`, those of a model
    file run here on the stored samples or on `samples`. Raises `ArtifactError` where the artifact
    is damaged, `ParityError` where a reference is of another program, or is doubtful and `strict`.
    """
    opened = artifact.read(Path(path))
    opened.verify()
    program = artifact.program(opened)
    notes: list[str] = []
    exported = program
    if reference is not None:
        if against is not None or samples is not None:
            raise UsageError("--reference takes the place of --against and --samples")
        found = stored.read(Path(reference))
        exported = originals.spread_out(program, found)
        notes += _other_weights(opened, found)
    elif against is not None:
        if stored.is_reference(Path(against)):
            raise UsageError(f"{against} holds answers, not a model", hint=f"--reference {against}")
        loaded = load(str(against))
        calls = _stored(opened).samples if samples is None else originals.read(samples, program)
        found = originals.answered(loaded, loaded.program, calls, ())
    elif samples is not None:
        raise UsageError(
            "other samples need the original to answer them", hint="add --against MODEL"
        )
    else:
        found = _stored(opened)
    trust.require(found, strict)
    target = plugins.find(opened.manifest.target)
    return _verified(str(path), opened, target, program, found, policy, exported, notes)


def _other_weights(opened: Artifact, reference: Reference) -> list[str]:
    """Say so where a reference was recorded with other weights than the artifact was made of."""
    if REFERENCE not in opened:
        return []
    here, there = (r.fingerprint.get("sha256_weights") for r in (_stored(opened), reference))
    if here is None or there is None or here == there:
        return []
    return [
        f"the reference was recorded with weights {there[:12]}, the artifact was compiled from "
        f"{here[:12]}"
    ]


def finish(
    source: Path,
    target: Target,
    path: Path,
    options: LowerOptions,
    policy: Policy | None = None,
    strict: bool = False,
) -> Compiled:
    """Let the vendor's compiler finish an artifact's hand-over kit, and check the result again.

    Raises `UsageError` where the artifact is for another target or nothing is left to do,
    `ToolchainError` where the vendor's compiler is missing or fails, `ParityError` under `strict`
    where the stored reference is doubtful.
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
    trust.require(_stored(opened), strict)
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
    exported: Program | None = None, notes: Sequence[str] = (),
) -> Report:  # fmt: skip
    """Run an artifact and its stored program on stored calls; `exported` has the batch open."""
    manifest, found = opened.manifest, reference or _stored(opened)
    validator = Validator(exported or program, found, policy or Policy(), Silent())
    validator.notes += [*trust.notes(found), *notes]
    floats = any(step.name == "round-floats" for step in manifest.steps)
    loss = manifest.precision != "float" or floats
    validator.artifact(target.runner(opened, program), program, loss, floats)
    payload = Payload(
        {}, cast(Evidence, manifest.evidence), manifest.toolchain, manifest.vendor,
        manifest.placement, manifest.notes,
    )  # fmt: skip
    return validator.report(name, target.profile, manifest.precision, payload, {})
