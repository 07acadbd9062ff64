"""A vendor's chip as a target: a profile, a twin of its numerics, and the vendor's compiler."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from npuc.errors import ArtifactError, ToolchainError
from npuc.passes.base import Pass
from npuc.profile import FloatFormat, Profile
from npuc.program import Program
from npuc.targets import tvm
from npuc.targets.base import Evidence, Handover, LowerOptions, Payload, Runner, Tool, Toolchain

FOLDER = "vendor/"
"""Where an artifact keeps the hand-over kit, and what the vendor's compiler made of it."""


@dataclass(frozen=True, slots=True)
class Npu:
    """Compiles a twin for the host, then runs the vendor's compiler or packs what it needs.

    The twin stores floats as `float_format`, by default the profile's pessimistic one.
    """

    profile: Profile
    tool: Tool
    float_format: FloatFormat | None = None

    @classmethod
    def named(cls, name: str, tool: Tool) -> "Npu":
        """Return the target whose profile is ``profiles/<name>.toml``."""
        return cls(Profile.load(name), tool)

    @property
    def name(self) -> str:
        """The target's name, which is its profile's."""
        return self.profile.name

    def toolchain(self) -> Toolchain:
        """Say whether the vendor's compiler can run here; never raises."""
        return self.tool.find(self.profile)

    def evidence(self) -> Evidence:
        """Say what numbers rest on here: npuc's twin, unless the vendor's compiler is here."""
        return "twin" if self.toolchain().missing else self.tool.evidence

    def legalise(self) -> tuple[Pass, ...]:
        """Return the passes that rewrite what the device, or the twin's compiler, cannot take."""
        from npuc.passes import legalise

        return tuple(dict.fromkeys((*legalise(self.profile), *tvm.legalise())))

    def numerics(self, precision: str) -> tuple[Pass, ...]:
        """Return the passes that make a program compute as the device does."""
        from npuc.passes import numerics

        return numerics(self.profile, precision, self._format())

    def lower(self, program: Program, options: LowerOptions, workdir: Path) -> Payload:
        """Compile the twin, write the kit, and run the vendor's compiler where it is here.

        Raises `UnsupportedError` for operators the twin cannot run, `ToolchainError` where a
        compiler fails, or is missing and `options.vendor` is "require".
        """
        from npuc import partition
        from npuc.targets import parts

        job = options.handover or Handover(program, precision=options.precision)
        kit = parts.kit(self.tool, job, self.profile)
        missing = self._missing(kit, options)
        twin = tvm.lower(program, cpu=options.cpu, fallback=options.fallback)
        said = f"{self.tool.name} was not run: {missing}; hand-over kit in {FOLDER}"
        payload = Payload(
            files={**twin.files, **{FOLDER + name: content for name, content in kit.items()}},
            evidence="twin",
            toolchain=twin.toolchain,
            vendor=said,
            placement=partition.placement(job.program.model, self.name),
            notes=(*twin.notes, *self._notes(program, options.precision)),
            settings={"float_format": form.name} if (form := self._format()) else {},
            runs_here=twin.runs_here,
        )
        return payload if missing else self._built(payload, options, workdir)

    def finish(self, files: Mapping[str, bytes], options: LowerOptions, workdir: Path) -> Payload:
        """Run the vendor's compiler on the kit in an artifact's members, which a stranger may
        have written; returns all members and what the compiler added.

        Raises `ToolchainError` where the compiler is missing or fails, `ArtifactError` where the
        kit is not whole.
        """
        from npuc.targets import parts

        self._require(self.tool.find(self.profile))
        kit = {n.removeprefix(FOLDER): c for n, c in files.items() if n.startswith(FOLDER)}
        if lacking := parts.lacks(self.tool, kit):
            raise ArtifactError(
                f"no complete hand-over kit for {self.tool.name}: {lacking}",
                hint="compile again from the model, with this version of npuc",
            )
        payload = Payload(files=dict(files), evidence="twin", toolchain={})
        return self._built(payload, options, workdir)

    def runner(self, files: Mapping[str, bytes], program: Program) -> Runner:
        """Return a runner over the host twin."""
        return tvm.load(files, program)

    def _missing(self, kit: Mapping[str, bytes], options: LowerOptions) -> str:
        """Say why the vendor's compiler is not run, or "" where it is."""
        from npuc.targets import parts

        if options.vendor == "skip":
            return "--no-vendor"
        found = self.tool.find(self.profile)
        missing, remedy = found.missing, found.remedy
        if not missing:
            missing, remedy = parts.lacks(self.tool, kit), ""
        if missing and options.vendor == "require":
            self._require(replace(found, missing=missing, remedy=remedy))
        return missing

    def _require(self, found: Toolchain) -> None:
        if found.missing:
            raise ToolchainError(f"{found.name} cannot run: {found.missing}", hint=found.remedy)

    def _built(self, payload: Payload, options: LowerOptions, workdir: Path) -> Payload:
        from npuc.targets import parts

        folder = workdir / "vendor"
        for name, content in payload.files.items():
            if name.startswith(FOLDER):
                path = folder / name.removeprefix(FOLDER)
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(content)
        built = parts.build(self.tool, folder, self.profile, options)
        added = {FOLDER + name: content for name, content in built.files.items()}
        return replace(
            payload,
            files={**payload.files, **added},
            evidence=built.evidence or self.tool.evidence,
            toolchain={**payload.toolchain, self.tool.name: built.version},
            vendor=built.said,
        )

    def _format(self) -> FloatFormat | None:
        return self.float_format or next(iter(self.profile.float_formats), None)

    def _notes(self, program: Program, precision: str) -> tuple[str, ...]:
        notes = []
        formats = [f.name for f in self.profile.float_formats]
        if (form := self._format()) and len(formats) > 1:
            notes.append(
                f"the layout of {self.profile.get('float.name', 'its short float')} is not "
                f"public: the twin rounds to {form.name}, one of {formats[0]} (pessimistic) and "
                f"{', '.join(formats[1:])} (optimistic)"
            )
        if note := self.profile.get(f"notes.{precision}"):
            notes.append(str(note))
        used = {node.op_type for node in program.model.graph.all_nodes() if node.domain == ""}
        host = sorted(used & set(self.profile.get("ops.on_host", ())))
        if host:
            notes.append(f"by the vendor's table these run on the host CPU: {', '.join(host)}")
        return tuple(notes)
