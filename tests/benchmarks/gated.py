"""Both sides of the gate's time: a model to gate, and ONNX Runtime answering the same samples.

Usage: gated.py prepare MODEL SAMPLES FOLDER [NOISE] writes what a user's repository would hold
(model.pt of npuc.save, parity.toml) and what plain inference needs (model.onnx, samples.npz).
gated.py infer FOLDER answers the samples call by call, with ONNX Runtime's defaults, and no more.
"""

import sys
from pathlib import Path
from typing import Any

import numpy as np

POLICY = """\
version = 1

[models.gated]
file = "model.pt"
targets = ["atom", "cpu"]
precision = "int8"

[models.gated.hold]
agreement = 0.97
"""


def prepare(name: str, samples: int, folder: Path, noise: float = 0.0) -> None:
    """Write both sides' files; not part of what is timed."""
    import npuc
    from npuc import models
    from npuc.export import export

    zoo = models.get(name)
    calls = _calls(zoo, samples, noise)
    model = folder / "model.pt"
    npuc.save(
        zoo.module(), zoo.example(), model, samples=calls, calibration=zoo.calibration(64),
        dynamic_shapes=zoo.dynamic_shapes,
    )  # fmt: skip
    (folder / "parity.toml").write_text(POLICY)
    (folder / "model.onnx").write_bytes(export(npuc.load(str(model))).serialized() or b"")
    arrays = {
        name: np.stack([call[at].numpy() for call in calls])
        for at, name in enumerate(zoo.input_names)
    }
    np.savez(folder / "samples.npz", allow_pickle=False, **arrays)


def _calls(zoo: Any, count: int, noise: float) -> Any:
    """Return samples; with noise, as many as are wanted of those there are."""
    import torch

    if not noise:
        return zoo.samples(count)
    some = zoo.samples(min(count, 360))
    generator = torch.Generator().manual_seed(0)
    return [
        tuple(x + noise * torch.randn(x.shape, generator=generator) for x in some[at % len(some)])
        for at in range(count)
    ]


def infer(folder: Path) -> None:
    """Answer every sample and print how many there were."""
    import onnxruntime

    session = onnxruntime.InferenceSession(folder / "model.onnx")
    with np.load(folder / "samples.npz") as stored:
        arrays = {name: stored[name] for name in stored.files}
    count = len(next(iter(arrays.values())))
    for index in range(count):
        session.run(None, {name: array[index] for name, array in arrays.items()})
    print(f"{count} calls")


if __name__ == "__main__":
    if sys.argv[1] == "prepare":
        prepare(sys.argv[2], int(sys.argv[3]), Path(sys.argv[4]), *map(float, sys.argv[5:]))
    else:
        infer(Path(sys.argv[2]))
