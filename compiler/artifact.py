"""Write and read `.npuc` files: a compiled model with all that is known about it.

A zip that `npuc.archive` lays out: `manifest.json` first, then the members it lists, sorted.
The zip comment carries the manifest's SHA-256, the manifest every other member's, and all bytes
between follow from those: a change of any byte is found. This shows damage and careless edits;
it is not a signature, since whoever rewrites the whole file can rewrite the hashes.
"""

import hashlib
import os
import tempfile
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import IO, Any

from npuc import archive
from npuc.archive import Entry
from npuc.atomic import atomic_write
from npuc.errors import ArtifactError, UsageError
from npuc.manifest import Manifest, Member
from npuc.members import MANIFEST, MODEL, WEIGHTS, check_names, zip_faults
from npuc.program import Program

_COMMENT = b"npuc artifact, sha256 of manifest.json: "
_END = 22 + len(_COMMENT) + 64  # bytes of the zip's end record and our comment
_MANIFEST_LIMIT = 64 << 20  # bytes; real ones hold a few kB, and it is read before any check
_CHUNK = 1 << 20
_HINT = "the file was damaged on its way or edited: copy it again, or compile it again"


class Artifact(Mapping[str, bytes]):
    """An artifact's members by path, read from the file on access and checked against their hash.

    Raises `ArtifactError` on access to a damaged member.
    """

    def __init__(self, path: Path, manifest: Manifest, entries: tuple[Entry, ...]) -> None:
        self.path = path
        self.manifest = manifest
        self._entries = {entry.name: (entry, at) for entry, at in archive.placed(entries)}

    def __getitem__(self, name: str) -> bytes:
        if name not in self.manifest.members:
            raise KeyError(name)
        return b"".join(self._chunks(name))

    def __iter__(self) -> Iterator[str]:
        return iter(self.manifest.members)

    def __len__(self) -> int:
        return len(self.manifest.members)

    def __contains__(self, name: object) -> bool:
        return name in self.manifest.members  # Mapping's own would read the member

    def extract(self, name: str, path: Path) -> None:
        """Copy a member to `path` in O(1) memory; `path` may hold half of it where this raises."""
        with path.open("wb") as file:
            for chunk in self._chunks(name):
                file.write(chunk)

    def verify(self) -> None:
        """Read every byte of the file; raises `ArtifactError` naming all damaged members."""
        read(self.path)
        faults = []
        for name in self:
            try:
                for _ in self._chunks(name):
                    pass
            except ArtifactError as error:
                faults.append(error.message)
        if faults:
            raise ArtifactError("\n".join(faults), hint=_HINT)

    def _chunks(self, name: str) -> Iterator[bytes]:
        entry, at = self._entries[name]
        digest, crc, left = hashlib.sha256(), 0, entry.size
        with _open(self.path) as file:
            file.seek(at + len(archive.local_header(entry)))
            while left and (chunk := file.read(min(left, _CHUNK))):
                digest.update(chunk)
                crc, left = zlib.crc32(chunk, crc), left - len(chunk)
                yield chunk
        if left or crc != entry.crc or digest.hexdigest() != self.manifest.members[name].sha256:
            raise ArtifactError(f"{self.path}: {name} does not match its hash", hint=_HINT)


def write(path: Path, manifest: Manifest, files: Mapping[str, bytes | Path]) -> Artifact:
    """Write an artifact atomically and return it; equal arguments give equal bytes.

    `files` maps member paths to their content, or to files that hold it (streamed, for weights
    larger than memory). The manifest's `members` and `npuc` are filled in here. Raises
    `OutputError` where the file cannot be written, `ArtifactError` where a member has a bad name.
    """
    check_names(files, path)
    names = sorted(files)
    entries, members = [], {}
    for name in names:
        digest, crc, size = hashlib.sha256(), 0, 0
        for chunk in _content(files[name]):
            digest.update(chunk)
            crc, size = zlib.crc32(chunk, crc), size + len(chunk)
        entries.append(Entry(name, size, crc))
        members[name] = Member(digest.hexdigest(), size)
    manifest = replace(manifest, members=members, npuc=manifest.npuc or _version())
    head = manifest.encode()
    first = Entry(MANIFEST, len(head), zlib.crc32(head))
    layout = (first, *entries)
    with atomic_write(path) as part, part.open("wb") as file:
        file.write(archive.local_header(first) + head)
        for entry in entries:
            file.write(archive.local_header(entry))
            for chunk in _content(files[entry.name]):
                file.write(chunk)
        file.write(archive.tail(layout, _comment(head)))
    return Artifact(path, manifest, layout)


