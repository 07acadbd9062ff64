"""Run what continuous integration would run, here: the steps of committed YAML.

A small interpreter of GitHub's workflows with composite actions, and of GitLab's jobs. It knows
what npuc's own files use and refuses the rest, so that a step cannot be left out silently.
"""

import os
import re
import shutil
import stat
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
REPOSITORY = ROOT / "examples" / "parity_repository"
ACTION = re.compile(r"OWNER/npuc/(?P<folder>[\w./-]+)@v[\d.]+")
PROVIDED = {"actions/checkout@v4", "actions/setup-python@v5", "actions/cache@v4"}
"""What a runner has done before a step, or does to be faster: nothing that changes a verdict."""

_TOKEN = re.compile(r"'[^']*'|[A-Za-z_][\w.-]*\(?|&&|\|\||!(?!=)")


@dataclass
class Ran:
    """What came of a job: the step that failed ("" for none), its exit code and all it printed."""

    failed: str = ""
    code: int = 0
    text: str = ""
    steps: list[str] = field(default_factory=list)
    uploads: dict[str, list[Path]] = field(default_factory=dict)
    summary: str = ""


@dataclass
class Runner:
    """One checked-out repository and the environment of its steps."""

    folder: Path
    temporary: Path
    environment: Mapping[str, str]

    def github(self, job: str, file: str = ".github/workflows/parity.yml") -> Ran:
        """Run one job of a workflow."""
        ran = Ran()
        steps = yaml.safe_load((self.folder / file).read_text())["jobs"][job]["steps"]
        self._steps(steps, {"runner.os": "Linux", "runner.arch": "X64"}, {}, ran)
        return ran

    def gitlab(self, job: str) -> Ran:
        """Run one job of .gitlab-ci.yml; all of its lines are one script."""
        ran = Ran()
        about = yaml.safe_load((self.folder / ".gitlab-ci.yml").read_text())[job]
        place = {"CI_PROJECT_DIR": str(self.folder)}
        own = {k: v.replace("$CI_PROJECT_DIR", str(self.folder))
               for k, v in about["variables"].items()}  # fmt: skip
        lines = [*about["before_script"], *about["script"]]
        self._run("script", "\n".join(lines), "bash", {**place, **own}, ran)
        for path in about["artifacts"]["paths"]:
            self._upload("artifacts", path, {"if-no-files-found": "ignore"}, ran)
        self._upload("junit", about["artifacts"]["reports"]["junit"], {}, ran)
        return ran

    def _steps(
        self, steps: list[dict[str, Any]], context: dict[str, str], env: dict[str, str], ran: Ran
    ) -> dict[str, str]:
        """Run steps, and after a failure those that always run; return what they put out."""
        outputs: dict[str, str] = {}
        for step in steps:
            known = {**context, **outputs, "status": "failure" if ran.failed else "success"}
            condition = str(step.get("if", "success()"))
            if "always()" not in condition and ran.failed:
                continue
            if not self._value(condition.removeprefix("${{").removesuffix("}}"), known):
                continue
            name = self._fill(step.get("name", step.get("uses", "")), known)
            ran.steps.append(name)
            given = {k: self._fill(v, known) for k, v in step.get("with", {}).items()}
            if "uses" in step:
                self._use(step["uses"], given, known, ran)
                continue
            own = {k: self._fill(v, known) for k, v in step.get("env", {}).items()}
            assert "${{" not in step["run"], "a text from outside belongs in env, not in a script"
            found = self._run(name, step["run"], step.get("shell", ""), {**env, **own}, ran)
            outputs |= {f"steps.{step.get('id', '')}.outputs.{k}": v for k, v in found.items()}
        return outputs

    def _use(self, uses: str, given: dict[str, str], context: dict[str, str], ran: Ran) -> None:
        if uses in PROVIDED:
            return
        if uses == "actions/upload-artifact@v4":
            self._upload(given["name"], given["path"], given, ran)
        elif uses == "github/codeql-action/upload-sarif@v3":
            self._upload(given["category"], given["sarif_file"], given, ran)
        elif own := ACTION.fullmatch(uses):
            self._composite(ROOT / own["folder"], given, context, ran)
        else:
            raise AssertionError(f"nothing here knows {uses}")

    def _composite(
        self, folder: Path, given: dict[str, str], context: dict[str, str], ran: Ran
    ) -> None:
        action = yaml.safe_load((folder / "action.yml").read_text())
        assert given.keys() <= action["inputs"].keys(), "an input that the action does not have"
        values = {
            name: given.get(name, about["default"]) for name, about in action["inputs"].items()
        }
        inner = {k: v for k, v in context.items() if k.startswith("runner.")}
        inner |= {f"inputs.{name}": str(value) for name, value in values.items()}
        steps = action["runs"]["steps"]
        outputs = self._steps(steps, inner, {"GITHUB_ACTION_PATH": str(folder)}, ran)
        for output in action["outputs"].values():
            self._fill(output["value"], {**inner, **outputs})

    def _run(
        self, name: str, script: str, shell: str, env: Mapping[str, str], ran: Ran
    ) -> dict[str, str]:
        """Run a script as GitHub does; return what it writes to GITHUB_OUTPUT."""
        strict = ("--noprofile", "--norc", "-eo", "pipefail") if shell == "bash" else ("-e",)
        files = {k: self.temporary / k for k in ("GITHUB_OUTPUT", "GITHUB_STEP_SUMMARY")}
        for path in files.values():
            path.write_text("")
        done = subprocess.run(
            ["bash", *strict, "-c", script], cwd=self.folder, text=True, timeout=300,
            env={**self.environment, **{k: str(v) for k, v in files.items()}, **env},
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip
        ran.text += done.stdout
        ran.summary += files["GITHUB_STEP_SUMMARY"].read_text()
        if done.returncode:
            ran.failed, ran.code = name, done.returncode
        return dict(line.split("=", 1) for line in files["GITHUB_OUTPUT"].read_text().splitlines())

    def _upload(self, name: str, path: str, given: Mapping[str, str], ran: Ran) -> None:
        place = self.folder / path
        found = [p for p in place.rglob("*") if p.is_file()] if place.is_dir() else [place]
        found = [p for p in found if p.is_file()]
        assert found or given.get("if-no-files-found") == "ignore", f"{path} was not written"
        ran.uploads.setdefault(name, []).extend(found)

    def _fill(self, text: object, context: Mapping[str, str]) -> str:
        """Replace each ``${{ }}`` by its value."""
        return re.sub(
            r"\$\{\{(.*?)\}\}", lambda found: str(self._value(found[1], context)), str(text)
        )

    def _value(self, expression: str, context: Mapping[str, str]) -> object:
        """Evaluate one of GitHub's expressions; a name that is not known is a fault."""
        operators = {"&&": " and ", "||": " or ", "!": " not "}

        def python(token: re.Match[str]) -> str:
            word = token[0]
            if word.startswith("'") or word.endswith("("):
                return word
            return operators.get(word) or f"context[{word!r}]"

        functions: dict[str, Callable[..., object]] = {
            "always": lambda: True,
            "success": lambda: context["status"] == "success",
            "hashFiles": lambda *patterns: "".join(
                sorted(p.name for pattern in patterns for p in self.folder.glob(pattern))
            ),
            "format": str.format,
        }
        code = _TOKEN.sub(python, expression.strip())
        return eval(code, {"__builtins__": {}, "context": context, **functions})


@pytest.fixture(scope="session")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The gate's cache, shared by all tests as it is by the runs of one repository."""
    base = tmp_path_factory.getbasetemp()
    kept = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "kept"
    kept.mkdir(exist_ok=True)
    return kept


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """A copy of the example repository under git, as a colleague has checked it out."""
    folder = tmp_path / "meter"
    shutil.copytree(
        REPOSITORY, folder, ignore=shutil.ignore_patterns("__pycache__", "parity-report")
    )
    for words in (["init", "-q"], ["add", "-A"]):
        subprocess.run(["git", *words], cwd=folder, check=True, timeout=60)
    return folder


@pytest.fixture
def runner(repository: Path, tmp_path: Path, kept: Path) -> Runner:
    """A machine that runs the repository's jobs. `pip` is there and only notes what is asked."""
    temporary = tmp_path / "runner"
    tools = temporary / "bin"
    tools.mkdir(parents=True)
    pip = tools / "pip"
    pip.write_text(f'#!/bin/sh\necho "$@" >> {temporary}/pip.txt\n')
    pip.chmod(pip.stat().st_mode | stat.S_IXUSR)
    own = {k: v for k, v in os.environ.items() if not k.startswith(("PYTEST_", "GITHUB_"))}
    path = os.pathsep.join([str(tools), str(Path(sys.executable).parent), os.environ["PATH"]])
    return Runner(
        repository, temporary,
        {**own, "PATH": path, "NPUC_CACHE": str(kept), "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
