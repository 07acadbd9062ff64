"""Target adapters are found by entry point, and broken ones are named instead of crashing.

Each test installs real distributions: a module and its dist-info in a folder on the path.
"""

import importlib
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from npuc import plugins
from npuc.errors import ToolchainError, UsageError

ADAPTER = """
from npuc.profile import Profile
from npuc.targets.base import Toolchain


class Fake:
    name = "fake"
    profile = Profile("fake", "A fake chip", {}, {})

    def toolchain(self):
        return Toolchain("fakecc", missing="the SDK is not here", remedy="pip install fakecc")

    def evidence(self):
        return "twin"

    def legalise(self): ...
    def numerics(self, precision): ...
    def lower(self, program, options, workdir): ...
    def runner(self, files, program): ...


class Mute(Fake):
    def toolchain(self):
        raise RuntimeError("no driver")


class Refuses(Fake):
    def __init__(self):
        raise RuntimeError("needs another Python")


class Half:
    name = "half"
"""

Install = Callable[..., None]


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Install:
    """Return install(distribution, name=class, …): installs a distribution with these targets."""
    (tmp_path / "fake_adapters.py").write_text(ADAPTER)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "fake_adapters", raising=False)

    def run(distribution: str, **targets: str) -> None:
        info = tmp_path / f"{distribution.replace('-', '_')}-1.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {distribution}\nVersion: 1\n")
        lines = [f"{name} = {value}\n" for name, value in targets.items()]
        (info / "entry_points.txt").write_text(f"[{plugins.GROUP}]\n" + "".join(lines))
        importlib.invalidate_caches()

    return run


def test_ours_are_found_like_anyones(install: Install) -> None:
    install("fake-npu", fake="fake_adapters:Fake")
    assert {"atom", "cpu", "fake"} <= set(plugins.names())
    assert plugins.find("fake").name == "fake"


def test_an_unknown_target_gets_a_suggestion_and_the_list(install: Install) -> None:
    install("fake-npu", fake="fake_adapters:Fake")
    with pytest.raises(UsageError, match="did you mean 'fake'") as caught:
        plugins.find("Faek")
    listed = caught.value.hint.removeprefix("installed targets: ").partition(" (")[0].split(", ")
    assert listed == sorted(listed) and {"atom", "cpu", "fake"} <= set(listed)
    with pytest.raises(UsageError) as caught:
        plugins.find("zzzzzz")
    assert "did you mean" not in caught.value.message


def test_a_name_installed_twice_names_both_distributions(install: Install) -> None:
    install("fake-npu", fake="fake_adapters:Fake")
    install("other-npu", fake="fake_adapters:Half")
    with pytest.raises(UsageError, match="by fake-npu and by other-npu"):
        plugins.find("fake")
    (info,) = plugins.describe(["fake"])
    assert "more than once" in info.fault and info.distribution == "fake-npu, other-npu"


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (
            "fake_adapters:Half",
            "has no profile, toolchain, evidence, legalise, numerics, lower, runner",
        ),
        ("fake_adapters:Refuses", "RuntimeError: needs another Python"),
        ("fake_adapters:Nothing", "no attribute 'Nothing'"),
        ("not_installed_at_all:X", "ModuleNotFoundError"),
    ],
)
def test_a_broken_adapter_is_named_with_its_owner(
    install: Install, value: str, reason: str
) -> None:
    install("fake-npu", fake=value)
    with pytest.raises(ToolchainError, match="from fake-npu") as caught:
        plugins.find("fake")
    assert reason in caught.value.message
    assert caught.value.hint == "update or remove it: pip install --upgrade fake-npu"
    (info,) = plugins.describe(["fake"])
    assert reason in info.fault and info.remedy == caught.value.hint


def test_a_missing_sdk_is_listed_with_reason_and_remedy(install: Install) -> None:
    install("fake-npu", fake="fake_adapters:Fake", mute="fake_adapters:Mute")
    fake, mute = plugins.describe(["fake", "mute"])
    assert fake.title == "A fake chip" and fake.precisions == ("float",)
    assert fake.toolchain is not None and not fake.fault
    assert (fake.toolchain.missing, fake.toolchain.remedy) == (
        "the SDK is not here",
        "pip install fakecc",
    )
    assert "no driver" in mute.fault


def test_one_broken_adapter_does_not_hide_the_others(install: Install) -> None:
    install("fake-npu", broken="not_installed_at_all:X", fake="fake_adapters:Fake")
    listed = {info.name: info for info in plugins.describe()}
    assert listed["broken"].fault and not listed["fake"].fault


def test_describing_an_unknown_target_is_an_error() -> None:
    with pytest.raises(UsageError, match="unknown target 'nope'"):
        plugins.describe(["nope"])
