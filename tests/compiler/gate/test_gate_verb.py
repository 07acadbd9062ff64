"""`npuc gate` from end to end: verdicts, exit codes, what is cached, and what that costs."""

import json
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import date
from pathlib import Path

import pytest

from npuc.cli import main
from npuc.errors import ToolchainError, UsageError
from npuc.gate import machine, run, spec, summary
from npuc.gate.cache import ARTIFACT, Cache
from npuc.gate.entries import entries
from npuc.gate.outcome import Outcome
from npuc.outlets import reading
from npuc.report import Compiled

TODAY = date(2026, 11, 21)
HEAVY = ("torch", "onnx", "onnx_ir", "onnxruntime", "tvm", "sklearn", "rich")

Gate = Callable[..., tuple[int, str]]


@pytest.fixture
def gate(
    gated: tuple[Path, Cache], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Gate:
    """Run the verb where the model lies; `extra` is what its parity.toml says besides."""
    path, cache = gated
    monkeypatch.setenv("NPUC_CACHE", str(cache.folder))
    monkeypatch.chdir(path.parent)

    def run(*words: str, extra: str = "") -> tuple[int, str]:
        name = "parity.toml"
        if extra:
            name = "more.toml"
            Path(name).write_text(path.read_text() + extra)
        code = main(["gate", name, "--quiet", *words])
        return code, capsys.readouterr().out

    return run


@pytest.fixture
def frozen(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let nothing be compiled."""

    def forbidden(*words: object, **named: object) -> None:
        raise AssertionError("nothing should be compiled here")

    monkeypatch.setattr("npuc.pipeline.compile", forbidden)


@pytest.mark.usefixtures("frozen")
def test_what_did_not_change_is_not_compiled_again(gate: Gate) -> None:
    code, out = gate()
    assert code == 0
    first, second, _, last = out.splitlines()
    assert first.startswith("PASSED     net::cpu   SQNR ") and first.endswith("(cached)")
    assert second.startswith("PASSED     net::atom  SQNR ")
    assert last == "2 passed, of 2 (2 cached)"


@pytest.mark.usefixtures("frozen")
def test_a_part_is_chosen_by_name(gate: Gate) -> None:
    assert gate("--target", "atom", "--model", "net")[1].splitlines()[-1].startswith("1 passed")
    assert gate("--target", "atmo")[0] == 2


def test_too_few_samples_are_no_pass(gate: Gate) -> None:
    code, out = gate("-t", "atom", extra="[models.net.outputs.output]\nagreement = 0.97\n")
    assert code == 9
    assert "UNDECIDED  net::atom" in out and "more samples needed" in out
    assert "1 undecided, of 1" in out
    again, text = gate("-t", "atom", extra="[models.net.outputs.output]\nagreement = 0.97\n")
    assert again == 9 and "(cached)" in text, "a verdict is kept, whatever it is"


WAIVED = (
    "[models.net.hold]\nsqnr-db = 300\n[[waivers]]\nmodel = 'net'\ntarget = 'atom'\n"
    "check = '{}'\nreason = 'ticket 9'\nexpires = 2026-12-31\n"
)


def test_failures_waivers_and_their_dates(gate: Gate) -> None:
    low = WAIVED.format("sqnr-db").replace("300", "99")  # dB: below 20 the steps fail as well
    extra = low.replace("[models.net.hold]\nsqnr-db = 99\n", "[models.net.hold]\ncosine = 1\n")
    extra = extra.replace("'sqnr-db'", "'cosine'")
    code, out = gate("-t", "atom", "--today", "2026-12-31", extra=extra)
    assert code == 0
    assert out.startswith("WAIVED     net::atom  output: cosine 0.99")
    assert "ticket 9; waived until 2026-12-31" in out and "1 waived, of 1" in out
    late, text = gate("-t", "atom", "--today", "2027-01-01", extra=extra)
    assert late == 6
    assert "FAILED     net::atom" in text and "EXPIRED on 2026-12-31 (ticket 9)" in text
    assert "failed: output: cosine" in text and "FAILED: cosine" in text
    stale, text = gate("-t", "atom", extra=extra.replace("'cosine'\nr", "'artefact'\nr"))
    assert stale == 6 and "nothing is called artefact" in text and "FAILED: cosine" in text


def test_a_bar_of_the_steps_fails_them(gate: Gate) -> None:
    code, out = gate("-t", "atom", extra="[models.net.hold]\nsqnr-db = 300\n")
    assert code == 6 and "SQNR >= 300 dB of original" in out
    assert "failed: output: SQNR" in out


@pytest.mark.usefixtures("frozen")
def test_outlets_and_json(gate: Gate, tmp_path: Path) -> None:
    names = {"--junit": "j.xml", "--sarif": "s.sarif", "--markdown": "m.md"}
    words = [word for option, name in names.items() for word in (option, str(tmp_path / name))]
    code, out = gate("--json", *words)
    assert code == 0
    data = json.loads(out)
    assert data["schema"] == "npuc-gate-1" and data["passed"]
    assert [pair["name"] for pair in data["pairs"]] == ["net::cpu", "net::atom"]
    assert [reading.report(pair["report"]).target for pair in data["pairs"]] == ["cpu", "atom"]
    for name in names.values():
        assert (tmp_path / name).read_text().strip()
    code, _ = gate("--junit", str(tmp_path / "nowhere" / "j.xml"))
    assert code == 8


def test_a_damaged_entry_is_compiled_again_and_said(
    gate: Gate, gated: tuple[Path, Cache], compiled: Outcome
) -> None:
    assert compiled.artifact is not None and compiled.artifact.name == ARTIFACT
    data = compiled.artifact.read_bytes()
    compiled.artifact.write_bytes(data[:-1] + b"x")
    code, out = gate("-t", "atom")
    assert code == 0 and "(cached)" not in out
    assert "note: the cached verdict was damaged and is made again: artifact.npuc is not" in out
    assert "(cached)" in gate("-t", "atom")[1]


def test_a_cached_verdict_costs_no_heavy_import(gated: tuple[Path, Cache], tmp_path: Path) -> None:
    path, cache = gated
    program = (
        "import json, sys\nfrom npuc.cli import main\nfrom npuc.gate import machine\n"
        f"machine._NPUC[:] = {machine._NPUC!r}\n"  # files may change while tests run
        f"code = main(['gate', {str(path)!r}, '--quiet', '--junit', {str(tmp_path / 'j.xml')!r}])\n"
        f"print(json.dumps([code, [name for name in {HEAVY!r} if name in sys.modules]]))\n"
    )

    def once() -> Sequence[object]:
        done = subprocess.run(
            [sys.executable, "-c", program], capture_output=True, text=True, timeout=120,
            env={**__import__("os").environ, "NPUC_CACHE": str(cache.folder)},
        )  # fmt: skip
        assert "2 passed, of 2 (2 cached)" in done.stdout, done.stdout + done.stderr
        return list(json.loads(done.stdout.splitlines()[-1]))

    once()  # another process than pytest's: adapters may be asked once more
    assert once() == [0, []]


def test_no_parity_toml_at_all(
    gated: tuple[Path, Cache], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path, cache = gated
    monkeypatch.setenv("NPUC_CACHE", str(cache.folder))
    monkeypatch.chdir(path.parent)
    assert main(["gate", "model.pt", "--target", "atom", "--quiet"]) == 0
    assert "model::atom" in capsys.readouterr().out
    assert main(["gate", "model.pt"]) == 2
    assert "npuc gate model.pt --target" in capsys.readouterr().err
    assert main(["gate", "parity.toml", "model.pt"]) == 2
    monkeypatch.chdir(path.parents[1])
    assert main(["gate"]) == 2
    assert "cannot read parity.toml" in capsys.readouterr().err


def test_no_cache_keeps_nothing(
    gated: tuple[Path, Cache],
    compiled: Outcome,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert compiled.report is not None and compiled.artifact is not None
    report, data = compiled.report, compiled.artifact.read_bytes()

    def stand_in(source: str, *, output: Path, **named: object) -> list[Compiled]:
        (output / "a.npuc").write_bytes(data)
        return [Compiled(output / "a.npuc", report)]

    monkeypatch.setattr("npuc.pipeline.compile", stand_in)
    monkeypatch.setenv("NPUC_CACHE", str(tmp_path / "cache"))
    for _ in range(2):
        assert main(["gate", str(gated[0]), "-t", "atom", "--no-cache", "--quiet"]) == 0
        assert "(cached)" not in capsys.readouterr().out
    assert not (tmp_path / "cache").exists()


def test_one_pair_that_fails_does_not_stop_others(
    gated: tuple[Path, Cache],
    compiled: Outcome,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    path, _ = gated
    assert compiled.report is not None and compiled.artifact is not None
    report, data = compiled.report, compiled.artifact.read_bytes()
    asked: list[tuple[str, ...]] = []

    def stand_in(source: str, *, target: tuple[str, ...], output: Path, failed: Callable[..., None],
                 **named: object) -> list[Compiled]:  # fmt: skip
        asked.append(target)
        if source.endswith("other.pt"):
            raise UsageError("not a model")
        failed("cpu", ToolchainError("no linker"))
        (output / "a.npuc").write_bytes(data)
        return [Compiled(output / "a.npuc", report)] if "atom" in target else []

    monkeypatch.setattr("npuc.pipeline.compile", stand_in)
    (tmp_path / "model.pt").write_text("a model")
    (tmp_path / "other.pt").write_text("another")
    text = path.read_text() + path.read_text().partition("\n")[2].replace("net", "b")
    (tmp_path / "parity.toml").write_text(text.replace('"model.pt"', '"other.pt"', 1))
    cache = Cache(tmp_path / "cache")
    found: tuple[run.Outcome, ...] = ()
    for _ in range(2):  # errors are not kept: a tool may come
        found = run.check_all(spec.read(tmp_path / "parity.toml"), cache=cache, today=TODAY)
        assert [(o.pair.name, o.state, o.exit_code) for o in found] == [
            ("net::cpu", "error", 2), ("net::atom", "error", 2),
            ("b::cpu", "error", 5), ("b::atom", "passed", 0),
        ]  # fmt: skip
    assert asked == [("cpu", "atom"), ("cpu", "atom"), ("cpu", "atom"), ("cpu",)]
    said = summary.text(found)
    assert "ERROR      net::cpu   not a model" in said and "3 error, 1 passed, of 4" in said
    assert [entry.code for entry in entries(found)] == [2, 2, 5, 0]


def test_a_report_is_named_as_in_parity_toml_wherever_it_was_compiled(
    gated: tuple[Path, Cache], tmp_path: Path
) -> None:
    path, cache = gated
    (tmp_path / "model.pt").write_bytes((path.parent / "model.pt").read_bytes())
    moved = tmp_path / "parity.toml"
    moved.write_text(path.read_text().replace("models.net", "models.moved"))
    found = run.check(spec.read(moved).pairs()[1], cache, today=TODAY)
    assert found.cached and found.report is not None
    assert found.report.model == "moved"
    assert found.report.call["source"] == str(tmp_path / "model.pt")


def test_what_is_asked_of_an_artifact_that_was_not_run_is_no_pass(compiled: Outcome) -> None:
    assert compiled.report is not None
    rows = tuple(
        replace(row, state="not run", original=(), note="another CPU")
        if row.stage == "artifact"
        else row
        for row in compiled.report.rows
    )
    report = replace(compiled.report, rows=rows)
    model = compiled.pair.of
    assert run._judged(report, model) == report
    asked = replace(model, hold=replace(model.hold, cosine=0.5))
    found = run._judged(report, asked)
    assert not found.passed and found.exit_code == 6
    assert "not looked at: another CPU" in found.table()
