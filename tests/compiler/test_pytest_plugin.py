"""The pytest plugin, in repositories of its users: separate processes with their own settings."""

import os
import shutil
import subprocess
import sys
import xml.etree.ElementTree as ET
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
import torch
from torch import nn

import npuc

Run = Callable[..., subprocess.CompletedProcess[str]]

POLICY = """\
version = 1

[models.good]
file = "model.pt"
targets = ["cpu"]

[models.waived]
file = "model.pt"
targets = ["cpu"]
hold = { sqnr-db = 500 }

[models.bad]
file = "model.pt"
targets = ["cpu"]
hold = { sqnr-db = 400 }

[models.few]
file = "model.pt"
targets = ["cpu"]
hold = { agreement = 0.99 }

[[waivers]]
model = "waived"
target = "cpu"
check = "sqnr-db"
reason = "nobody reaches 500 dB"
expires = 9999-12-31
"""

TESTS = """\
import pytest

@pytest.mark.parity
def test_all(parity):
    assert parity.pair.target == "cpu"

@pytest.mark.parity(model=["good", "bad"], target="cpu")
def test_some(parity):
    assert parity.report.rows[-1].stage == "artifact"
    assert parity.artifact.name.endswith(".npuc") and parity.artifact.is_file()
    assert parity.outcome.passed == (parity.pair.model == "good")
"""


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A repository with a model of which every answer is known, and what its gate asks."""
    folder = tmp_path_factory.mktemp("project")
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3)).eval()
    npuc.save(model, torch.rand(1, 6), folder / "model.pt", samples=torch.rand(12, 6))
    (folder / "parity.toml").write_text(POLICY)
    # As strict as a user's settings get: a library's warning must not become a failure.
    (folder / "pytest.ini").write_text(
        "[pytest]\nfilterwarnings = error\naddopts = --strict-markers -p no:cacheprovider\n"
    )
    (folder / "test_parity.py").write_text(TESTS)
    return folder


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The cache of this module's runs."""
    return tmp_path_factory.mktemp("kept")


