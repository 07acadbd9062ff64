"""What starting npuc loads: nothing heavy until a verb needs it."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

import npuc

HEAVY = {"torch", "tvm", "tvm_ffi", "onnx", "onnxruntime", "onnx_ir", "onnxscript", "onnxsim"}
HEAVY |= {"numpy", "sklearn", "safetensors", "rich"}


def loaded(code: str, folder: Path) -> set[str]:
    """Return the top-level modules that are loaded after running `code` in a new process."""
    listing = "import json, sys; print(); print(json.dumps([*sys.modules]))"
    run = subprocess.run(
        [sys.executable, "-c", f"{code}\n{listing}"],
        cwd=folder,
        capture_output=True,
        text=True,
        check=True,
    )
    return {name.split(".")[0] for name in json.loads(run.stdout.splitlines()[-1])}


def verb(*words: str) -> str:
    return f"from npuc.cli import main; assert main({list(words)}) == 0"


def test_import_npuc_is_light(tmp_path: Path) -> None:
    assert (
        loaded("import npuc, npuc.cli; npuc.NpucError; npuc.__version__", tmp_path) & HEAVY == set()
    )


@pytest.mark.parametrize("words", [["--help"], ["compile", "--help"], ["--version"]])
def test_help_is_light(words: list[str], tmp_path: Path) -> None:
    assert loaded(verb(*words), tmp_path) & HEAVY == set()


@pytest.mark.parametrize("words", [["targets"], ["targets", "--json"], ["passes"]])
def test_lists_load_neither_torch_nor_tvm(words: list[str], tmp_path: Path) -> None:
    assert loaded(verb(*words), tmp_path) & {"torch", "tvm", "tvm_ffi", "onnxruntime"} == set()


def test_tvm_does_without_torch_in_processes_of_npucs_own(tmp_path: Path) -> None:
    """torch stays importable, within and afterwards; where it is loaded, TVM knows it."""
    lean = "from npuc.lean import lean\nwith lean():\n    import {}"
    assert not loaded(lean.format("tvm, tvm_ffi"), tmp_path) & {"torch"}
    code = lean.format("tvm, torch") + "\nimport tvm_ffi\ntorch.ones(2)"
    assert "torch" in loaded(f"{code}\nassert tvm_ffi._convert.torch is None", tmp_path)
    code = lean.format("torch, tvm_ffi") + "\nassert tvm_ffi._convert.torch is torch"
    assert "torch" in loaded(code, tmp_path)


def test_public_names_stay_functions_when_their_modules_are_imported(tmp_path: Path) -> None:
    """`npuc.load` is both a function and a module; users mean the function."""
    code = "import npuc.load, npuc.record; assert callable(npuc.load); from npuc import load"
    code += "; assert load is npuc.load; assert npuc.load.__name__ == 'load'"
    assert "npuc" in loaded(code, tmp_path)  # which fails where the code does


def test_public_names_are_all_there() -> None:
    assert {"save", "compile", "load", "verify", "NpucError"} <= set(dir(npuc))
    for name in npuc.__all__:
        assert callable(getattr(npuc, name)), name
    with pytest.raises(AttributeError, match="no attribute 'simulat'"):
        npuc.__getattr__("simulat")
