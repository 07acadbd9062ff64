"""JUnit, SARIF and Markdown: golden texts, the official schemas, and names that no format takes.

``NPUC_GOLDEN=write`` rewrites the golden files.
"""

import json
import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from html.parser import HTMLParser
from importlib import import_module
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import npuc
from npuc.errors import UnsupportedError
from npuc.outlets import entry as entries_of
from npuc.outlets import junit, markdown, sarif
from npuc.outlets.entry import Entry
from npuc.outlets.whereabouts import Repository
from npuc.report import Report, Row

etree: Any = import_module("lxml.etree")  # has no types
GOLDEN = Path(__file__).parents[2] / "golden"
SCHEMAS = Path(__file__).parent / "schemas"
XSD = etree.XMLSchema(etree.parse(SCHEMAS / "junit-10.xsd"))
SARIF = jsonschema.Draft4Validator(
    json.loads((SCHEMAS / "sarif-schema-2.1.0.json").read_text("utf-8"))
)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A repository with the model's source, its weights and a policy."""
    (tmp_path / "src" / "digits").mkdir(parents=True)
    (tmp_path / "src" / "digits" / "net.py").write_text("pass\n" * 9)
    (tmp_path / "digits").mkdir()
    (tmp_path / "digits" / "model.pt").write_bytes(b"weights")
    (tmp_path / "parity.toml").write_text("version = 1\n\n[models.digits]\nfile = 'x'\n")
    return tmp_path


def golden(name: str, text: str) -> str:
    """Return what the golden file holds; writes it first where that was asked for."""
    if os.environ.get("NPUC_GOLDEN") == "write":
        (GOLDEN / name).write_text(text, encoding="utf-8")
    return (GOLDEN / name).read_text(encoding="utf-8")


def junit_of(entries: Sequence[Entry]) -> Any:
    """Return the document's root, valid."""
    document = etree.fromstring(junit.text(entries).encode())
    XSD.assertValid(document)
    return document


def sarif_of(entries: Sequence[Entry], root: Path) -> Any:
    """Return the run of a log that is valid."""
    log = json.loads(sarif.text(entries, root))
    assert [e.message for e in SARIF.iter_errors(log)] == []
    (run,) = log["runs"]
    return run


def test_the_schemas_refuse_what_is_wrong(entries: tuple[Entry, ...], root: Path) -> None:
    log = json.loads(sarif.text(entries, root))
    log["runs"][0]["results"][0]["level"] = "fatal"
    assert list(SARIF.iter_errors(log))
    wrong = junit.text(entries).replace("<failure", "<failing").replace("</failure", "</failing")
    assert not XSD.validate(etree.fromstring(wrong.encode()))


def test_golden(entries: tuple[Entry, ...], root: Path) -> None:
    log = sarif.text(entries, root).replace(npuc.__version__, "VERSION")
    assert junit.text(entries) == golden("gate.junit.xml", junit.text(entries))
    assert markdown.text(entries) == golden("gate.md", markdown.text(entries))
    assert log == golden("gate.sarif.json", log)


def test_junit_counts_what_its_cases_say(entries: tuple[Entry, ...]) -> None:
    other = replace(entries[0], name="gpt::cpu", model="gpt")
    suites = junit_of((*entries, other))
    assert [s.get("name") for s in suites] == ["digits", "gpt"]
    assert (suites.get("tests"), suites.get("failures"), suites.get("errors")) == ("9", "2", "1")
    kinds = {c.get("name"): [(x.tag, x.get("type")) for x in c] for c in suites[0].iter("testcase")}
    assert kinds == {
        "cpu": [("system-out", None)], "warboy": [("system-out", None)],
        "atom": [("failure", "parity")], "dx-m1": [("failure", "undecided")],
        "rk3588": [("error", "error")], "rngd": [("skipped", "waived")],
        "aries": [("system-out", None)], "tpu": [("system-out", None)],
    }  # fmt: skip
    properties = {p.get("name"): p.get("value") for p in suites[0].iter("property")}
    assert properties["atom.sqnr_db"] == "11.50" and properties["cpu.evidence"] == "twin"
    assert "ticket 4711" in properties["warboy.waiver.1"]
    assert "old silicon" in properties["aries.waiver.1"]
    assert suites[0].get("skipped") == "1"
    failure = next(suites.iter("failure"))
    assert "\n" not in failure.get("message") and "SQNR 11.5 dB" in failure.get("message")
    assert "FAILED: artifact" in failure.text


