"""Run an artifact on this machine and show what it answers."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from npuc import artifact, plugins, stored
from npuc.atomic import atomic_write
from npuc.errors import UsageError
from npuc.jsonable import plain
from npuc.members import REFERENCE
from npuc.program import Tensors
from npuc.text import columns

SHOWN = 6
"""Values of each output that are printed."""


def run(path: Path, inputs: Path | None) -> tuple[Tensors, ...]:
    """Answer every call in an ``.npz`` file, or those the artifact was checked on.

    Raises `ArtifactError` where the artifact is damaged, `UsageError` where the inputs do not
    fit, `ToolchainError` where this machine cannot run it.
    """
    opened = artifact.read(path)
    target = plugins.find(opened.manifest.target)
    program = artifact.deferred(opened)
    calls: Sequence[Tensors]
    if inputs is not None:
        from npuc.samples import load_inputs

        calls = load_inputs(inputs, program.inputs)
    elif REFERENCE in opened:
        calls = stored.decode(opened[REFERENCE]).samples
    else:
        raise UsageError(
            f"{path} holds no sample to run", hint=f"npuc run {path} --inputs FILE.npz"
        )
    runner = target.runner(opened, program)
    return tuple({name: np.array(value) for name, value in runner(c).items()} for c in calls)


def save(answers: Sequence[Tensors], path: Path) -> None:
    """Write outputs by name to an ``.npz`` file, the calls one after another along axis 0."""
    joined = {
        name: np.concatenate([np.atleast_1d(answer[name]) for answer in answers])
        for name in answers[0]
    }
    with atomic_write(path) as part, part.open("wb") as file:
        np.savez(file, allow_pickle=False, **joined)


def summary(answers: Sequence[Tensors]) -> dict[str, Any]:
    """Describe the outputs of the first call in JSON types, with their first values."""
    return {
        "calls": len(answers),
        "outputs": [
            {
                "name": name,
                "dtype": value.dtype.name,
                "shape": list(value.shape),
                "first": [plain(v) for v in value.ravel()[:SHOWN].tolist()],
            }
            for name, value in answers[0].items()
        ],
    }


def text(answers: Sequence[Tensors]) -> str:
    """Spell `summary` for people."""
    about = summary(answers)
    rows = []
    for port in about["outputs"]:
        shape = "x".join(map(str, port["shape"])) or "scalar"
        values = " ".join(f"{v:.6g}" if isinstance(v, float) else str(v) for v in port["first"])
        more = " …" if answers[0][port["name"]].size > SHOWN else ""
        rows.append([f"{port['name']}:{shape}:{port['dtype']}", values + more])
    calls = f"{about['calls']} call{'' if about['calls'] == 1 else 's'}"
    return f"{calls}; the first answers\n{columns(rows, indent=2)}"
