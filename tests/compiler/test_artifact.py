"""`.npuc` files: same inputs same bytes, every changed byte found, hostile files refused."""

import hashlib
import json
import os
import struct
import subprocess
import sys
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from npuc import archive, artifact, members
from npuc.errors import ArtifactError, OutputError, UsageError
from npuc.jsonable import canonical, plain
from npuc.manifest import Manifest
from npuc.program import Port, Program, Refusal, Step

FILES: dict[str, bytes | Path] = {"payload/a.bin": b"\x00\x01payload", "parity.json": b"{}"}
STEP = Step("fold", {"limit": 4, "only": ("a", "b")}, 3, (Refusal("n1", "dynamic"),), seconds=1.5)


def manifest(**changes: Any) -> Manifest:
    fields: dict[str, Any] = {
        "target": "cpu",
        "precision": "float",
        "evidence": "twin",
        "inputs": (Port("x", "float32", ("n", 3)),),
        "outputs": (Port("y", "float32", ("n", 2)),),
        "steps": (STEP,),
        "settings": {"level": 3, "peak": float("inf")},
    }
    return Manifest(**(fields | changes))


def make(path: Path, **changes: Any) -> Path:
    artifact.write(path, manifest(**changes), FILES)
    return path


def check(path: Path) -> None:
    artifact.read(path).verify()


def test_round_trip(tmp_path: Path) -> None:
    read = artifact.read(make(tmp_path / "a.npuc"))
    assert dict(read) == FILES
    assert read.manifest.inputs == (Port("x", "float32", ("n", 3)),)
    assert read.manifest.steps[0].options == {"limit": 4, "only": ["a", "b"]}
    assert read.manifest.steps[0].refusals == (Refusal("n1", "dynamic"),)
    assert read.manifest.steps[0].seconds == 0
    assert read.manifest.settings["peak"] == "inf"
    assert read.manifest.members["parity.json"].sha256 == hashlib.sha256(b"{}").hexdigest()
    assert read.manifest.npuc
    read.verify()


def test_members_can_be_streamed_from_files(tmp_path: Path) -> None:
    big = os.urandom(3_000_000)
    (tmp_path / "w").write_bytes(big)
    a = artifact.write(tmp_path / "a.npuc", manifest(), {"payload/w": tmp_path / "w"})
    artifact.write(tmp_path / "b.npuc", manifest(), {"payload/w": big})
    assert (tmp_path / "a.npuc").read_bytes() == (tmp_path / "b.npuc").read_bytes()
    a.extract("payload/w", tmp_path / "out")
    assert (tmp_path / "out").read_bytes() == big


def test_equal_arguments_give_equal_bytes(tmp_path: Path) -> None:
    a = make(tmp_path / "a.npuc").read_bytes()
    backwards = dict(reversed(FILES.items()))
    step = Step(STEP.name, dict(reversed(list(STEP.options.items()))), 3, STEP.refusals, seconds=99)
    artifact.write(tmp_path / "b.npuc", manifest(steps=(step,)), backwards)
    assert a == (tmp_path / "b.npuc").read_bytes()


def test_other_programs_read_it_as_a_zip(tmp_path: Path) -> None:
    with zipfile.ZipFile(make(tmp_path / "a.npuc")) as file:
        assert file.testzip() is None
        assert file.namelist() == sorted([members.MANIFEST, *FILES])
        assert {i.date_time for i in file.infolist()} == {(1980, 1, 1, 0, 0, 0)}
        assert {i.external_attr >> 16 for i in file.infolist()} == {0o100644}
        assert json.loads(file.read(members.MANIFEST))["target"] == "cpu"


def test_every_flipped_byte_is_found(tmp_path: Path) -> None:
    good = make(tmp_path / "a.npuc").read_bytes()
    bad = tmp_path / "bad.npuc"
    for mask in (0x01, 0x20, 0xFF):  # 0x20: a letter's case
        for at in range(len(good)):
            bad.write_bytes(good[:at] + bytes([good[at] ^ mask]) + good[at + 1 :])
            with pytest.raises(ArtifactError):
                check(bad)


def test_every_cut_and_every_addition_is_found(tmp_path: Path) -> None:
    good = make(tmp_path / "a.npuc").read_bytes()
    bad = tmp_path / "bad.npuc"
    for at in range(len(good)):
        bad.write_bytes(good[:at])
        with pytest.raises(ArtifactError):
            check(bad)
    for at in range(len(good) + 1):
        bad.write_bytes(good[:at] + b"\x00" + good[at:])
        with pytest.raises(ArtifactError):
            check(bad)