def run(folder: Path, kept: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """Run pytest in a repository."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith("PYTEST_")}
    return subprocess.run(
        [sys.executable, "-m", "pytest", *words], cwd=folder, text=True, timeout=300,
        capture_output=True, env={**environment, "NPUC_CACHE": str(kept), "OMP_NUM_THREADS": "1"},
    )  # fmt: skip


def cases(path: Path) -> Mapping[str, ET.Element]:
    """Return the test cases of a JUnit file by name."""
    return {case.attrib["name"]: case for case in ET.parse(path).iter("testcase")}


def properties(case: ET.Element) -> Mapping[str, str]:
    return {p.attrib["name"]: p.attrib["value"] for p in case.iter("property")}


def test_each_pair_is_a_test_and_workers_share_what_is_compiled(
    project: Path, kept: Path, tmp_path: Path
) -> None:
    junit = tmp_path / "junit.xml"
    done = run(project, kept, "-n", "2", f"--junitxml={junit}")
    assert "3 failed, 3 passed" in done.stdout, done.stdout + done.stderr
    assert done.returncode == 1
    found = cases(junit)
    assert found.keys() == {
        "test_all[good-cpu]", "test_all[waived-cpu]", "test_all[bad-cpu]", "test_all[few-cpu]",
        "test_some[good-cpu]", "test_some[bad-cpu]",
    }  # fmt: skip
    about = properties(found["test_all[good-cpu]"])
    assert about["npuc.model"] == "good" and about["npuc.target"] == "cpu"
    assert about["npuc.state"] == "passed" and about["npuc.evidence"] == "device"
    assert properties(found["test_all[few-cpu]"])["npuc.state"] == "undecided"
    assert properties(found["test_all[few-cpu]"])["npuc.exit_code"] == "9"
    # Of the two tests that look at one pair, on two workers, one compiled it.
    for pair in ("good-cpu", "bad-cpu"):
        cached = [
            properties(found[f"{t}[{pair}]"])["npuc.cached"] for t in ("test_all", "test_some")
        ]
        assert sorted(cached) == ["False", "True"]


def test_a_failure_is_the_report_and_what_to_do(project: Path, kept: Path) -> None:
    done = run(project, kept, "-k", "test_all")
    text = done.stdout
    assert "2 failed, 2 passed" in text, text + done.stderr
    assert "bad::cpu: FAILED" in text and "few::cpu: UNDECIDED" in text
    assert "more samples needed" in text
    assert (
        "Traceback" not in text and "pytest_plugin.py" not in text and "site-packages" not in text
    )
    # A waiver is no failure, and is never silent.
    assert "parity: waived" in text and "nobody reaches 500 dB" in text


def test_without_a_test_file(project: Path, kept: Path, tmp_path: Path) -> None:
    for name in ("model.pt", "parity.toml", "pytest.ini"):
        shutil.copy(project / name, tmp_path)
    done = run(tmp_path, kept, "--parity", "-v", "-n", "2")
    assert "2 failed, 2 passed" in done.stdout, done.stdout + done.stderr
    assert "parity.toml::good-cpu" in done.stdout and "bad::cpu: FAILED" in done.stdout
    one = run(tmp_path, kept, "parity.toml::good-cpu", "-m", "parity")
    assert "1 passed" in one.stdout, one.stdout + one.stderr
    nothing = run(tmp_path, kept)
    assert nothing.returncode == 5  # pytest's "no tests": npuc adds none unless it is asked


def test_parity_adds_the_file_to_the_tests_that_there_are(project: Path, kept: Path) -> None:
    (project / "tests").mkdir()
    (project / "tests" / "test_other.py").write_text("def test_other(): pass\n")
    done = run(project, kept, "--parity", "--collect-only", "-q", "tests")
    assert done.stdout.splitlines()[:5] == [
        "tests/test_other.py::test_other",
        *(f"parity.toml::{name}-cpu" for name in ("good", "waived", "bad", "few")),
    ]


TAKES, LACKS = "def test(parity): pass", "def test(): pass"
FAULTS = {
    "target": ('(target="cpuu")', TAKES, "no target cpuu: it has cpu"),
    "model": ('(model="god")', TAKES, "no model god: it has bad, few, good"),
    "argument": ("(to=1)", TAKES, "takes model=, target= and file=, not to"),
    "fixture": ("", LACKS, "does not take the fixture `parity`"),
    "file": ('(file="no.toml")', TAKES, "cannot read"),
    "key": ('(file="key.toml")', TAKES, "unknown key"),
}


def test_what_is_asked_wrongly_is_no_pass(project: Path, kept: Path, tmp_path: Path) -> None:
    for name in ("model.pt", "parity.toml", "pytest.ini"):
        shutil.copy(project / name, tmp_path)
    (tmp_path / "key.toml").write_text(POLICY.replace("[models.good]", "modles = 1\n[models.good]"))
    for name, (arguments, test, _) in FAULTS.items():
        text = f"import pytest\n@pytest.mark.parity{arguments}\n{test}\n"
        (tmp_path / f"test_{name}.py").write_text(text)
    (tmp_path / "test_marker.py").write_text("def test(parity): pass\n")
    done = run(tmp_path, kept, "--continue-on-collection-errors")
    assert f"{len(FAULTS) + 1} errors" in done.stdout, done.stdout + done.stderr
    for *_, message in FAULTS.values():
        assert message in done.stdout, done.stdout
    assert "without its marker" in done.stdout
    assert "pytest_plugin.py" not in done.stdout
    missing = run(tmp_path, kept, "--parity", "-o", "npuc_parity_file=gone.toml")
    assert missing.returncode == 4 and "there is no" in missing.stderr


def test_others_names_are_left_alone(kept: Path, tmp_path: Path) -> None:
    (tmp_path / "pytest.ini").write_text("[pytest]\nfilterwarnings = error\n")
    (tmp_path / "test_own.py").write_text(
        "import pytest\n"
        "@pytest.fixture(params=[0, 1])\ndef parity(request): return request.param\n"
        "def test_even(parity): assert parity in (0, 1)\n"
        "@pytest.mark.parametrize('parity', ['odd', 'even'])\n"
        "def test_odd(parity): assert parity in ('odd', 'even')\n"
    )
    done = run(tmp_path, kept)
    assert "4 passed" in done.stdout, done.stdout + done.stderr


def test_a_test_run_without_parity_stays_light(tmp_path: Path) -> None:
    code = "import npuc.pytest_plugin, sys; print({m.split('.')[0] for m in sys.modules})"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    heavy = {"torch", "tvm", "onnx", "onnxruntime", "onnx_ir", "numpy", "click", "rich"}
    assert not heavy & eval(done.stdout)
