"""The verbs write every form to files: of what passed, of what failed, and of what broke."""

import json
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from npuc.cli import main
from npuc.outlets import schema

etree: Any = import_module("lxml.etree")  # has no types
FORMS = ("html", "junit", "sarif", "markdown")
SCHEMAS = Path(__file__).parent / "schemas"


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Run every test in an empty folder."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def asked() -> list[str]:
    """Return the options that ask for every form."""
    return [word for form in FORMS for word in (f"--{form}", f"out.{form}")]


def written() -> dict[str, str]:
    """Return the texts of every form; JUnit and SARIF fit their schemas."""
    found = {form: Path(f"out.{form}").read_text("utf-8") for form in FORMS}
    etree.XMLSchema(etree.parse(SCHEMAS / "junit-10.xsd")).assertValid(
        etree.fromstring(found["junit"].encode())
    )
    rules = json.loads((SCHEMAS / "sarif-schema-2.1.0.json").read_text("utf-8"))
    jsonschema.validate(json.loads(found["sarif"]), rules, jsonschema.Draft4Validator)
    return found


def test_compile(recorded: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["compile", str(recorded), "-t", "atom", "--min-sqnr", "90", "-q", "--json", *asked()]
    assert main(words) == 6
    rules = schema.read(schema.COMPILED)
    jsonschema.Draft202012Validator(rules).validate(json.loads(capsys.readouterr().out))
    found = written()
    assert "❌ failed" in found["markdown"] and "<failure" in found["junit"]
    assert "Layer by layer" in found["html"] and "Most of it is lost in" in found["html"]
    results = json.loads(found["sarif"])["runs"][0]["results"]
    assert results and "Most of it is lost in" in results[-1]["message"]["text"]


def test_verify(artifacts: Mapping[str, Path]) -> None:
    assert main(["verify", str(artifacts["cpu"]), *asked()]) == 0
    found = written()
    assert "✅ passed" in found["markdown"] and "<system-out" in found["junit"]
    assert json.loads(found["sarif"])["runs"][0]["results"] == []


@pytest.mark.parametrize(
    ("words", "code"),
    [(["compile", "none.pt", "-t", "cpu"], 3), (["verify", "bad.npuc"], 7)],
)
def test_an_error_is_written_too(
    words: list[str], code: int, capsys: pytest.CaptureFixture[str]
) -> None:
    """A CI that reads the files, and not the exit code, must not see the last run's."""
    Path("bad.npuc").write_text("not a zip")
    Path("out.junit").write_text("old")
    assert main([*words, *asked()]) == code
    found = written()
    assert "<error" in found["junit"] and "⛔ error" in found["markdown"]
    assert len(json.loads(found["sarif"])["runs"][0]["results"]) == 1
    assert "ERROR" in found["html"]
    assert "npuc:" in capsys.readouterr().err


@pytest.mark.parametrize("form", FORMS)
def test_a_file_that_cannot_be_written_stops_before_the_work(
    form: str, recorded: Path, folder: Path
) -> None:
    assert main(["compile", str(recorded), "-t", "cpu", f"--{form}", "none/out"]) == 8
    assert list(folder.iterdir()) == []