def test_damage_to_members_is_named_all_at_once_and_on_access(tmp_path: Path) -> None:
    path = make(tmp_path / "a.npuc")
    data = path.read_bytes().replace(b"\x01payload", b"\x01pAyload").replace(b"json{}", b"json[]")
    path.write_bytes(data)
    opened = artifact.read(path)
    with pytest.raises(ArtifactError, match=r"payload/a\.bin does not match"):
        opened["payload/a.bin"]
    with pytest.raises(ArtifactError) as caught:
        opened.verify()
    assert "parity.json" in caught.value.message and "payload/a.bin" in caught.value.message


def test_a_file_replaced_after_opening_is_found(tmp_path: Path) -> None:
    path = make(tmp_path / "a.npuc")
    opened = artifact.read(path)
    artifact.write(path, manifest(), {"payload/a.bin": b"\x00\x01other!!", "parity.json": b"{}"})
    with pytest.raises(ArtifactError, match="does not match"):
        opened["payload/a.bin"]


def rebuilt(path: Path, head: bytes, files: Mapping[str, bytes], **zip_options: Any) -> Path:
    """Write what an attacker would: any zip whose comment matches its manifest."""
    with zipfile.ZipFile(path, "w", **zip_options) as file:
        file.writestr(zipfile.ZipInfo(members.MANIFEST), head)
        for name, content in files.items():
            info = zipfile.ZipInfo("x")
            info.filename = name
            info.compress_type = zip_options.get("compression", zipfile.ZIP_STORED)
            file.writestr(info, content)
        file.comment = artifact._COMMENT + hashlib.sha256(head).hexdigest().encode()
    return path


def laid_out(path: Path, head: bytes, files: Mapping[str, bytes]) -> Path:
    """Write a file in npuc's own layout with any manifest and any names."""
    contents = {members.MANIFEST: head, **dict(sorted(files.items()))}
    entries = [archive.Entry(n, len(c), zlib.crc32(c)) for n, c in contents.items()]
    body = b"".join(archive.local_header(e) + contents[e.name] for e in entries)
    comment = artifact._COMMENT + hashlib.sha256(head).hexdigest().encode()
    path.write_bytes(body + archive.tail(entries, comment))
    return path


def head_for(files: Mapping[str, bytes], **changes: Any) -> bytes:
    listed = {
        name: {"sha256": hashlib.sha256(content).hexdigest(), "size": len(content)}
        for name, content in files.items()
    }
    return canonical(json.loads(manifest(npuc="0").encode()) | {"members": listed} | changes)


PAYLOAD = {"payload/x": b"1234"}


def test_the_attackers_tools_work(tmp_path: Path) -> None:
    check(laid_out(tmp_path / "ok.npuc", head_for(PAYLOAD), PAYLOAD))


@pytest.mark.parametrize(
    "name",
    [
        *("payload/../../x", "/payload/x", "payload\\x", "C:/x", "payload//x", "payload/./x"),
        *("payload/x ", "payload/x.", "other/x", "manifest.json", "payload/", "model", ""),
        "payload/é",
    ],
)
def test_unsafe_names_are_refused_on_both_sides(tmp_path: Path, name: str) -> None:
    with pytest.raises(ArtifactError, match="unsafe"):
        artifact.write(tmp_path / "w.npuc", manifest(), {name: b""})
    assert not (tmp_path / "w.npuc").exists()
    if name.isascii():
        laid_out(tmp_path / "r.npuc", head_for({name: b"1"}), {name: b"1"})
        with pytest.raises(ArtifactError, match="unsafe"):
            artifact.read(tmp_path / "r.npuc")


@pytest.mark.parametrize("pair", [("payload/A", "payload/a"), ("payload/a", "payload/a/b")])
def test_names_that_collide_are_refused(tmp_path: Path, pair: tuple[str, str]) -> None:
    with pytest.raises(ArtifactError, match="unsafe"):
        artifact.write(tmp_path / "w.npuc", manifest(), dict.fromkeys(pair, b""))


@pytest.mark.filterwarnings("ignore:Duplicate name:UserWarning")
@pytest.mark.parametrize(
    ("files", "match"),
    [
        (PAYLOAD | {"payload/y": b""}, "'payload/y' is not listed"),
        (PAYLOAD | {"../evil": b""}, "path out of the artifact"),
        (PAYLOAD | {"/evil": b""}, "absolute path"),
        (PAYLOAD | {"manifest.json": b"{}"}, r"'manifest.json' occurs 2 times"),
        ({}, "'payload/x' is missing"),
    ],
)
def test_other_zip_contents_are_named(tmp_path: Path, files: dict[str, bytes], match: str) -> None:
    path = rebuilt(tmp_path / "r.npuc", head_for(PAYLOAD), files)
    with pytest.raises(ArtifactError, match=match):
        artifact.read(path)


