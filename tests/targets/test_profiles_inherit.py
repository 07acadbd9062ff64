"""What a profile takes over from another, what it overrides, and what it takes back."""

from pathlib import Path

import pytest

from npuc.errors import NpucError
from npuc.profile import Profile

BASE = """
name = "base"
title = "Base"
[sources]
docs = "the base's documents"
web = "somebody"
limits = "the base's table of operators"
[facts]
engines = { value = 4, grade = "P", source = "docs" }
"memory.gib" = { value = 16, grade = "S", source = "web" }
"ops.supported" = { value = ["Conv", "Relu"], grade = "P", source = "docs" }
[[limits]]
ops = ["Conv", "ConvTranspose"]
measure = "kernel"
most = 7
grade = "P"
source = "limits"
[[limits]]
ops = ["Conv"]
measure = "stride"
most = 3
grade = "P"
source = "docs"
"""


def heir(text: str) -> Profile:
    head = 'name = "heir"\ntitle = "Heir"\ninherits = "base"\n'
    return Profile.parse(head + text, lambda name: Profile.parse({"base": BASE}[name], name=name))


def test_all_is_inherited() -> None:
    base, same = Profile.parse(BASE), heir("")
    assert (same.name, same.title) == ("heir", "Heir")
    assert (same.facts, same.limits, same.sources) == (base.facts, base.limits, base.sources)


def test_facts_are_overridden_and_taken_back() -> None:
    changed = heir("""
[sources]
own = "the heir's documents"
[facts]
engines = { value = 12, grade = "I", source = "own" }
"memory.gib" = "not public"
host_link = { value = "PCIe 4", grade = "P", source = "docs" }
""")
    assert changed.get("engines") == 12 and changed.facts["engines"].grade == "I"
    assert "memory.gib" not in changed.facts
    assert changed.get("host_link") == "PCIe 4"
    # A source that nothing cites any more is gone; one that a limit cites is not.
    assert set(changed.sources) == {"docs", "own", "limits"}


def test_a_limit_replaces_those_of_its_operator_and_measure() -> None:
    changed = heir("""
[[limits]]
ops = ["Conv"]
measure = "kernel"
most = 15
when = { depthwise = false }
grade = "P"
source = "docs"
[[limits]]
ops = ["Conv"]
measure = "kernel"
among = [3, 5]
when = { depthwise = true }
grade = "P"
source = "docs"
""")
    bounds = [(m.ops, m.measure, m.most, m.among) for m in changed.limits]
    assert bounds == [
        (("ConvTranspose",), "kernel", 7, None),
        (("Conv",), "stride", 3, None),
        (("Conv",), "kernel", 15, None),
        (("Conv",), "kernel", None, (3, 5)),
    ]


def test_conflicts_between_heir_and_base_are_found() -> None:
    with pytest.raises(NpucError, match=r"Relu: both in ops.supported and in ops.on_host"):
        heir('[facts]\n"ops.on_host" = { value = ["Relu"], grade = "P", source = "docs" }\n')
    with pytest.raises(NpucError) as caught:
        heir('[facts]\n"peak.int8_tops" = "not public"\nengines = "not public"\n')
    assert caught.value.message.split("\n  ")[1:] == [
        "peak.int8_tops: takes back what was not inherited"
    ]


def test_a_source_must_not_change_under_inherited_facts() -> None:
    """Else a fact of the base would seem to be said by a source that never said it."""
    with pytest.raises(NpucError, match="source 'docs' is not what inherited facts cite"):
        heir("""
[sources]
docs = "other documents"
[facts]
host_link = { value = "PCIe 4", grade = "P", source = "docs" }
""")


def package(folder: Path, monkeypatch: pytest.MonkeyPatch, **profiles: str) -> str:
    """Write a package with profiles and return its name."""
    name = f"profiles_{folder.name}"
    (folder / name / "profiles").mkdir(parents=True)
    (folder / name / "__init__.py").touch()
    for key, text in profiles.items():
        (folder / name / "profiles" / f"{key}.toml").write_text(text)
    monkeypatch.syspath_prepend(str(folder))
    return name


def test_faults_of_the_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A missing base, a circle, a malformed base, and a file that says another name."""
    held = package(
        tmp_path,
        monkeypatch,
        base=BASE,
        orphan='name = "orphan"\ntitle = "O"\ninherits = "nobody"\nextra = 1\n',
        a='name = "a"\ntitle = "A"\ninherits = "b"\n',
        b='name = "b"\ntitle = "B"\ninherits = "a"\n',
        bad='name = "bad"\ntitle = "B"\nextra = 1\n',
        child='name = "child"\ntitle = "C"\ninherits = "bad"\n[facts]\nengines = "not public"\n',
        renamed='name = "other"\ntitle = "R"\n',
    )
    words = {
        "nobody": f"there is no profile 'nobody' in {held}/profiles",
        "orphan": "profile 'orphan' is malformed:\n  unknown key 'extra'\n"
        f"  inherits 'nobody': there is no profile 'nobody' in {held}/profiles",
        "child": "profile 'child' is malformed:\n"
        "  inherits 'bad': profile 'bad' is malformed:\n  unknown key 'extra'",
        "renamed": "profile 'renamed' says that its name is 'other'",
    }
    for name, said in words.items():
        with pytest.raises(NpucError) as caught:
            Profile.load(name, held)
        assert caught.value.message == said
    with pytest.raises(NpucError, match="profiles inherit in a circle: a from b from a"):
        Profile.load("a", held)
    assert Profile.load("base", held).get("engines") == 4