def read(path: Path) -> Artifact:
    """Open an artifact and check all but the members' contents, which are checked on access.

    Raises `ArtifactError` where it is not an artifact, of another format, damaged or unsafe, and
    `UsageError` where the file cannot be opened.
    """
    with _open(path) as file:
        size = os.fstat(file.fileno()).st_size
        head = _manifest_bytes(path, file, size)
        manifest = Manifest.decode(head)
        check_names(manifest.members, path)
        names = sorted(manifest.members)
        bare = [Entry(name, manifest.members[name].size) for name in names]
        layout = [Entry(MANIFEST, len(head)), *bare]
        start = archive.tail_offset(layout) if sum(e.size for e in layout) < size else size + 1
        if not 0 <= size - start <= len(archive.tail(layout, _comment(head))):
            raise _broken(path, manifest, f"{size} bytes do not hold what the manifest lists")
        file.seek(start)
        tail = file.read()
        layout = [
            replace(entry, crc=crc)
            for entry, crc in zip(layout, archive.crcs(layout, tail), strict=True)
        ]
        if layout[0].crc != zlib.crc32(head) or tail != archive.tail(layout, _comment(head)):
            raise _broken(path, manifest, "its central directory is not what npuc writes")
        for entry, at in archive.placed(layout):
            file.seek(at)
            header = archive.local_header(entry)
            if file.read(len(header)) != header:
                raise _broken(path, manifest, f"the header of {entry.name} is not what npuc writes")
    return Artifact(path, manifest, tuple(layout))


def model_files(program: Program, folder: Path) -> dict[str, Path]:
    """Save a program under `folder` and return its files by member path, for `write`."""
    (folder / "model").mkdir(parents=True)
    program.save(folder / MODEL)
    return {name: folder / name for name in (MODEL, WEIGHTS) if (folder / name).exists()}


def program(artifact: Artifact) -> Program:
    """Load the legalised model into memory, with the steps that led to it.

    Raises `ArtifactError` where the model refers to a file other than its own weights, or has
    other ports than the manifest says.
    """
    if MODEL not in artifact:
        raise ArtifactError(f"{artifact.path} holds no {MODEL}")
    with tempfile.TemporaryDirectory(prefix="npuc-") as name:
        folder = Path(name)
        for member in (MODEL, WEIGHTS):
            if member in artifact:
                artifact.extract(member, folder / Path(member).name)
        loaded = _load(artifact.path, folder / Path(MODEL).name)
    loaded = replace(loaded, steps=artifact.manifest.steps)
    for side in ("inputs", "outputs"):
        stated, real = getattr(artifact.manifest, side), getattr(loaded, side)
        if stated != real:
            listed = [", ".join(map(str, ports)) for ports in (stated, real)]
            raise ArtifactError(f"{artifact.path}: {side} are {listed[1]}, not {listed[0]}")
    return loaded


def deferred(artifact: Artifact) -> Program:
    """Return the program with the ports the manifest states; its graph is read where it is used.

    For running an artifact: the code it was compiled to needs the ports alone, and reading ONNX
    costs more memory than many models.
    """
    return _Deferred(artifact)


class _Deferred(Program):
    __slots__ = ("_artifact", "_loaded")
    _artifact: Artifact
    _loaded: Program | None

    def __init__(self, artifact: Artifact) -> None:
        stated = artifact.manifest
        for name, value in (
            ("inputs", stated.inputs), ("outputs", stated.outputs), ("steps", stated.steps),
            ("_artifact", artifact), ("_loaded", None),
        ):  # fmt: skip
            object.__setattr__(self, name, value)  # it is frozen

    @property
    def model(self) -> Any:  # pyright: ignore[reportIncompatibleVariableOverride]  # as frozen
        loaded = self._loaded or program(self._artifact)
        object.__setattr__(self, "_loaded", loaded)
        return loaded.model


