"""Where results go, decided and tried before any long work."""

from collections.abc import Sequence
from pathlib import Path

from npuc.atomic import atomic_write
from npuc.errors import UsageError


def artifact_paths(source: str, targets: Sequence[str], output: Path | None) -> tuple[Path, ...]:
    """Return where the artifact for each target goes.

    Without `output` that is ``<stem>.<target>.npuc`` in the current folder; an existing folder
    takes the same names. An artifact that is finished for its own target becomes
    ``<stem>.<target>.vendor.npuc``. Raises `UsageError` where `output` names one file for
    several targets.
    """
    # A zoo name has no suffix to drop, and its colon has no place in a file name.
    stem = source.removeprefix("zoo:") if source.startswith("zoo:") else Path(source).stem
    named = tuple(_named(source, stem, target) for target in targets)
    if output is None:
        return tuple(map(Path, named))
    if output.is_dir():
        return tuple(output / name for name in named)
    if len(targets) != 1:
        raise UsageError(
            f"-o {output} is one file, but there are {len(targets)} targets: {', '.join(targets)}",
            hint="give -o an existing folder, or compile for one target at a time",
        )
    return (output,)


def _named(source: str, stem: str, target: str) -> str:
    if source.endswith(".npuc"):
        return f"{stem.removesuffix(f'.{target}')}.{target}.vendor.npuc"
    return f"{stem}.{target}.npuc"


def probe(path: Path) -> None:
    """Raise `OutputError` now where `path` could not be written later; leaves nothing behind."""
    try:
        with atomic_write(path):
            raise _Undo
    except _Undo:
        return


def text(path: Path, content: str) -> None:
    """Write a text file as a whole or not at all; raises `OutputError`."""
    with atomic_write(path) as part:
        part.write_text(content, encoding="utf-8")


class _Undo(Exception):
    """Takes the probe's temporary file back."""
