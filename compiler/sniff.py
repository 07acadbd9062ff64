"""Tell what a model file is from its bytes: never from its name, and never by unpickling it."""

import json
import struct
import tarfile
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Literal

from npuc import pickles
from npuc.errors import LoadError
from npuc.zips import open_zip, refuse_damage, strip_root

KindName = Literal[
    "module", "state-dict", "checkpoint", "torchscript", "pt2", "aoti", "safetensors", "onnx",
    "npuc", "directory", "empty", "unknown",
]  # fmt: skip

LEGACY_MAGIC = bytes.fromhex("8a0a6cfc9c46f9206aa8")
"""torch.save before 1.6 begins with a pickle of this number: 0x1950a86a20f9469cfc6c."""

PICKLE_LIMIT = 2**29
"""Bytes of one pickle that npuc reads; tensors are stored outside of it."""


@dataclass(frozen=True)
class Kind:
    """What a file is: `name` for code, `what` for people.

    `imports` are the names a pickle would import, other than those tensors need. `root` is the
    folder inside a torch archive that holds all members.
    """

    name: KindName
    what: str
    imports: tuple[str, ...] = ()
    root: str = ""


def sniff(path: Path) -> Kind:
    """Tell a file's kind; raises `LoadError` where it cannot be read, is damaged or unsafe."""
    if path.is_dir():
        return Kind("directory", "a directory")
    try:
        with path.open("rb") as file:
            head = file.read(512)
            if not head:
                return Kind("empty", "an empty file")
            if head.startswith(b"PK"):
                return _zip(path)
            return _plain(path, file, head)
    except FileNotFoundError as error:
        raise LoadError(
            f"{path}: no such file", hint="check the path; zoo models are written zoo:NAME"
        ) from error
    except OSError as error:
        raise LoadError(f"{path}: cannot be read: {error.strerror or error}") from error


def _zip(path: Path) -> Kind:
    foreign = _foreign_zip(path)
    if foreign:
        return Kind("unknown", foreign)
    with open_zip(path) as archive:
        if "manifest.json" in archive.namelist():
            return _npuc(archive)
        root, names = strip_root(archive.namelist())
        found = frozenset(names)
        prefix = root + "/" if root else ""
        if "archive_format" in found:
            return _export_archive(found, root)
        if "serialized_exported_program.json" in archive.namelist():
            what = "an exported program in the format of torch 2.7 and older"
            return Kind("unknown", what)
        if "constants.pkl" in found and any(n.startswith("code/") for n in found):
            return Kind("torchscript", "a TorchScript program", root=root)
        if "data.pkl" in found:
            refuse_damage(archive, path)
            info = archive.getinfo(prefix + "data.pkl")
            return _pickled(archive.read(info) if info.file_size < PICKLE_LIMIT else b"", root)
        what = f"a zip archive that holds no model ({', '.join(sorted(found)[:5])} …)"
        return Kind("unknown", what)


def _foreign_zip(path: Path) -> str:
    """Name other tools' zip formats, which may be compressed, before the strict checks."""
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except (zipfile.BadZipFile, NotImplementedError, ValueError, EOFError):
        return ""  # open_zip explains it
    if {"metadata.json", "config.json", "model.weights.h5"} <= set(names):
        return "a Keras 3 model (.keras)"
    if names and all(n.endswith(".npy") for n in names):
        return "a numpy archive (.npz): inputs, not a model"
    return ""


def _npuc(archive: zipfile.ZipFile) -> Kind:
    try:
        manifest = json.loads(archive.read("manifest.json"))
    except (ValueError, RecursionError, zipfile.BadZipFile):
        manifest = None
    if isinstance(manifest, dict) and "npuc" in manifest and "format" in manifest:
        return Kind("npuc", "an npuc artifact")
    return Kind("unknown", "a zip archive with a manifest.json that is not npuc's")


def _export_archive(names: frozenset[str], root: str) -> Kind:
    # Native code wins over a graph beside it: loading either would load both.
    if any(n.startswith("data/aotinductor/") for n in names):
        return Kind("aoti", "an AOTInductor package (native code)", root=root)
    if any(n.startswith("models/") for n in names):
        return Kind("pt2", "an exported program (.pt2)", root=root)
    return Kind("unknown", "a torch archive without an exported program", root=root)


def _pickled(data: bytes, root: str = "", legacy: bool = False) -> Kind:
    try:
        return _classify(pickles.read(data), root, legacy)
    except pickles.PickleFault as fault:
        return Kind("unknown", f"a torch.save archive whose pickle is damaged ({fault})")


def _classify(contents: pickles.Contents, root: str, legacy: bool) -> Kind:
    age = " (format from before torch 1.6)" if legacy else ""
    mapping, foreign = contents.mapping, contents.foreign
    if mapping is None and foreign:
        what = "a pickled module" if _looks_like_module(contents.top) else "a pickled object"
        return Kind("module", what + age, foreign, root)
    if mapping is None:
        top = "tensor" if pickles.is_tensor(contents.top) else type(contents.top).__name__
        what = f"a torch.save archive of a {top}, not of a model"
        return Kind("unknown", what + age, foreign, root)
    if mapping and all(pickles.is_tensor(v) for v in mapping.values()):
        return Kind("state-dict", f"a state dict of {len(mapping)} tensors{age}", foreign, root)
    keys = ", ".join(map(repr, list(mapping)[:8]))
    return Kind("checkpoint", f"a checkpoint with the keys {keys}{age}", foreign, root)


