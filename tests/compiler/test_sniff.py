"""A file's kind comes from its bytes; damaged and unsafe archives are refused with a reason."""

import gzip
import io
import json
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from npuc.errors import LoadError
from npuc.sniff import sniff


def _onnx(path: Path) -> None:
    import onnx_ir as ir

    text = (
        '<ir_version: 10, opset_import: ["" : 20]> g (float[2] x) => (float[2] y) { y = Relu(x) }'
    )
    path.write_bytes(ir.to_proto(ir.from_onnx_text(text)).SerializeToString())


def _script(path: Path) -> None:
    with pytest.warns(DeprecationWarning):
        torch.jit.save(torch.jit.script(nn.Linear(2, 2)), path)


def _artifact(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("manifest.json", json.dumps({"format": 1, "npuc": "0.1.0"}))


def _aoti(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("m/archive_format", "pt2")
        archive.writestr("m/models/model.json", "{}")
        archive.writestr("m/data/aotinductor/model/a.so", b"\x7fELF")


_STATE = {"a.weight": torch.ones(2, 3), "a.bias": torch.ones(2)}

MADE: dict[str, tuple[str, str, Callable[[Path], object]]] = {
    "module": ("module", "pickled module", lambda p: torch.save(nn.Linear(2, 2), p)),
    "old module": (
        "module",
        "before torch 1.6",
        lambda p: torch.save(nn.Linear(2, 2), p, _use_new_zipfile_serialization=False),
    ),
    "state dict": ("state-dict", "2 tensors", lambda p: torch.save(_STATE, p)),
    "module's state": (
        "state-dict",
        "5 tensors",
        lambda p: torch.save(nn.BatchNorm1d(3).state_dict(), p),
    ),
    "old state": (
        "state-dict",
        "before torch 1.6",
        lambda p: torch.save(_STATE, p, _use_new_zipfile_serialization=False),
    ),
    "checkpoint": (
        "checkpoint",
        "'epoch', 'model'",
        lambda p: torch.save({"epoch": 1, "model": _STATE}, p),
    ),
    "script": ("torchscript", "TorchScript", _script),
    "aoti": ("aoti", "native code", _aoti),
    "safetensors": ("safetensors", "safetensors", lambda p: save_file(_STATE, p)),
    "onnx": ("onnx", "ONNX", _onnx),
    "artifact": ("npuc", "artifact", _artifact),
    "directory": ("directory", "directory", lambda p: p.mkdir()),
    "empty": ("empty", "empty", lambda p: p.touch()),
    "tensor": ("unknown", "of a tensor", lambda p: torch.save(torch.ones(2), p)),
    "list": ("unknown", "list", lambda p: torch.save([1, 2], p)),
    "gzip": ("unknown", "gzip", lambda p: p.write_bytes(gzip.compress(b"x" * 99))),
    "hdf5": ("unknown", "HDF5", lambda p: p.write_bytes(b"\x89HDF\r\n\x1a\n" + bytes(99))),
    "tflite": (
        "unknown",
        "TensorFlow Lite",
        lambda p: p.write_bytes(b"\x1c\0\0\0TFL3" + bytes(99)),
    ),
    "gguf": ("unknown", "GGUF", lambda p: p.write_bytes(b"GGUF" + bytes(99))),
    "pickle": ("unknown", "plain pickle", lambda p: p.write_bytes(pickle.dumps({"a": 1}))),
    "npy": ("unknown", "numpy array", lambda p: np.save(p.open("wb"), np.ones(3))),
    "npz": ("unknown", "numpy archive", lambda p: np.savez(p.open("wb"), a=np.ones(3))),
    "lfs": (
        "unknown",
        "Git LFS",
        lambda p: p.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\n"),
    ),
    "html": ("unknown", "HTML", lambda p: p.write_text("<!DOCTYPE html><html></html>")),
    "text": ("unknown", "beginning with 'hello", lambda p: p.write_text("hello\nworld")),
    "noise": ("unknown", "no format", lambda p: p.write_bytes(bytes(range(128, 256)) * 9)),
}


@pytest.mark.parametrize("what", MADE)
def test_kind_is_told_from_bytes_whatever_the_name(tmp_path: Path, what: str) -> None:
    name, words, make = MADE[what]
    path = tmp_path / "model.jpg"
    with _closing():
        make(path)
    kind = sniff(path)
    assert kind.name == name
    assert words in kind.what


class _closing:
    """Tests open files in lambdas; this lets the interpreter close them without a warning."""

    def __enter__(self) -> None:
        import warnings

        self.saved = warnings.catch_warnings()
        self.saved.__enter__()
        warnings.simplefilter("ignore", ResourceWarning)

    def __exit__(self, *args: Any) -> None:
        import gc

        gc.collect()
        self.saved.__exit__(*args)


def test_exported_program_and_the_names_a_module_would_import(pt2: Path, tmp_path: Path) -> None:
    assert sniff(pt2).name == "pt2"
    path = tmp_path / "m.pt"
    torch.save(nn.Sequential(nn.Conv2d(1, 1, 1)), path)
    names = sniff(path).imports
    assert "torch.nn.modules.conv.Conv2d" in names
    assert not any(name.startswith("torch._utils") for name in names)


def test_every_truncation_of_a_file_is_refused_or_unknown(tmp_path: Path, pt2: Path) -> None:
    save_file(_STATE, tmp_path / "s")
    _onnx(tmp_path / "o")
    torch.save(_STATE, tmp_path / "old", _use_new_zipfile_serialization=False)
    for source in (pt2, tmp_path / "s", tmp_path / "o"):
        whole = source.read_bytes()
        for share in (0.1, 0.3, 0.5, 0.9, 0.999):
            path = tmp_path / "cut"
            path.write_bytes(whole[: int(len(whole) * share)])
            try:
                kind = sniff(path)
            except LoadError as error:
                assert "truncated" in str(error) and str(path) in str(error)
            else:
                assert kind.name == "unknown", (source, share, kind)


def _bomb(path: Path) -> None:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("m/data.pkl", bytes(50_000_000))


def _overlap(path: Path) -> None:
    """Ten central directory entries for one stored member."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("m/data.pkl", bytes(1000))
        (info,) = archive.infolist()
        for i in range(10):
            twin = zipfile.ZipInfo(f"m/data{i}.pkl")
            for field in ("header_offset", "file_size", "compress_size", "CRC"):
                setattr(twin, field, getattr(info, field))
            archive.filelist.append(twin)
            archive._didModify = True  # type: ignore[attr-defined]
    path.write_bytes(buffer.getvalue())


def _members(*names: str) -> Callable[[Path], None]:
    def make(path: Path) -> None:
        with zipfile.ZipFile(path, "w") as archive:
            for name in names:
                info = zipfile.ZipInfo("x")
                info.filename = name
                archive.writestr(info, b"data")

    return make


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (_bomb, "inflates from"),
        (_overlap, "overlap"),
        (_members("m/data.pkl", "m/../../etc/passwd"), "outside its folder"),
        (_members("m/data.pkl", "/etc/passwd"), "outside its folder"),
        (_members("m/data.pkl", "C:/x"), "outside its folder"),
        (_members("m/data.pkl", "m/DATA.pkl"), "occurs 2 times"),
    ],
)
def test_hostile_zip_archives(tmp_path: Path, make: Callable[[Path], None], words: str) -> None:
    path = tmp_path / "model.pt"
    make(path)
    with pytest.raises(LoadError, match=words) as caught:
        sniff(path)
    assert str(path) in caught.value.message


def test_missing_and_unreadable(tmp_path: Path) -> None:
    with pytest.raises(LoadError, match="no such file"):
        sniff(tmp_path / "nothing")


def test_cut_pickle_in_a_whole_archive(tmp_path: Path) -> None:
    path = tmp_path / "m.pt"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("m/data.pkl", pickle.dumps(_STATE, protocol=2)[:40])
    kind = sniff(path)
    assert kind.name == "unknown" and "damaged" in kind.what


@pytest.mark.parametrize("protocol", range(6))
def test_names_are_found_in_every_protocol_without_importing(protocol: int, sentinel: Path) -> None:
    from npuc import pickles

    class_of_payload = type("P", (), {"__reduce__": lambda self: (open, (str(sentinel), "w"))})
    contents = pickles.read(pickle.dumps({"a": [class_of_payload()]}, protocol=protocol))
    assert contents.foreign and contents.foreign[0].endswith("open")
    assert not sentinel.exists()


def test_hidden_names_do_not_pass_as_tensors() -> None:
    from npuc import pickles

    computed = b"\x80\x04\x8c\x02os\x8c\x06system\x94\x93\x8c\x02id\x85R."
    assert pickles.read(computed).foreign == ("os.system",)
    called_result = b"\x80\x02ccollections\nOrderedDict\n)R)R."
    assert pickles.read(called_result).foreign
    with pytest.raises(pickles.PickleFault):
        pickles.read(b"\x80\x02\x93.")
