"""The README's two commands are what `.ci/run` runs, and what it shows is what npuc has."""

import re
from pathlib import Path

from npuc import models, plugins
from npuc.cli import cli

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text()


def test_the_first_two_commands_set_up_and_test() -> None:
    blocks = re.findall(r"^```sh\n(.*?)^```", README, re.M | re.S)
    first, second = (block.strip() for block in blocks[:2])
    assert "\n" not in first + second
    assert "npuc compile zoo:digits-mobilenet --target atom" in first
    assert second.endswith("pytest -n 2")


def test_every_target_and_verb_is_described() -> None:
    assert [n for n in plugins.names() if f"| `{n}` |" not in README] == []
    assert [v for v in cli.commands if f"npuc {v}" not in README] == []


def test_every_exit_code_is_listed() -> None:
    from npuc import errors

    kinds = [e for e in vars(errors).values() if isinstance(e, type)]
    codes = {e.exit_code for e in kinds if issubclass(e, errors.NpucError)} - {1}
    assert [c for c in sorted(codes) if f"| {c} |" not in README] == []


def test_every_trained_model_is_listed() -> None:
    assert [n for n in models.names() if f"`{n}`" not in README] == []