def test_sarif_shows_the_users_line(entries: tuple[Entry, ...], root: Path) -> None:
    run = sarif_of(entries, root)
    results = {r["locations"][0]["logicalLocations"][0]["name"]: r for r in run["results"]}
    place = results["atom"]["locations"][0]["physicalLocation"]
    assert place["artifactLocation"] == {"uri": "src/digits/net.py", "uriBaseId": "%SRCROOT%"}
    assert place["region"] == {"startLine": 9}
    policy = results["dx-m1"]["locations"][0]["physicalLocation"]
    assert policy["artifactLocation"]["uri"] == "parity.toml"
    assert policy["region"] == {"startLine": 3}
    (waived,) = results["warboy"]["suppressions"]
    assert "ticket 4711" in waived["justification"] and results["warboy"]["level"] == "warning"
    rules = [rule["id"] for rule in run["tool"]["driver"]["rules"]]
    assert [rules[r["ruleIndex"]] for r in run["results"]] == [r["ruleId"] for r in run["results"]]
    assert run["invocations"][0]["exitCode"] == 6
    assert set(results) == {"warboy", "atom", "dx-m1", "rk3588", "rngd", "aries"}
    suppressed = {name for name, result in results.items() if "suppressions" in result}
    assert suppressed == {"warboy", "rngd", "aries"}


def test_sarif_fingerprints_stay_while_numbers_move(entries: tuple[Entry, ...], root: Path) -> None:
    def prints(found: Sequence[Entry]) -> list[str]:
        return [
            r["partialFingerprints"]["npucFinding/v1"] for r in sarif_of(found, root)["results"]
        ]

    report = entries[2].report
    assert report is not None
    moved = replace(report.rows[2], faults=("logits: SQNR 3.0 dB < 20.0 dB",))
    changed = replace(entries[2], report=replace(report, rows=(*report.rows[:2], moved)))
    assert prints([entries[2]]) == prints([changed])
    twice = replace(entries[2], report=replace(report, rows=(*report.rows, moved)))
    every = prints([*entries, replace(entries[2], target="other"), twice])
    assert len(set(every)) == len(every)


@pytest.mark.parametrize(
    ("said", "wanted"),
    [
        ("forward() fails at digits/net.py:4", ("src/digits/net.py", 4)),
        ("in conv at {root}/src/digits/net.py:2: no", ("src/digits/net.py", 2)),
        ("at digits/net.py:10", ("parity.toml", 3)),  # it has nine lines
        ("at torch/nn/net.py:3", ("parity.toml", 3)),
        ("at ../outside.py:1", ("parity.toml", 3)),
        ("at net.py:3", ("parity.toml", 3)),
    ],
)
def test_a_line_in_an_error_is_looked_for(said: str, wanted: tuple[str, int], root: Path) -> None:
    (root.parent / "outside.py").write_text("secret\n")
    error = UnsupportedError(said.format(root=root))
    found = entries_of.of([], {"atom": error}, "digits")
    spot = Repository(root).spots(found[0], error.message)[0]
    assert (spot.uri, spot.line) == wanted


def test_a_line_that_fits_two_files_is_none(entries: tuple[Entry, ...], root: Path) -> None:
    (root / "copy" / "digits").mkdir(parents=True)
    (root / "copy" / "digits" / "net.py").write_text("pass\n" * 9)
    assert Repository(root).spots(entries[2])[0].uri == "parity.toml"
    (root / "parity.toml").unlink()
    assert Repository(root).spots(entries[2])[0].uri == "digits/model.pt"


@pytest.mark.parametrize(
    ("source", "uri"), [("zoo:text-gpt", "zoo:text-gpt"), ("/a b/m.pt", "file:///a%20b/m.pt")]
)
def test_a_model_that_is_elsewhere_has_a_place(
    source: str, uri: str, entries: tuple[Entry, ...], tmp_path: Path
) -> None:
    (result,) = sarif_of([replace(entries[4], source=source)], tmp_path)["results"]
    assert result["locations"][0]["physicalLocation"]["artifactLocation"]["uri"] == uri


def test_real_reports(real: Mapping[str, Report], tmp_path: Path) -> None:
    found = entries_of.of(list(real.values()), {}, "net.pt")
    assert {e.state for e in found} == {"passed", "failed"}
    assert len(list(junit_of(found).iter("failure"))) == 1
    results = sarif_of(found, tmp_path)["results"]
    assert results and {r["properties"]["target"] for r in results} == {"atom"}
    assert "❌ failed" in markdown.text(found)