def test_a_compressed_bomb_is_refused_unread(tmp_path: Path) -> None:
    files = {"payload/x": bytes(50_000_000)}
    path = rebuilt(tmp_path / "r.npuc", head_for(files), files, compression=zipfile.ZIP_DEFLATED)
    assert path.stat().st_size < 200_000
    with pytest.raises(ArtifactError, match="compressed"):
        artifact.read(path)


def test_sizes_beyond_the_file_are_refused(tmp_path: Path) -> None:
    for size in (5, 2**40, 10**30):
        data = json.loads(head_for(PAYLOAD))
        data["members"]["payload/x"]["size"] = size
        laid_out(tmp_path / "r.npuc", canonical(data), PAYLOAD)
        with pytest.raises(ArtifactError):
            artifact.read(tmp_path / "r.npuc")


def test_a_wrong_crc_with_a_right_hash_is_found(tmp_path: Path) -> None:
    path = laid_out(tmp_path / "r.npuc", head_for(PAYLOAD), PAYLOAD)
    crc, other = struct.pack("<L", zlib.crc32(b"1234")), b"\x01\x02\x03\x04"
    path.write_bytes(path.read_bytes().replace(crc, other))  # in both headers
    with pytest.raises(ArtifactError, match="payload/x"):
        check(path)


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"format": 2}, "unknown artifact format 2"),
        ({"format": True}, "format"),
        ({"extra": 1}, "unknown key 'extra'"),
        ({"target": 3, "notes": "x", "inputs": [{"name": "x"}]}, r"(?s)target.*inputs.*notes"),
        ({"members": {"payload/x": {"sha256": "0", "size": 1}}}, "not a SHA-256"),
        ({"members": {"payload/x": {"sha256": "0" * 64, "size": -1}}}, "not a count"),
    ],
)
def test_malformed_manifests_are_refused(
    tmp_path: Path, change: dict[str, Any], match: str
) -> None:
    path = laid_out(tmp_path / "r.npuc", head_for(PAYLOAD, **change), PAYLOAD)
    with pytest.raises(ArtifactError, match=match):
        artifact.read(path)


@pytest.mark.parametrize("head", [b"", b"[]", b"{", b"null", b"[" * 100_000, b"\xff", b'{"a":NaN}'])
def test_manifests_that_are_no_object_are_refused(tmp_path: Path, head: bytes) -> None:
    with pytest.raises(ArtifactError):
        artifact.read(laid_out(tmp_path / "r.npuc", head, {}))


def test_a_manifest_with_a_repeated_key_is_refused(tmp_path: Path) -> None:
    head = head_for(PAYLOAD).replace(b' "target"', b' "target": "atom",\n "target"')
    with pytest.raises(ArtifactError, match="canonical"):
        artifact.read(laid_out(tmp_path / "r.npuc", head, PAYLOAD))


@pytest.mark.parametrize("content", [b"", b"PK", b"PK\x03\x04", b"\x7fELF" + bytes(100), b"x" * 99])
def test_other_files_are_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "x.npuc").write_bytes(content)
    with pytest.raises(ArtifactError, match="not an npuc artifact"):
        artifact.read(tmp_path / "x.npuc")


def test_missing_and_odd_paths_are_usage_errors(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "none.npuc"):
        with pytest.raises(UsageError, match="cannot read"):
            artifact.read(path)


def test_an_unwritable_place_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(OutputError):
        make(tmp_path / "none" / "a.npuc")
    old = make(tmp_path / "a.npuc").read_bytes()
    with pytest.raises(TypeError):
        make(tmp_path / "a.npuc", settings={"bad": object()})
    assert (tmp_path / "a.npuc").read_bytes() == old
    assert [p.name for p in tmp_path.iterdir()] == ["a.npuc"]


def test_a_full_disk_is_an_output_error() -> None:
    """The kernel's own "no space" from a file size limit, in a process of its own."""
    code = """
import resource, signal, sys, tempfile
from pathlib import Path
from npuc import artifact, errors
from npuc.manifest import Manifest
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
folder = Path(tempfile.mkdtemp())
resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
try:
    about = Manifest("t", "p", "twin", (), ())
    artifact.write(folder / "a.npuc", about, {"payload/x": bytes(9999)})
except errors.OutputError as error:
    print(error.exit_code, list(folder.iterdir()))
folder.rmdir()
"""
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert run.stdout == "8 []\n", run.stderr


