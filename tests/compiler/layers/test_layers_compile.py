"""Layers of a whole compile: asked for, they are in the report, and the artifact is the same."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from npuc import pipeline
from npuc.cli import main


def test_a_compile_measures_layers_where_it_is_asked_to(recorded: Path, tmp_path: Path) -> None:
    paths = [tmp_path / "with.npuc", tmp_path / "without.npuc"]
    (found,) = pipeline.compile(
        recorded, target="cpu", precision="int8", output=paths[0], layers=True
    )
    (plain,) = pipeline.compile(recorded, target="cpu", precision="int8", output=paths[1])
    assert plain.report.layers is None
    assert paths[0].read_bytes() == paths[1].read_bytes()
    layers = found.report.layers
    assert layers is not None and layers.calls == 3 and layers.observer
    assert {layer.op for layer in layers.quantized} >= {"Conv"}
    (*_, program, _) = [row for row in found.report.rows if row.state != "shown"]
    # Both compare with float answers on the same calls: the export's own rounding is far less.
    assert layers.output == pytest.approx(program.original[0].sqnr_db, abs=0.1)
    places = [layer.source for layer in layers.quantized]
    assert all("conftest.py:" in place for place in places), places


@pytest.mark.parametrize("target", ["ethos-u55", "atom"])
def test_the_device_s_own_arithmetic_is_measured_too(
    target: str, recorded: Path, tmp_path: Path
) -> None:
    (done,) = pipeline.compile(
        recorded, target=target, output=tmp_path / "x.npuc", layers=True, vendor="skip"
    )
    layers = done.report.layers
    assert layers is not None
    (output,) = [layer for layer in layers.layers if layer.output]
    artifact = next(row for row in done.report.rows if row.stage == "artifact")
    assert output.device == pytest.approx(artifact.original[0].sqnr_db, abs=0.5)


def test_float_programs_are_measured_where_a_target_rounds(recorded: Path, tmp_path: Path) -> None:
    for target, lossy in (("cpu", False), ("atom", True)):
        (done,) = pipeline.compile(
            recorded, target=target, precision="float", output=tmp_path / "x.npuc", layers=True,
            vendor="skip",
        )  # fmt: skip
        layers = done.report.layers
        assert layers is not None and bool(layers.worst) == lossy and not layers.coded


def test_the_command_line(
    recorded: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str],
    whole: Callable[[str], None],
) -> None:  # fmt: skip
    html = tmp_path / "page.html"
    words = ["compile", str(recorded), "-t", "cpu", "--precision", "int8", "-q"]
    words += ["-o", str(tmp_path / "x.npuc")]
    assert main([*words, "--html", str(html)]) == 0
    assert "born here" not in capsys.readouterr().out
    whole(html.read_text("utf-8"))
    assert "Where most is born" in html.read_text("utf-8")
    assert main([*words, "--layers"]) == 0
    printed = capsys.readouterr().out
    assert "PASSED" in printed and "born here" in printed and "→ try" in printed
    assert main([*words, "--layers", "--json"]) == 0
    data = json.loads(capsys.readouterr().out)["compiled"][0]["layers"]
    assert data["worst"] and data["layers"]
