"""A stand-in for `qubee`, as qbcompiler was called: no CalibrationConfig yet."""

import sys
from pathlib import Path
from typing import Any

import misbehave

misbehave.at_start()


def mxq_compile(
    *,
    model: Any,
    calib_data_path: Any,
    save_path: Any,
    backend: str,
    device: str = "gpu",
    inference_scheme: str = "single",
) -> None:
    """Compile as the later package does."""
    sys.path.append(str(Path(__file__).resolve().parents[2] / "fake_qbcompiler"))
    import qbcompiler  # pyright: ignore[reportMissingImports]

    qbcompiler.mxq_compile(
        model=model,
        calib_data_path=calib_data_path,
        save_path=save_path,
        backend=backend,
        device=device,
        inference_scheme=inference_scheme,
    )
