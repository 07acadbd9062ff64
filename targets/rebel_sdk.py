"""Rebellions' compiler on this machine: where it is, and one compilation with it."""

import glob
import json
import os
from collections.abc import Mapping
from pathlib import Path

from npuc.errors import LoadError, ToolchainError
from npuc.targets import foreign, vendor
from npuc.targets.base import Toolchain

NAME = "rebel-compiler"
PYTHON = "NPUC_ATOM_PYTHON"
"""Environment variable: the command that starts the Python in which the SDK is installed."""

REMEDY = (
    "get an RBLN Portal account (docs.rbln.ai), install rebel-compiler in any Python 3.10-3.14 "
    f"environment, and set {PYTHON}=/path/to/that/python"
)
_PACKAGE = foreign.Package("rebel-compiler", "rebel")

Sdk = foreign.Found
"""The SDK as found: `command` starts its Python and is empty where `toolchain.missing`."""


def find() -> Sdk:
    """Look for the SDK in `NPUC_ATOM_PYTHON`, else in this interpreter; never raises."""
    return foreign.python(NAME, PYTHON, [_PACKAGE], REMEDY)


def compile_archive(sdk: Sdk, folder: Path, npu: str, timeout: float) -> tuple[bytes, bytes]:
    """Run the kit in `folder` and return (the .rbln, the log).

    The archive is checked first: `torch.export.load`, which the vendor's side calls, executes
    what a hostile one holds. Raises `LoadError` for such an archive, `ToolchainError` where the
    compiler fails.
    """
    _check(folder / "model.pt2")
    result = folder / "model.rbln"
    log = vendor.run(
        NAME,
        [*sdk.command, str(folder / "compile.py")],
        produces=result,
        timeout=timeout,
        env=_environment(npu),
    )
    return result.read_bytes(), log


def _environment(npu: str) -> dict[str, str]:
    """Name the NPU to compile for where there is none; what the user has set wins."""
    wanted = {"RBLN_FORCE_NPU_NAME": npu, "RBLN_TARGET_SOC": npu}
    if not glob.glob("/dev/rbln*"):
        wanted["RBLN_DUMMY_DEVICE"] = "1"
    return {key: os.environ.get(key, value) for key, value in wanted.items()}


def _check(archive: Path) -> None:
    from npuc import pt2
    from npuc.zips import open_zip, strip_root

    with open_zip(archive) as members:
        root, _ = strip_root(members.namelist())
    faults = pt2.check(archive, root)
    if faults:
        raise LoadError(
            "unsafe exported program in the hand-over kit:\n  " + "\n  ".join(faults[:20]),
            hint="compile again from the model; do not give this artifact to the vendor's compiler",
        )


def require(toolchain: Toolchain, reason: str = "") -> None:
    """Raise `ToolchainError` where the SDK is missing or cannot be used."""
    reason = reason or toolchain.missing
    if reason:
        raise ToolchainError(f"{NAME} cannot run: {reason}", hint=toolchain.remedy or REMEDY)


def request(inputs: list[Mapping[str, object]], npu: str, devices: int) -> bytes:
    """Return ``input_info.json``: what compile.py asks of the compiler."""
    content = {"npu": npu, "devices": devices, "inputs": inputs}
    return json.dumps(content, indent=1, sort_keys=True).encode() + b"\n"
