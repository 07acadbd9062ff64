"""The example repository as committed: every way of running its gate is green, and can be red.

Known-bad changes are in test_known_bad_changes.py.
"""

import subprocess
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parents[2]


def spoil(folder: Path) -> None:
    """Change what the network computes, and nothing else."""
    path = folder / "model.py"
    path.write_text(path.read_text().replace("self.units(found)}", "self.units(found).relu()}"))


def names(path: Path) -> list[str]:
    return [case.attrib["name"] for case in ET.parse(path).iter("testcase")]


def test_gitlab(runner: Any) -> None:
    green = runner.gitlab("parity")
    assert not green.failed, green.text
    (junit,) = green.uploads["junit"]
    assert ET.parse(junit).find(".//failure") is None
    assert {path.name for path in green.uploads["artifacts"]} == {"parity.html", "parity.md"}
    spoil(runner.folder)
    red = runner.gitlab("parity")
    assert red.code == 6 and "output units" in red.text and "output tens" in red.text


def test_the_repositorys_own_tests(runner: Any) -> None:
    green = runner.github("tests")
    assert not green.failed, green.text
    assert "4 passed" in green.text
    assert sorted(names(green.uploads["tests"][0])) == [
        "test_no_layer_leaves_the_device[meter-atom]",
        *(f"test_the_compiled_model_answers_like_the_original[meter-{target}]"
          for target in ("atom", "cpu", "dx-m1")),
    ]  # fmt: skip
    spoil(runner.folder)
    red = runner.github("tests")
    assert red.failed == "Test" and red.code == 1
    assert "exported: units: max abs" in red.text and "Traceback" not in red.text
    assert red.uploads["tests"], "what the tests say is kept when they fail, too"


def test_the_hook_for_a_commit(runner: Any) -> None:
    (hook,) = yaml.safe_load((ROOT / ".pre-commit-hooks.yaml").read_text())
    (repo,) = yaml.safe_load((runner.folder / ".pre-commit-config.yaml").read_text())["repos"]
    (used,) = repo["hooks"]
    assert used["id"] == hook["id"] and not hook["pass_filenames"]
    command = [*hook["entry"].split(), *used["args"]]

    def commit() -> int:
        return subprocess.run(
            command, cwd=runner.folder, env=runner.environment, capture_output=True, timeout=300
        ).returncode

    assert commit() == 0
    spoil(runner.folder)
    assert commit() == 6


def test_what_is_committed_stays_small(repository: Path) -> None:
    sizes = {p.name: p.stat().st_size for p in repository.rglob("*") if ".git" not in p.parts}
    assert sizes["meter.ref"] < 300_000
    assert sum(sizes.values()) < 400_000


def test_every_input_of_the_action_is_used() -> None:
    path = ROOT / ".github" / "actions" / "parity" / "action.yml"
    text = path.read_text()
    for name, about in yaml.safe_load(text)["inputs"].items():
        assert text.count(f"inputs.{name}") and about["description"] and "default" in about
