"""Drive a vendor's Python package by a script that runs in the Python which has it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from npuc.errors import ToolchainError
from npuc.targets import foreign, kit, vendor, workers
from npuc.targets.base import Built
from npuc.targets.foreign import Found, Package

SCRIPT = "compile.py"


@dataclass(frozen=True, slots=True)
class Script:
    """A package, and the script (`worker`, a file beside this one) that makes `binary` with it.

    `variable` is the environment variable that names the package's Python. The script needs no
    npuc: it is in every kit as ``compile.py``, and reads ``request.json`` beside it.
    """

    name: str
    variable: str
    packages: Sequence[Package]
    remedy: str
    worker: str
    binary: str
    magic: bytes = b""

    def find(self) -> Found:
        """Say whether the package is here; never raises, never imports it."""
        return foreign.python(self.name, self.variable, self.packages, self.remedy)

    def files(self) -> dict[str, bytes]:
        """Return compile.py."""
        return {SCRIPT: workers.source(self.worker)}

    def build(
        self,
        folder: Path,
        settings: Mapping[str, Any],
        target: str,
        timeout: float,
        env: Mapping[str, str] | None = None,
    ) -> Built:
        """Write compile.py and the request anew, run it, and return the binary it wrote.

        Raises `ToolchainError` where the package is missing or fails in whatever way.
        """
        found = self.find()
        if found.toolchain.missing:
            raise ToolchainError(
                f"{self.name} cannot run: {found.toolchain.missing}", hint=found.toolchain.remedy
            )
        request, script = kit.settled(folder, settings), self.files()
        (folder / SCRIPT).write_bytes(script[SCRIPT])
        binary = folder / self.binary
        log = vendor.run(
            self.name,
            [*found.command, str(folder / SCRIPT)],
            produces=binary,
            timeout=timeout,
            env=env,
            magic=self.magic,
        )
        version = found.toolchain.version
        return Built(
            files={
                self.binary: binary.read_bytes(),
                kit.REQUEST: request,
                **script,
                **({kit.LOG: log} if log else {}),
            },
            said=f"{self.name} {version} compiled {self.binary} for {target}; not run",
            version=version,
        )

    def how(self, target: str) -> str:
        """Return the README's part on running the kit with npuc and without."""
        modules = " or ".join(package.module for package in self.packages)
        return f"""\
With npuc, where {self.name} is installed ({self.variable} names its Python):

    npuc compile MODEL.npuc --target {target}

Without npuc, unpack this folder and run, in the Python that has {modules}:

    python compile.py

which writes {self.binary}. compile.py needs nothing else; it reads request.json, which holds the
inputs and the settings below and may be edited.
{self.name}: {self.remedy}."""