def test_zip64_fields_are_laid_out_as_the_format_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the limit lowered every wide field is used; zipfile must read the same content."""
    monkeypatch.setattr(archive, "LIMIT", 5000)
    content = {"payload/a": bytes(4999), "payload/b": bytes(5000), "payload/c": b"c" * 9000}
    check(laid_out(tmp_path / "a.npuc", head_for(content), content))
    with zipfile.ZipFile(tmp_path / "a.npuc") as file:
        assert file.testzip() is None
        assert {n: file.read(n) for n in content} == content


def test_plain_refuses_what_json_cannot_hold() -> None:
    assert plain({"a": np.float32(0.5), "b": {3, 1}, "c": Path("x/y")}) == {
        "a": 0.5,
        "b": [1, 3],
        "c": "x/y",
    }
    for value in (object(), {1: 2}, b"raw", np.zeros(2)):
        with pytest.raises(TypeError):
            plain(value)


def small_program(weights: int = 400) -> Program:
    x = ir.Value(name="x", shape=ir.Shape(["n", weights]), type=ir.TensorType(ir.DataType.FLOAT))
    w = ir.Value(name="w", const_value=ir.tensor(np.arange(weights, dtype=np.float32), name="w"))
    w.shape, w.dtype = ir.Shape([weights]), ir.DataType.FLOAT
    node = ir.node("Add", [x, w])
    y = node.outputs[0]
    y.name, y.shape, y.type = "y", x.shape, x.type
    graph = ir.Graph([x], [y], nodes=[node], initializers=[w], opset_imports={"": 20}, name="g")
    return Program.from_model(ir.Model(graph, ir_version=10), steps=(STEP,))


def store(path: Path, program: Program, folder: Path) -> Path:
    files: dict[str, bytes | Path] = dict(artifact.model_files(program, folder))
    about = manifest(inputs=program.inputs, outputs=program.outputs, steps=program.steps)
    artifact.write(path, about, files)
    return path


@pytest.mark.parametrize("weights", [2, 400])
def test_the_model_comes_back(tmp_path: Path, weights: int) -> None:
    source = small_program(weights)
    path = store(tmp_path / "a.npuc", source, tmp_path / "one")
    again = store(tmp_path / "b.npuc", source, tmp_path / "two")
    assert path.read_bytes() == again.read_bytes()
    loaded = artifact.program(artifact.read(path))
    path.unlink()  # nothing may still point into the file
    tensor = loaded.model.graph.initializers["w"].const_value
    assert tensor is not None
    np.testing.assert_array_equal(tensor.numpy(), np.arange(weights, dtype=np.float32))
    assert loaded.inputs == source.inputs and loaded.steps[0].name == "fold"


def test_external_data_stays_in_the_artifact(tmp_path: Path) -> None:
    files = artifact.model_files(small_program(), tmp_path / "m")
    raw = files[members.MODEL].read_bytes()
    secret = (tmp_path / "m" / "secret").name
    for location in ("../../etc/passwd.sm", "/etc/hostname.files", f"{secret}.safetensor123"):
        changed = raw.replace(b"program.safetensors", location.encode()[:19].ljust(19, b"x"))
        assert changed != raw
        program = small_program()
        about = manifest(inputs=program.inputs, outputs=program.outputs)
        content: dict[str, bytes | Path] = {
            members.MODEL: changed,
            members.WEIGHTS: files[members.WEIGHTS],
        }
        stored = artifact.write(tmp_path / "a.npuc", about, content)
        with pytest.raises(ArtifactError, match="other than its weights"):
            artifact.program(stored)


def test_models_that_do_not_fit_their_manifest_are_refused(tmp_path: Path) -> None:
    program = small_program()
    files: dict[str, bytes | Path] = dict(artifact.model_files(program, tmp_path / "m"))
    stored = artifact.write(tmp_path / "a.npuc", manifest(), files)
    with pytest.raises(ArtifactError, match="inputs are x:nx400:float32, not x:nx3:float32"):
        artifact.program(stored)
    about = manifest(inputs=program.inputs, outputs=program.outputs)
    for change in ({members.WEIGHTS: b"short"}, {members.MODEL: b"not onnx"}):
        stored = artifact.write(tmp_path / "a.npuc", about, files | change)
        with pytest.raises(ArtifactError):
            artifact.program(stored)
    with pytest.raises(ArtifactError, match="holds no model"):
        artifact.program(artifact.write(tmp_path / "a.npuc", about, {"payload/x": b""}))