def test_nothing_that_is_wrong_is_called_passed(entries: tuple[Entry, ...]) -> None:
    """An exit code that was forgotten, or a report that was lost, is no pass."""
    report = entries[2].report
    assert Entry("n", "m", "t", report, "", 0).state == "failed"
    assert Entry("n", "m", "t", None, "", 0).state == "error"
    assert Entry("n", "m", "t", entries[0].report, "it broke", 0).state != "passed"
    assert Entry("n", "m", "t", entries[0].report, "", 6).state == "failed"
    assert Entry("n", "m", "t", entries[3].report, "", 0).state == "undecided"
    assert Entry("n", "m", "t", report, "", 0, waived="why").state == "failed"
    assert Entry("n", "m", "t", None, "", 0, waived="why").state == "error"
    assert [e.state for e in entries[5:]] == ["waived", "waived", "passed"]
    bare = Report("m", "t", "float", "twin", "", "r", ())
    lost = Entry("n", "m", "t", bare, "", 0)
    assert lost.state == "failed" and lost.why == ("nothing was compared",)
    for text in (junit.text([lost]), markdown.text([lost]), sarif.text([lost], Path("."))):
        assert "nothing was compared" in text


WORDS = st.text(st.characters(exclude_categories=()), max_size=40)
NASTY = st.one_of(
    WORDS, st.sampled_from(["]]>", "</details>", "```", "a|b", "\x00\ud800\ufffe", ""])
)


@settings(max_examples=60, deadline=None)
@given(NASTY, NASTY, NASTY)
def test_any_text_gives_valid_documents(
    tmp_path_factory: pytest.TempPathFactory, name: str, words: str, why: str
) -> None:
    row = Row(words, "failed", (), faults=(why,))
    report = Report(name, words, why, name, words, why, (row,), notes=(name,))
    found = [
        Entry(
            name,
            words,
            why,
            report,
            "",
            6,
            source=words.encode("utf-8", "ignore").decode().replace("\0", ""),
        ),
        Entry(name, words, why, None, name, 4),
    ]
    root = tmp_path_factory.getbasetemp()
    suites = junit_of(found)
    assert len(list(suites.iter("testcase"))) == 2
    sarif_of(found, root)
    assert markdown.text(found).encode()


@pytest.mark.parametrize("pairs", [0, 1, 400, 4000])
def test_a_comment_is_never_too_long(pairs: int, entries: tuple[Entry, ...]) -> None:
    long = "ü" * 30_000
    many = [replace(entries[at % 8], name=f"digits-{at}::cpu") for at in range(pairs)]
    many.append(replace(entries[4], error=long))
    text = markdown.text(many)
    assert len(text.encode()) <= markdown.LIMIT
    assert "more were left out" in text or "more reports were left out" in text
    assert text.count("<details>") == text.count("</details>")


def test_a_comment_without_pairs_has_not_passed() -> None:
    assert "did not pass" in markdown.text([]) and "nothing was compared" in markdown.text([])


class Tags(HTMLParser):
    """Collects the tags of the HTML in a comment."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: set[str] = set()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Note the tag."""
        self.tags.add(tag)


def test_names_in_a_comment_are_text(entries: tuple[Entry, ...]) -> None:
    bad = "</summary><script>x</script>|`*_@someone\n# head"
    text = markdown.text([replace(entries[4], name=bad, model=bad, target=bad, error=bad)])
    outside = re.sub(r"^(`{3,})text\n.*?^\1$", "", text, flags=re.S | re.M)
    parser = Tags()
    parser.feed(re.sub(r"`[^`\n]*`", "", outside))
    assert parser.tags <= {"details", "summary", "code"}
    table = [line for line in outside.splitlines() if line.startswith("|")]
    assert {len(re.findall(r"(?<!\\)\|", line)) for line in table} == {8}
    assert "@someone" not in re.sub(r"<code>.*?</code>", "", outside)


Write = Callable[[Sequence[Entry]], str]


@pytest.mark.parametrize("write", [junit.text, markdown.text])
def test_the_same_entries_give_the_same_bytes(write: Write, entries: tuple[Entry, ...]) -> None:
    assert write(entries) == write(tuple(entries))
