"""Drive a vendor's compiler that takes torch modules, in the environment that has it.

Its kit is the legalised graph as data (`graph_torch`), the code that makes a torch module of it,
``request.json`` with the settings, and the script ``compile.py``, which npuc runs there.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from npuc.errors import ArtifactError, ToolchainError
from npuc.profile import Profile
from npuc.targets import environments, graph_torch, vendor, workers
from npuc.targets import kit as kits
from npuc.targets.base import Handover
from npuc.targets.foreign import Found, Package
from npuc.targets.scripted import SCRIPT

SUMMARY = "summary.json"


@dataclass(frozen=True, slots=True)
class Done:
    """What a worker wrote: its files by name, its summary, its log, and the tool's version."""

    files: Mapping[str, bytes]
    summary: Mapping[str, Any]
    version: str


@dataclass(frozen=True, slots=True)
class TorchWorker:
    """A script of this folder (`worker`) that makes `binary` with the vendor's packages.

    The first of `packages` gives the version. Where the worker makes several files, their names
    fit `pattern`. `magic` at `offset` is how a whole `binary` looks.
    """

    name: str
    packages: tuple[Package, ...]
    worker: str
    binary: str
    pattern: str = ""
    calibrated: bool = False

    def find(self, profile: Profile) -> Found:
        """Say whether the compiler and the commands it calls are here; never raises."""
        return environments.find(self.name, profile, self.packages)

    def kit(self, job: Handover, settings: Mapping[str, Any]) -> dict[str, bytes]:
        """Return the graph, the scripts, the settings, and the calibration where it is used.

        Raises `UnsupportedError` where the graph is no plain ONNX.
        """
        files = graph_torch.files(job.program) | self._scripts()
        files[kits.REQUEST] = _request(settings)
        if self.calibrated:
            files |= graph_torch.calibration(job.calibration, len(job.calibration))
        return files

    def lacks(self, kit: Mapping[str, bytes]) -> str:
        """Say which files are missing, and which operators npuc has no torch module for."""
        wanted = [graph_torch.GRAPH, graph_torch.WEIGHTS, kits.REQUEST]
        if missing := [name for name in wanted if name not in kit]:
            return f"{', '.join(missing)} missing"
        if self.calibrated and graph_torch.CALIBRATION not in kit:
            return "no calibration data: it quantizes by itself; give --calibration or --samples"
        return "; ".join(graph_torch.faults(kit))

    def build(
        self, folder: Path, profile: Profile, settings: Mapping[str, Any], timeout: float
    ) -> Done:
        """Write the scripts and the request anew, run them, and return what they wrote.

        Raises `ToolchainError` where the compiler is missing or fails in whatever way.
        """
        found = self.find(profile)
        if found.toolchain.missing:
            raise ToolchainError(
                f"{self.name} cannot run: {found.toolchain.missing}", hint=found.toolchain.remedy
            )
        fresh = {**self._scripts(), **graph_torch.scripts(graph_torch.MODULES)}
        fresh[kits.REQUEST] = _request(settings)
        for name, content in fresh.items():
            (folder / name).write_bytes(content)
        for old in (folder / SUMMARY, *folder.glob(self.pattern or self.binary)):
            old.unlink(missing_ok=True)
        log = vendor.run(
            self.name,
            [*found.command, str(folder / SCRIPT)],
            produces=folder / SUMMARY,
            timeout=timeout,
        )
        summary = _summary(self.name, folder / SUMMARY)
        binaries = sorted(folder.glob(self.pattern or self.binary))
        if not binaries or not all(path.stat().st_size for path in binaries):
            raise ToolchainError(f"{self.name} ended without an error and without {self.binary}")
        files = {path.name: path.read_bytes() for path in binaries}
        files |= {SUMMARY: (folder / SUMMARY).read_bytes(), kits.LOG: log, **fresh}
        return Done(files, summary, found.toolchain.version)

    def how(self, profile: Profile) -> str:
        """Return the README's part on running the kit with npuc and without."""
        environment = environments.of(profile)
        assert environment is not None
        commands = [environment.remedy]
        if environment.debian:
            commands.append(f"apt-get install {' '.join(environment.debian)}")
        return f"""\
With npuc, after {" and ".join(commands)}:

    npuc compile MODEL.npuc --target {profile.name}

Without npuc, unpack this folder and run, in a Python that has
{", ".join(environment.requirements)}:

    python compile.py

which writes {self.binary} and summary.json. graph.json and weights.npz are the float32 model with
fixed shapes; onnx_in_torch.py makes a torch module of them. request.json holds the settings."""

    def _scripts(self) -> dict[str, bytes]:
        return {SCRIPT: workers.source(self.worker)}


def settings_of(folder: Path) -> dict[str, Any]:
    """Read the settings of an unpacked kit; raises `ArtifactError` where they are damaged."""
    try:
        settings = json.loads((folder / kits.REQUEST).read_bytes())["settings"]
        return dict(settings)
    except (ValueError, KeyError, TypeError) as error:
        raise ArtifactError(f"{kits.REQUEST} is damaged: {error!r}") from error


def _request(settings: Mapping[str, Any]) -> bytes:
    return json.dumps({"settings": dict(settings)}, indent=1, sort_keys=True).encode() + b"\n"


def _summary(name: str, path: Path) -> dict[str, Any]:
    try:
        summary = json.loads(path.read_bytes())
    except ValueError as error:
        raise ToolchainError(f"{name} wrote a {path.name} that is no JSON: {error}") from error
    if not isinstance(summary, dict):
        raise ToolchainError(f"{name} wrote a {path.name} that is no JSON object")
    return summary
