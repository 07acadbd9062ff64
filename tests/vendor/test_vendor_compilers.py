"""Reference models through the vendors' own compilers, and a look into what they wrote.

Run by ``pytest -m vendor`` where the compilers are installed (``npuc toolchain install``); it
takes a quarter of an hour and more. A compiler that is missing fails its tests: they were asked
for.
"""

import importlib.util
import json
import zipfile
from pathlib import Path
from types import ModuleType

import pytest

import npuc
from npuc import plugins

pytestmark = pytest.mark.vendor
SECONDS = 900.0


@pytest.fixture(scope="session")
def coverage() -> ModuleType:
    """Return the script beside this file."""
    path = Path(__file__).with_name("coverage.py")
    spec = importlib.util.spec_from_file_location("vendor_coverage", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def compiled(model: str, target: str, folder: Path, precision: str | None = None) -> Path:
    """Compile with the vendor's compiler; returns the artifact."""
    found = plugins.find(target).toolchain()
    assert not found.missing, f"{found.name}: {found.missing}; {found.remedy}"
    folder.mkdir(exist_ok=True)
    (done,) = npuc.compile(
        f"zoo:{model}", target=target, output=folder / f"{model}.{target}.npuc",
        precision=precision, vendor="require", timeout=SECONDS,
    )  # fmt: skip
    return Path(done.artifact_path)


def member(path: Path, name: str) -> bytes:
    with zipfile.ZipFile(path) as archive:
        return archive.read(f"vendor/{name}")


@pytest.mark.parametrize("target", ["ethos-u55", "ethos-u65", "ethos-u85"])
@pytest.mark.parametrize("model", ["digits-mobilenet", "digits-resnet"])
def test_convolutions_are_delegated_whole_to_ethos_u(
    model: str, target: str, tmp_path: Path
) -> None:
    """One delegate that holds Vela's commands, and estimates that can be true."""
    path = compiled(model, target, tmp_path)
    binary, summary = member(path, "model.pte"), json.loads(member(path, "summary.json"))
    assert binary[4:8] == b"ET12"
    for mark in (b"vela_bin_stream", b"COP1", b"EthosUBackend"):
        assert mark in binary
    about = summary["delegation"]
    assert about["subgraphs"] == 1
    # The graph's edges are float: they are coded and decoded on the host.
    assert sum(about["host"].values()) <= about["host_nodes"] <= 5
    (estimate,) = summary["vela"]
    assert estimate["nn_macs"] > 1e5
    assert estimate["cycles_total"] >= estimate["nn_macs"] / 512  # the largest device here
    assert 0 < estimate["sram_memory_used"] < 1024


def test_a_transformer_is_delegated_to_ethos_u85(tmp_path: Path) -> None:
    path = compiled("text-bert", "ethos-u85", tmp_path)
    about = json.loads(member(path, "summary.json"))["delegation"]
    assert about["delegated_nodes"] > 20 * about["host_nodes"]


def test_rngd_takes_at_least_parts_of_a_network(tmp_path: Path) -> None:
    """What the compiler takes, and its own words for the rest, account for every node."""
    path = compiled("digits-mobilenet", "rngd", tmp_path)
    summary = json.loads(member(path, "summary.json"))
    assert summary["parts"]
    nodes = [n for part in summary["parts"] for n in part["nodes"]]
    assert len(nodes) + len(summary["host"]) == summary["nodes"]
    assert all(item["reason"] for item in summary["host"])
    for part in summary["parts"]:
        assert len(member(path, part["file"])) == part["bytes"] > 100


@pytest.mark.parametrize("precision", ["float", "int8"])
@pytest.mark.parametrize("model", ["digits-mobilenet", "text-bert"])
def test_openvino_answers_like_the_original(model: str, precision: str, tmp_path: Path) -> None:
    """The same bytes twice, and a report that passes with what ran on this CPU."""
    first = compiled(model, "openvino", tmp_path / "a", precision)
    second = compiled(model, "openvino", tmp_path / "b", precision)
    for name in ("openvino.xml", "openvino.bin"):
        assert member(first, name) == member(second, name)
    report = npuc.verify(first)
    assert report.exit_code == 0


def test_what_is_on_record_can_be_shown(coverage: ModuleType) -> None:
    """Every model that is recorded has a row, every compiler a column."""
    text = coverage.table()
    for item in coverage.recorded():
        assert f"| `{item['model']}` |" in text and item["target"] in text