def _looks_like_module(top: object) -> bool:
    state = top.items.get("state") if isinstance(top, pickles.Made) else None
    return isinstance(state, dict) and "_modules" in state


def _plain(path: Path, file: BinaryIO, head: bytes) -> Kind:
    if head.startswith(b"\x80") and head[2:].startswith(LEGACY_MAGIC):
        return _legacy(file)
    if _is_safetensors(path, head):
        return Kind("safetensors", "a safetensors file")
    for magic, offset, what in _MAGIC:
        if head[offset:].startswith(magic):
            return Kind("unknown", what)
    if _is_onnx(file, path.stat().st_size):
        return Kind("onnx", "an ONNX model")
    if head[:1] == b"\x80" and head[1:2] in b"\x02\x03\x04\x05":
        return Kind("unknown", "a plain pickle (not written by torch.save)")
    if len(head) > 262 and tarfile.is_tarfile(path):
        return Kind("unknown", "a tar archive")
    if len(head) >= 9 and head[8:9] == b"{":
        return Kind("unknown", "a safetensors file that is truncated or damaged")
    return Kind("unknown", _text(head) or "of no format npuc knows")


def _legacy(file: BinaryIO) -> Kind:
    """Magic number, protocol version and system info come first, each a pickle of its own."""
    file.seek(0)
    try:
        *_, contents = pickles.read_all(file, 4)
    except pickles.PickleFault as fault:
        return Kind("unknown", f"a torch.save file that is truncated or damaged ({fault})")
    return _classify(contents, "", legacy=True)


def _is_safetensors(path: Path, head: bytes) -> bool:
    if len(head) < 10 or head[8:9] != b"{":
        return False
    (length,) = struct.unpack("<Q", head[:8])
    size = path.stat().st_size
    if not 2 <= length <= min(size - 8, 100_000_000):  # the format's own limit on its header
        return False
    with path.open("rb") as file:
        file.seek(8)
        try:
            header = json.loads(file.read(length))
        except (ValueError, RecursionError):
            return False
    entries = [v for k, v in header.items() if k != "__metadata__"]
    if not all(isinstance(v, dict) and "data_offsets" in v for v in entries):
        return False
    return bool(8 + length + max((v["data_offsets"][1] for v in entries), default=0) == size)


def _is_onnx(file: BinaryIO, size: int) -> bool:
    """Walk the top-level fields of a ModelProto: known numbers, right wire types, to the end.

    onnx/onnx.proto: ir_version 1, producer 2-3, domain 4, model_version 5, doc 6, graph 7,
    opset_import 8, metadata_props 14, training_info 20, functions 25, configuration 26.
    """
    varints, blocks = {1, 5}, {2, 3, 4, 6, 7, 8, 14, 20, 25, 26}
    seen: set[int] = set()
    file.seek(0)
    while file.tell() < size:
        key = _varint(file)
        number, wire = key >> 3, key & 7
        if number in varints and wire == 0:
            if _varint(file) < 0:
                return False
        elif number in blocks and wire == 2:
            length = _varint(file)
            if length < 0 or file.tell() + length > size:
                return False
            file.seek(length, 1)
        else:
            return False
        seen.add(number)
    return {1, 7, 8} <= seen


def _varint(file: BinaryIO) -> int:
    """Read a protobuf varint; -1 where there is none."""
    value = 0
    for shift in range(0, 70, 7):
        byte = file.read(1)
        if not byte:
            return -1
        value |= (byte[0] & 0x7F) << shift
        if not byte[0] & 0x80:
            return value
    return -1


def _text(head: bytes) -> str:
    try:
        text = head.decode("utf-8")
    except UnicodeDecodeError as error:
        if error.start < len(head) - 3:  # more than a character cut at the end
            return ""
        text = head[: error.start].decode("utf-8")
    if not all(c.isprintable() or c.isspace() for c in text):
        return ""
    if text.startswith("version https://git-lfs"):
        return "a Git LFS pointer, not the file it points to (run: git lfs pull)"
    if text.lstrip()[:1] == "<":
        return "an HTML or XML page: a download page instead of the file?"
    first = text.strip().splitlines()[0][:60] if text.strip() else ""
    return f"a text file beginning with {first!r}"


_MAGIC = (
    (b"\x1f\x8b", 0, "a gzip file (unpack it first: gunzip)"),
    (b"BZh", 0, "a bzip2 file (unpack it first)"),
    (b"\xfd7zXZ\x00", 0, "an xz file (unpack it first)"),
    (b"\x28\xb5\x2f\xfd", 0, "a zstandard file (unpack it first)"),
    (b"7z\xbc\xaf\x27\x1c", 0, "a 7-zip archive (unpack it first)"),
    (b"\x89HDF\r\n\x1a\n", 0, "an HDF5 file (Keras or TensorFlow weights)"),
    (b"TFL3", 4, "a TensorFlow Lite model"),
    (b"ET12", 4, "an ExecuTorch program (.pte): already compiled"),
    (b"ORTM", 4, "a model in ONNX Runtime's own format (.ort)"),
    (b"GGUF", 0, "a GGUF file (llama.cpp weights)"),
    (b"\x93NUMPY", 0, "a numpy array (.npy): an input, not a model"),
    (b"\x7fELF", 0, "a program or shared library (ELF)"),
    (b"ustar", 257, "a tar archive (unpack it first)"),
)
