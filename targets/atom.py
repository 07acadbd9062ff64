"""Rebellions ATOM: a host twin of its numerics, and the vendor's compiler where it is installed."""

import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from npuc.errors import ArtifactError, UsageError
from npuc.passes.base import Pass
from npuc.profile import FloatFormat, Profile
from npuc.program import Program
from npuc.targets import tvm
from npuc.targets.base import LowerOptions, Payload, Runner, Toolchain

if TYPE_CHECKING:
    from npuc.targets.rebel_sdk import Sdk

NPU = "NPUC_ATOM_NPU"
"""Environment variable: the NPU to compile for; without it, the profile's ``compiler.npu``."""

DEVICES = "NPUC_ATOM_DEVICES"
"""Environment variable: the number of devices one model is spread over; 1 without it."""


class Atom:
    """Compiles a twin for the host, then calls rebel-compiler or packs what it needs.

    The twin stores floats as `float_format`: the profile's pessimistic one unless given.
    """

    name = "atom"

    def __init__(self, float_format: FloatFormat | None = None) -> None:
        self.profile = Profile.load("atom")
        self.float_format = float_format or self.profile.float_formats[0]

    def toolchain(self) -> Toolchain:
        """Say whether rebel-compiler can run here; never raises."""
        from npuc.targets import rebel_sdk

        return rebel_sdk.find().toolchain

    def legalise(self) -> tuple[Pass, ...]:
        """Return the passes that rewrite what the twin's compiler cannot take."""
        return tvm.legalise()

    def numerics(self, precision: str) -> tuple[Pass, ...]:
        """Return the rounding of every stored float; int8 programs keep their integers exact."""
        from npuc.passes.round_floats import RoundFloats

        return (RoundFloats(self.float_format),)

    def lower(self, program: Program, options: LowerOptions, workdir: Path) -> Payload:
        """Compile the twin, and the .rbln where rebel-compiler is installed.

        Raises `UnsupportedError` for operators the twin cannot run, `ToolchainError` where a
        compiler fails, or is missing and `options.require_vendor` is set.
        """
        from npuc.targets import kit, rebel_sdk

        npu, devices = self._npu(), _devices()
        sdk = rebel_sdk.find()
        missing = sdk.toolchain.missing or ("" if options.archive else kit.NO_ARCHIVE)
        if missing and options.require_vendor:
            remedy = kit.NO_ARCHIVE_REMEDY if not sdk.toolchain.missing else ""
            rebel_sdk.require(replace(sdk.toolchain, missing=missing, remedy=remedy))
        twin = tvm.lower(program, cpu=options.cpu, fallback=options.fallback)
        files = kit.members(program, self.profile, options.precision, options.archive, npu, devices)
        payload = Payload(
            files={**twin.files, **files},
            evidence="twin",
            toolchain=twin.toolchain,
            vendor=f"{rebel_sdk.NAME} was not run: {missing}; hand-over kit in {kit.FOLDER}",
            placement=twin.placement,
            notes=(*twin.notes, *self._notes(program, options.precision)),
            settings={"npu": npu, "devices": devices, "float_format": self.float_format.name},
            runs_here=twin.runs_here,
        )
        return payload if missing else self._finish(payload, npu, options, workdir, sdk)

    def finish(self, files: Mapping[str, bytes], options: LowerOptions, workdir: Path) -> Payload:
        """Compile the hand-over kit in an artifact's members on a machine that has the SDK.

        Returns all members with ``vendor/model.rbln`` and its log added. Raises `ToolchainError`
        where the SDK is missing or fails, `ArtifactError` where the members hold no complete kit.
        """
        import json

        from npuc.targets import kit, rebel_sdk

        sdk = rebel_sdk.find()
        rebel_sdk.require(sdk.toolchain)
        lacking = [name for name in (kit.ARCHIVE, kit.REQUEST) if name not in files]
        if lacking:
            raise ArtifactError(
                f"no complete hand-over kit: {', '.join(lacking)} missing; "
                f"{rebel_sdk.NAME} takes torch modules",
                hint=kit.NO_ARCHIVE_REMEDY,
            )
        try:
            asked = json.loads(files[kit.REQUEST])
            npu = os.environ.get(NPU) or str(asked["npu"])
            devices = _devices(int(asked["devices"]))
            request = rebel_sdk.request(asked["inputs"], npu, devices)
        except (ValueError, KeyError, TypeError) as error:
            raise ArtifactError(f"{kit.REQUEST} is damaged: {error!r}") from error
        script = kit.script()  # ours: an artifact's own copy is a stranger's code
        payload = Payload(
            files={**files, kit.REQUEST: request, kit.SCRIPT: script},
            evidence="twin",
            toolchain={},
            settings={"npu": npu, "devices": devices},
        )
        return self._finish(payload, npu, options, workdir, sdk)

    def runner(self, files: Mapping[str, bytes], program: Program) -> Runner:
        """Return a runner over the host twin."""
        return tvm.load(files, program)

    def _finish(
        self, payload: Payload, npu: str, options: LowerOptions, workdir: Path, sdk: "Sdk"
    ) -> Payload:
        from npuc.targets import kit, rebel_sdk

        folder = workdir / "rebel"
        folder.mkdir(parents=True, exist_ok=True)
        for name in (kit.ARCHIVE, kit.REQUEST, kit.SCRIPT):
            (folder / name.removeprefix(kit.FOLDER)).write_bytes(payload.files[name])
        binary, log = rebel_sdk.compile_archive(sdk, folder, npu, options.timeout)
        version = sdk.toolchain.version or "of unknown version"
        built = " from the float module" if kit.SCALES in payload.files else ""
        return replace(
            payload,
            files={**payload.files, kit.BINARY: binary, kit.LOG: log},
            evidence="vendor-compiled",
            toolchain={**payload.toolchain, rebel_sdk.NAME: version},
            vendor=f"{rebel_sdk.NAME} {version} compiled {kit.BINARY} for {npu}{built}; not run",
        )

    def _npu(self) -> str:
        return os.environ.get(NPU) or str(self.profile.get("compiler.npu"))

    def _notes(self, program: Program, precision: str) -> tuple[str, ...]:
        formats = [f.name for f in self.profile.float_formats]
        notes = [
            f"the layout of ATOM's 16-bit float is not public: the twin rounds to "
            f"{self.float_format.name}, one of {' (pessimistic) and '.join(formats)} (optimistic)"
        ]
        if precision == "int8":
            notes.append(
                "int8 is the twin's, after the published MLPerf scheme; the SDK documents no int8 "
                "path for such models, so a .rbln is built from the float module"
            )
        used = {node.op_type for node in program.model.graph.all_nodes() if node.domain == ""}
        host = sorted(used & set(self.profile.get("ops.on_host", ())))
        if host:
            notes.append(f"by the vendor's table these run on the host CPU: {', '.join(host)}")
        return tuple(notes)


def _devices(default: int = 1) -> int:
    text = os.environ.get(DEVICES) or str(default)
    if not text.isdecimal() or int(text) < 1:
        raise UsageError(f"{DEVICES}={text!r} is no number of devices", hint=f"{DEVICES}=1")
    return int(text)
