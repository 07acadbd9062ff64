"""RNGD: what of a graph the compiler takes, whole or in parts. The compiler is a stand-in here."""

import json
from collections.abc import Callable
from typing import Any

import pytest

from npuc.errors import ToolchainError
from npuc.targets.furiosa_torch import FuriosaTorch

VARIABLE, FAKE = "NPUC_FURIOSA_TORCH_PYTHON", "fake_furiosa_torch"


@pytest.fixture
def build(
    bench: Callable[..., Any], install: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> Callable[..., Any]:
    """Return a function: what the compiler refuses → what was built of the image model."""
    monkeypatch.setattr("shutil.which", lambda name: f"/bin/{name}")

    def run(**chosen: str) -> Any:
        install(VARIABLE, FAKE, **chosen)
        return bench(FuriosaTorch(), "rngd").build()

    return run


def test_a_graph_that_is_taken_whole_is_one_file(build: Callable[..., Any]) -> None:
    built = build()
    assert [name for name in built.files if name.endswith(".edf")] == ["model.edf"]
    assert "model.edf in bfloat16; not run" in built.said
    summary = json.loads(built.files["summary.json"])
    assert summary["whole"] and summary["host"] == []
    assert summary["versions"]["furiosa-torch"] == "2026.4.0"


def test_what_is_refused_is_left_to_the_host_with_the_vendors_words(
    build: Callable[..., Any],
) -> None:
    """The convolution fails; what follows it compiles, in a part of its own."""
    built = build(FAKE_REFUSES="conv2d")
    summary = json.loads(built.files["summary.json"])
    assert not summary["whole"] and "Tactic failure summary" in summary["reason"]
    (refused,) = [h for h in summary["host"] if h["op"] == "Conv"]
    assert "Tactic failure summary: ['conv2d']" in refused["reason"]
    covered = sorted(n for p in summary["parts"] for n in p["nodes"])
    hosted = sorted(h["node"] for h in summary["host"])
    assert sorted(covered + hosted) == ["conv_0", "flatten_3", "gemm_4", "globalaveragepool_2",
                                        "relu_1"]  # fmt: skip
    assert "gemm_4" in covered
    for part in summary["parts"]:
        seen = json.loads(built.files[part["file"]].removeprefix(b"\1\1EDF"))
        assert seen["inputs"] and not any("conv2d" in op for op in seen["ops"])


def test_a_failure_in_the_cache_does_not_reach_the_next_part(build: Callable[..., Any]) -> None:
    """Each attempt has a HOME of its own: the stand-in, like the compiler, remembers failures."""
    built = build(FAKE_NODES="2")
    summary = json.loads(built.files["summary.json"])
    assert len(summary["parts"]) > 1
    assert not any("cached" in h["reason"] for h in summary["host"])


def test_where_nothing_compiles_the_vendors_words_are_the_error(
    build: Callable[..., Any],
) -> None:
    with pytest.raises(ToolchainError, match="Tactic failure summary"):
        build(FAKE_NODES="0")