def _load(source: Path, path: Path) -> Program:
    import onnx_ir as ir

    try:
        model = ir.load(path)
    except Exception as error:  # protobuf's and onnx_ir's errors share no base
        raise ArtifactError(f"{source}: {MODEL} is not an ONNX model: {error}") from error
    strays = sorted(set(map(repr, _strays(model))))
    if strays:
        raise ArtifactError(
            f"{source}: {MODEL} refers to files other than its weights: {', '.join(strays)}",
            hint="do not use this artifact; npuc does not write such references",
        )
    try:
        return Program.from_model(ir.external_data.load_to_model(model))
    except Exception as error:  # a wrong offset or length surfaces as one of many types
        raise ArtifactError(f"{source}: {WEIGHTS} does not hold the weights: {error}") from error


def _strays(model: Any) -> Iterator[str]:
    """Yield external files that the model may not refer to; attributes may refer to none."""
    import onnx_ir as ir

    graphs = [*model.graphs(), *(f.graph for f in model.functions.values())]
    for graph in graphs:
        for value in graph.initializers.values():
            tensor = value.const_value
            allowed = Path(WEIGHTS).name
            if isinstance(tensor, ir.ExternalTensor) and str(tensor.location) != allowed:
                yield str(tensor.location)
        for node in ir.traversal.RecursiveGraphIterator(graph):
            for attribute in node.attributes.values():
                held = attribute.value if isinstance(attribute.value, list | tuple) else ()
                for tensor in (attribute.value, *held):
                    if isinstance(tensor, ir.ExternalTensor):
                        yield str(tensor.location)


def _manifest_bytes(path: Path, file: IO[bytes], size: int) -> bytes:
    """Read the manifest and check it against the comment at the end of the file."""
    start = file.read(64)
    length = archive.first_size(start)
    name = start[30 : 30 + len(MANIFEST)]
    if length is None or name != MANIFEST.encode():
        raise _foreign(path, start, size)
    if length > _MANIFEST_LIMIT:
        raise ArtifactError(f"{path}: its manifest is {length} bytes long", hint=_HINT)
    file.seek(len(archive.local_header(Entry(MANIFEST, length))))
    head = file.read(length)
    file.seek(max(0, size - len(_comment(head))))
    if len(head) != length or file.read() != _comment(head):
        raise ArtifactError(
            f"{path} is cut off or damaged: its manifest does not match the hash at its end",
            hint=_HINT,
        )
    return head


def _broken(path: Path, manifest: Manifest, reason: str) -> ArtifactError:
    """Say what is wrong in the words of a zip where it is readable as one, else `reason`."""
    detail = "\n  ".join(zip_faults(path, manifest.members)) or reason
    return ArtifactError(f"{path} is cut off, damaged or unsafe:\n  {detail}", hint=_HINT)


def _foreign(path: Path, start: bytes, size: int) -> ArtifactError:
    what = "an empty file" if size == 0 else "another kind of file"
    if start[:4] == b"PK\x03\x04":
        what = "a zip file whose first member is not manifest.json"
    hint = f"to see what it is: npuc inspect {path}"
    return ArtifactError(f"{path} is not an npuc artifact: it is {what}", hint=hint)


def _content(source: bytes | Path) -> Iterator[bytes]:
    if isinstance(source, bytes):
        yield source
        return
    with source.open("rb") as file:
        while chunk := file.read(_CHUNK):
            yield chunk


def _open(path: Path) -> IO[bytes]:
    try:
        return path.open("rb")
    except OSError as error:
        raise UsageError(f"cannot read {path}: {error.strerror}") from error


def _comment(head: bytes) -> bytes:
    return _COMMENT + hashlib.sha256(head).hexdigest().encode()


def _version() -> str:
    from importlib.metadata import version

    return version("npuc")
