"""Precisions that compute in floats, from a recorded model to a checked artifact."""

from pathlib import Path

import numpy as np
import pytest

from npuc import artifact, estimate, pipeline
from npuc.errors import UsageError
from npuc.profile import FLOATS, Fact, Profile
from npuc.quantization.factor_coder import FactorCoder
from npuc.quantization.quantizer import Choices

CASES = [
    ("cpu", "w8a16", "weight-only", 40.0),
    ("cpu", "w4a16", "weight-only", 15.0),
    ("rngd", "w8a16", "weight-only", 35.0),
    ("rngd", "fp8", "round-factors", 20.0),
    ("rngd", "fp8-e5m2", "round-factors", 12.0),
    ("rebel100", "fp8", "round-factors", 20.0),
]
"""Target, precision, the pass that codes, and a floor in dB. A small random net loses about 44 dB
to 8-bit weights, 20 dB to 4 bits, 26 dB to three bits of mantissa and 20 dB to two."""


@pytest.mark.parametrize(("target", "precision", "step", "floor"), CASES)
def test_from_model_to_artifact(
    target: str, precision: str, step: str, floor: float, recorded: Path, tmp_path: Path
) -> None:
    """The pass is a step that codes all products, and the artifact still answers when verified."""
    path = tmp_path / "net.npuc"
    (done,) = pipeline.compile(
        recorded, target=target, precision=precision, output=path, vendor="skip"
    )
    steps = {s.name: s for s in artifact.program(artifact.read(path)).steps}
    assert steps[step].changes == 2 and not steps[step].refusals  # one convolution, one product
    (row,) = (r for r in done.report.rows if r.stage == "artifact")
    assert min(d.sqnr_db for d in row.original) > floor
    assert any(
        word in note for note in done.report.notes for word in (precision, "weights", "e5m2")
    )
    again = pipeline.verify(path)
    (checked,) = (r for r in again.rows if r.stage == "artifact")
    assert checked.original == row.original


def test_every_precision_of_floats_has_a_coder_or_none(recorded: Path, tmp_path: Path) -> None:
    """A precision that a target lacks is refused by name, before anything is done."""
    assert set(FLOATS) == {"float", "bf16", "w4a16", "w8a16", "fp8", "fp8-e5m2"}
    with pytest.raises(UsageError, match="'fp8' is not available: cpu has"):
        pipeline.compile(recorded, target="cpu", precision="fp8", output=tmp_path / "x.npuc")


def test_what_a_coder_does_not_know_is_said(artifacts: dict[str, Path]) -> None:
    net, rngd = artifact.program(artifact.read(artifacts["cpu"])), Profile.load("rngd")
    with pytest.raises(UsageError, match="has no 8-bit floats"):
        FactorCoder(net, [], rngd, "int8")
    with pytest.raises(UsageError, match="no node 'nobody'"):
        FactorCoder(net, [], rngd, "fp8", Choices(skip=("nobody",)))


def test_estimates_count_the_bits_of_weights(artifacts: dict[str, Path]) -> None:
    """Products' weights take 4, 8 or the float's 16 bits; fp8 counts at its own peak."""
    net = artifact.program(artifact.read(artifacts["cpu"]))
    facts = {
        "float.formats": [[8, 7]], "peak.bf16_tflops": 1, "peak.fp8_tflops": 2,
    }  # fmt: skip
    device = Profile("t", "T", {k: Fact(v, "A", "t") for k, v in facts.items()}, {})
    found = {p: estimate.estimate(net, device, p) for p in FLOATS}
    weights = {
        p: {x.op: x.weight_bytes for x in e.layers if x.op in ("Conv", "Gemm")}
        for p, e in found.items()
    }
    for op in ("Conv", "Gemm"):
        full = weights["float"][op]
        assert weights["w8a16"][op] == weights["fp8"][op] == full / 2
        assert np.isclose(weights["w4a16"][op], full / 4, atol=2)  # each tensor in whole bytes
    times = {p: sum(x.compute_seconds or 0 for x in e.layers) for p, e in found.items()}
    assert times["w4a16"] == times["float"] > times["fp8"]


def test_every_coded_weight_is_widened_for_the_twin(recorded: Path, tmp_path: Path) -> None:
    """Of all products, not the first alone: what TVM sees has no codes and no roundings of them."""
    from npuc.targets.tvm import rewrites

    path = tmp_path / "net.npuc"
    pipeline.compile(recorded, target="rngd", precision="w8a16", output=path, vendor="skip")
    before = artifact.program(artifact.read(path)).model
    kinds = [n.op_type for n in before.graph]
    assert kinds.count("DequantizeLinear") == 2
    after = [n.op_type for n in rewrites.prepare(before).graph]
    assert "DequantizeLinear" not in after
    assert sum("RoundTo" in k for k in after) == sum("RoundTo" in k for k in kinds) - 2
