"""The command line: what it prints, what it passes on, and how it ends.

Printed text is compared with files in tests/golden; ``NPUC_GOLDEN=write pytest
tests/compiler/test_cli.py`` rewrites them, to be reviewed as a diff.
"""

import gc
import json
import os
import re
import sys
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import click
import pytest

import npuc
from npuc import errors, listing, plugins
from npuc.cli import cli, main
from npuc.doctor import Check
from npuc.policy import Policy
from npuc.targets.base import Toolchain

GOLDEN = Path(__file__).parents[1] / "golden"


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Run every test in an empty folder, at the same terminal width."""
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def golden(name: str, text: str) -> None:
    path = GOLDEN / f"{name}.txt"
    if os.environ.get("NPUC_GOLDEN") == "write":
        path.write_text(text, encoding="utf-8")
    assert text == path.read_text(encoding="utf-8")


@pytest.mark.parametrize("verb", ["", *cli.commands])
def test_help(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*filter(None, [verb]), "--help"]) == 0
    golden(f"help-{verb or 'npuc'}", capsys.readouterr().out)


def test_a_caller_keeps_its_garbage_collection() -> None:
    before = gc.get_threshold()
    assert main(["targets"]) == 0 and main(["--version"]) == 0
    assert gc.get_threshold() == before


def test_every_option_says_what_it_does() -> None:
    silent = [
        f"{verb} {parameter.name}"
        for verb, command in cli.commands.items()
        for parameter in command.params
        if isinstance(parameter, click.Option) and not parameter.help
    ]
    assert silent == []


ERRORS = {
    "unknown-verb": ["complie", "m.onnx"],
    "unknown-option": ["inspect", "--jsn", "x"],
    "no-target": ["compile", "m.onnx"],
    "empty-target": ["compile", "m.onnx", "--target", "cpu,,atom"],
    "bad-dims": ["compile", "m.onnx", "--target", "cpu", "--dim", "batch", "--dim", "n=0"],
    "dim-twice": ["compile", "m.onnx", "--target", "cpu", "--dim", "n=1", "--dim", "n=2"],
    "bad-timeout": ["compile", "m.onnx", "--target", "cpu", "--timeout", "0"],
    "one-file-for-two-targets": ["compile", "m.onnx", "-t", "cpu,atom", "-o", "x.npuc"],
    "unwritable-output": ["compile", "m.onnx", "--target", "cpu", "-o", "none/x.npuc"],
    "unwritable-record": ["record", "m.pt", "--inputs", "x.npz", "-o", "none/m.pt"],
    "no-artifact": ["run", "none.npuc"],
    "not-an-artifact": ["run", "text.npuc"],
    "no-file": ["inspect", "none.pt"],
}
CODES = {"unwritable-output": 8, "unwritable-record": 8, "not-an-artifact": 7, "no-file": 3}


@pytest.mark.parametrize("name", ERRORS)
def test_errors(
    name: str, folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    stub(monkeypatch)
    (folder / "text.npuc").write_text("not a zip")
    assert main(ERRORS[name]) == CODES.get(name, 2)
    printed = capsys.readouterr()
    assert printed.out == ""
    golden(f"error-{name}", printed.err.replace(str(folder.resolve()), "FOLDER"))
    assert [p.name for p in folder.iterdir()] == ["text.npuc"]


def test_an_unknown_target_is_named_with_the_nearest(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", "--target", "atmo"]) == 2
    assert "did you mean 'atom'?" in capsys.readouterr().err


@dataclass
class Report:
    """What the pipeline returns, as far as the command line looks at it."""

    exit_code: int = 0
    layers: None = None

    def table(self) -> str:
        return f"table of {self.exit_code}"

    def to_json(self) -> dict[str, Any]:
        return {"passed": not self.exit_code, "sqnr_db": float("inf")}


def stub(
    monkeypatch: pytest.MonkeyPatch,
    result: Report | None = None,
    raises: BaseException | None = None,
) -> list[tuple[tuple[Any, ...], dict[str, Any]]]:
    """Put a pipeline in place that records its calls."""
    calls = []

    def called(*args: Any, **kwargs: Any) -> Any:
        calls.append((args, kwargs))
        if raises is not None:
            raise raises
        return result or Report()

    def compiled(*args: Any, **kwargs: Any) -> Any:
        report = called(*args, **kwargs)
        return [SimpleNamespace(artifact_path=Path("m.cpu.npuc"), report=report, passed=True)]

    pipeline = SimpleNamespace(compile=compiled, verify=called)
    monkeypatch.setitem(sys.modules, "npuc.pipeline", pipeline)
    monkeypatch.setattr(npuc, "pipeline", pipeline, raising=False)
    return calls


def test_compile_passes_its_options_on(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = stub(monkeypatch)
    options = "--precision int8 --dim n=1 --dim s=12 --input x:1x3:float32 --model a.b:c --eval"
    options += " --model-path src --calibration c --samples s --observer mse --opset 18 --skip n1"
    options += " --calibration-table t.json"
    options += " --cpu aarch64 --fallback ort --require-vendor --dump d --timeout 9 --trust-pickle"
    options += " --min-sqnr 25 --no-fallback --on-target Conv=all --layers --rounding gptq"
    words = ["compile", "m.pt", "-t", "cpu,atom", "--target", "cpu", *options.split(), "-q"]
    assert main(words) == 0
    ((args, kwargs),) = calls
    assert args == ("m.pt",)
    assert type(kwargs.pop("progress")).__name__ == "Silent"
    assert callable(kwargs.pop("failed"))
    assert kwargs == {
        "target": ("cpu", "atom"),
        "output": None,
        "precision": "int8",
        "dims": {"n": 1, "s": 12},
        "inputs": ("x:1x3:float32",),
        "model": "a.b:c",
        "model_path": "src",
        "trust_pickle": True,
        "eval_mode": True,
        "calibration": Path("c"),
        "samples": Path("s"),
        "reference": None,
        "strict": False,
        "observer": "mse",
        "calibration_table": Path("t.json"),
        "rounding": "gptq",
        "opset": 18,
        "cpu": "aarch64",
        "fallback": "ort",
        "host": False,
        "on_target": ("Conv=all",),
        "vendor": "require",
        "skip": ("n1",),
        "dump": Path("d"),
        "timeout": 9.0,
        "policy": Policy(sqnr_db=25.0),
        "layers": True,
        "budget": None,
        "equalize": True,
        "correct_bias": True,
    }


def test_compile_prints_the_report_and_returns_its_code(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    stub(monkeypatch, Report(6))
    assert main(["compile", "zoo:x", "-t", "cpu", "--no-cache"]) == 6
    assert capsys.readouterr().out == "table of 6\n→ m.cpu.npuc\n"
    assert main(["compile", "zoo:x", "-t", "cpu", "--json", "--no-cache"]) == 6
    assert json.loads(capsys.readouterr().out) == {
        "schema": "npuc-compiled-1",
        "compiled": [{"artifact": "m.cpu.npuc", "passed": False, "sqnr_db": "inf"}],
    }


def test_one_targets_error_does_not_hide_the_others(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """With several targets, what compiled is printed, what failed is said, the worst code wins."""

    def compiled(*args: Any, failed: Any, **kwargs: Any) -> Any:
        failed("atom", errors.ToolchainError("rebel-compiler was killed", hint="read its log"))
        return [SimpleNamespace(artifact_path=Path("m.cpu.npuc"), report=Report(0), passed=True)]

    stub(monkeypatch)
    monkeypatch.setattr(sys.modules["npuc.pipeline"], "compile", compiled)
    assert main(["compile", "zoo:x", "-t", "cpu,atom", "--no-cache"]) == 5
    printed = capsys.readouterr()
    assert printed.out == "table of 0\n→ m.cpu.npuc\n"
    assert "npuc: target atom: rebel-compiler was killed\n→ read its log" in printed.err
    assert main(["compile", "zoo:x", "-t", "cpu,atom", "--json", "--no-cache"]) == 5
    data = json.loads(capsys.readouterr().out)
    assert data["failed"]["atom"]["exit_code"] == 5 and len(data["compiled"]) == 1


def test_outputs_are_tried_before_the_work(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    calls = stub(monkeypatch)
    (folder / "m.cpu.npuc").mkdir()  # the default name is taken by a folder
    assert main(["compile", "m.onnx", "-t", "cpu"]) == 8
    assert main(["compile", "m.onnx", "-t", "cpu", "-o", "none/x"]) == 8
    assert calls == []
    (folder / "out").mkdir()
    assert main(["compile", "m.onnx", "-t", "cpu,atom", "-o", "out"]) == 0
    assert list((folder / "out").iterdir()) == [] and len(calls) == 1


def test_verify_passes_on_and_returns_the_code(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    calls = stub(monkeypatch, Report(6))
    words = ["verify", "a.npuc", "--samples", "s", "--against", "m.pt", "--min-sqnr", "9"]
    assert main(words) == 6
    passed_on = {"samples": Path("s"), "against": Path("m.pt"), "policy": Policy(sqnr_db=9.0)}
    passed_on |= {"reference": None, "strict": False}
    assert calls == [((Path("a.npuc"),), passed_on)]
    assert capsys.readouterr().out == "table of 6\n"
    assert main(["verify", "a.npuc", "--json"]) == 6
    assert json.loads(capsys.readouterr().out)["passed"] is False


KINDS = [
    kind
    for kind in vars(errors).values()
    if isinstance(kind, type) and issubclass(kind, errors.NpucError)
]


@pytest.mark.parametrize("kind", KINDS)
def test_errors_become_a_message_a_hint_and_a_code(
    kind: type[errors.NpucError],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    error = kind("it broke", hint="mend it")
    error.add_note("in pass 'fold'")
    stub(monkeypatch, raises=error)
    assert main(["compile", "m.onnx", "-t", "cpu", "-q"]) == kind.exit_code
    assert capsys.readouterr().err == "npuc: it broke\nin pass 'fold'\n→ mend it\n"


def test_the_documented_exit_codes_are_the_real_ones(capsys: pytest.CaptureFixture[str]) -> None:
    documented = {int(n) for n in re.findall(r"(?m)^(\d+) ", errors.__doc__ or "")}
    assert {k.exit_code for k in KINDS} - {1} | {errors.UNDECIDED} == documented - {0, 130}
    assert main(["--help"]) == 0
    printed = {int(n) for n in re.findall(r"\b(\d+) [a-z]", capsys.readouterr().out)}
    assert documented <= printed


def test_a_fault_of_npuc_shows_its_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    stub(monkeypatch, raises=ZeroDivisionError())
    with pytest.raises(ZeroDivisionError):
        main(["compile", "m.onnx", "-t", "cpu"])


def test_ctrl_c(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    stub(monkeypatch, raises=KeyboardInterrupt())
    assert main(["compile", "m.onnx", "-t", "cpu"]) == 130
    assert capsys.readouterr().err.splitlines()[-1] == "npuc: interrupted"


def test_targets(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    ready = Toolchain("TVM", "0.27, linked by zig")
    absent = Toolchain("sdk", missing="no module 'sdk'", remedy="pip install sdk")
    infos = (
        plugins.TargetInfo("atom", "A chip", "npuc", ("int8", "float"), absent, "twin"),
        plugins.TargetInfo("broken-one", "", "other-npu", fault="it crashed", remedy="update it"),
        plugins.TargetInfo("cpu", "The host", "npuc", ("float",), ready, "device"),
    )
    monkeypatch.setattr(plugins, "describe", lambda: infos)
    assert main(["targets"]) == 0
    golden("targets", capsys.readouterr().out)
    assert main(["targets", "--json"]) == 0
    listed = json.loads(capsys.readouterr().out)["targets"]
    assert [t["name"] for t in listed] == ["atom", "broken-one", "cpu"]
    assert listed[0]["toolchain"]["remedy"] == "pip install sdk"


def test_passes(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["passes"]) == 0
    golden("passes", capsys.readouterr().out)
    assert main(["passes", "--json"]) == 0
    listed = json.loads(capsys.readouterr().out)["passes"]
    assert {"fold-constants", "simplify"} <= {p["name"] for p in listed}
    assert all(p["about"] for p in listed)


def test_doctor_prints_what_to_do(capsys: pytest.CaptureFixture[str]) -> None:
    checks = (
        Check("python", "3.11.7"),
        Check("torch", "2.0", "npuc needs torch==2.13.*", "pip install torch"),
        Check("target atom", "", "no SDK", "get it", required=False),
    )
    golden("doctor", listing.checks_text(checks) + "\n")
    assert [c.status for c in checks] == ["ok", "missing", "absent"]
    assert listing.checks(checks)["ok"] is False
    assert listing.checks((checks[0], checks[2]))["ok"] is True
