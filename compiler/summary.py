"""A reference as text, for people and for the diff of a merge request."""

from pathlib import Path
from typing import Any

from npuc import stored, trust
from npuc.answers import Reference
from npuc.atomic import atomic_write
from npuc.floors import Floor

TITLE = "npuc reference"


def text(reference: Reference) -> str:
    """Return one line per fact, sorted: equal references give equal text."""
    lines = [f"{key:<40} {value}".rstrip() for key, value in _facts(reference)]
    return "\n".join([TITLE, *sorted(lines)]) + "\n"


def fits(reference: Reference, path: Path) -> bool:
    """Whether the summary beside `path` is that of the reference, or there is none.

    Not in the wording of doubts, which is npuc's own.
    """

    def facts(lines: str) -> list[str]:
        return [line for line in lines.splitlines() if not line.startswith("doubt.")]

    place = beside(path)
    if not place.exists():
        return True
    return facts(place.read_text(encoding="utf-8", errors="replace")) == facts(text(reference))


def beside(path: Path) -> Path:
    """Return where the summary of a file lies: ``model.pt.txt``."""
    return path.with_name(path.name + ".txt")


def write(reference: Reference, path: Path) -> None:
    """Write the summary beside `path`; raises `OutputError`."""
    with atomic_write(beside(path)) as part:
        part.write_text(text(reference), encoding="utf-8")


def fingerprint(reference: Reference) -> dict[str, str]:
    """Return the fingerprint in words, without what is not known or does not apply."""
    return {
        key: _word(value)
        for key, value in sorted(reference.fingerprint.items())
        if value is not None and key != "id"
    }


def _facts(reference: Reference) -> list[tuple[str, str]]:
    found = [
        ("format", str(stored.FORMAT)),
        ("id", reference.id),
        ("samples", str(len(reference.samples))),
        ("calibration", str(len(reference.calibration))),
    ]
    for name, array in reference.samples[0].items():
        axes = reference.axes.get(name, {})
        sizes = "x".join(str(axes.get(i, n)) for i, n in enumerate(array.shape)) or "scalar"
        found.append((f"input.{name}", f"{array.dtype.name} {sizes}"))
    for name, array in reference.outputs[0].items():
        rank = "x".join(map(str, array.shape)) or "scalar"
        peak = reference.floor[name].peak
        found.append((f"output.{name}", f"{array.dtype.name} {rank} peak {peak:.6g}"))
    for kind, noise in (("output", reference.noise), ("intermediate", reference.inner)):
        for name in noise.floor if noise else ():
            assert noise is not None
            found.append((f"{kind}.{name}.rounding", _floor(noise.rounding[name])))
            found.append((f"{kind}.{name}.spread", _floor(noise.spread[name])))
    found += [(f"fingerprint.{k}", v) for k, v in fingerprint(reference).items()]
    return found + [(f"doubt.{i}", why) for i, why in enumerate(trust.doubts(reference), 1)]


def _floor(floor: Floor) -> str:
    return f"max abs {floor.max_abs:.3e} rms {floor.rms:.3e}"


def _word(value: Any) -> str:
    return ", ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
