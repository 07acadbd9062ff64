"""The profiles that ship with npuc: each loads, and says what its public sources say."""

from importlib import resources

import pytest

from npuc.profile import FloatFormat, Profile

NAMES = sorted(
    path.name.removesuffix(".toml")
    for path in (resources.files("npuc.targets") / "profiles").iterdir()
    if path.name.endswith(".toml")
)
TARGETS = (
    "atom atom-max rebel100 warboy rngd dx-m1 dx-h1 aries regulus x220 x330 ascend-910 ascend-310p "
    "n-dolphin dolphin5 rk3588 ethos-u55 ethos-u65 ethos-u85 tpu cpu cuda openvino"
)


def test_every_target_has_a_profile() -> None:
    assert sorted(TARGETS.split()) == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_loads_and_says_what_it_assumes(name: str) -> None:
    """A choice of npuc's is graded A, and nothing that a vendor says is."""
    profile = Profile.load(name)
    assert profile.name == name and profile.title
    for key, fact in profile.facts.items():
        if fact.grade == "A":
            assert fact.source == "npuc", key
        elif name not in ("cpu", "cuda"):  # their device is npuc's own kernels
            assert fact.source != "npuc", key
    cited = {f.source for f in profile.facts.values()} | {m.source for m in profile.limits}
    assert cited == set(profile.sources)
    assert all(m.grade in ("P", "S", "I") for m in profile.limits)


@pytest.mark.parametrize("name", NAMES)
def test_has_all_that_its_precisions_need(name: str) -> None:
    profile = Profile.load(name)
    scheme = profile.int_scheme
    assert ("int8" in profile.precisions) == (scheme is not None)
    if scheme is not None:
        assert scheme.whole or "float" in profile.precisions
        assert {"Conv", "Gemm", "MatMul"} <= scheme.ops
    elif name != "cpu":
        assert profile.float_formats


# The figures of the reference: vendors' pages, or the press where no vendor states them.
FIGURES: dict[str, dict[str, object]] = {
    "atom": {"peak.int8_tops": 128, "peak.fp16_tflops": 32, "memory.gib": 16},
    "atom-max": {"peak.int8_tops": 512, "memory.gib": 64, "power.w": 350, "align.last_dim": 64},
    "rebel100": {"peak.fp8_tflops": 2048, "memory.gb_per_s": 4800, "sram.mb_total": 512},
    "warboy": {"peak.int8_tops": 64, "memory.gb_per_s": 66, "onnx.opset_max": 13,
               "power.w": [40, 60]},
    "rngd": {"peak.bf16_tflops": 256, "peak.int8_tops": 512, "memory.gib": 48,
             "sram.mb_total": 256},
    "dx-m1": {"peak.int8_tops": 25, "onnx.opset_min": 11, "onnx.opset_max": 21, "shapes.batch": 1},
    "dx-h1": {"peak.int8_tops": 100, "onnx.opset_max": 21},
    "aries": {"peak.int8_tops": 80, "power.w": 25, "int8.percentile": 99.99},
    "regulus": {"peak.int8_tops": 10},
    "x220": {"int8.accumulator_bits": 24, "sram.mb_total": 22, "memory.gib": 16,
             "variants.compact.sram.mb_total": 11},
    "x330": {"memory.gb_per_s": 512, "memory.gib": 32, "power.w": 250},
    "ascend-910": {"peak.fp16_tflops": 256, "peak.int8_tops": 512, "power.w": 310,
                   "onnx.opset_min": 9, "onnx.opset_max": 18, "int8.overflow": "saturate"},
    "ascend-310p": {"peak.int8_tops": 140, "float.bf16": False, "onnx.opset_max": 18},
    "n-dolphin": {"peak.int8_tops": 8},
    "dolphin5": {"peak.int8_tops": 8, "int8.activation_dtype": "uint8"},
    "rk3588": {"peak.int8_tops": 6, "onnx.opset_min": 12, "onnx.opset_max": 19,
               "ops.rank_max": 4},
    "ethos-u55": {"peak.int8_tops": 0.256, "compiler.environment": "ethos-u"},
    "ethos-u65": {"peak.int8_tops": 1.024, "compiler.npu": "ethos-u65-512"},
    "ethos-u85": {"peak.int8_tops": 0.512, "compiler.npu": "ethos-u85-256"},
    "tpu": {"peak.bf16_tflops": 197, "memory.gib": 16, "variants.v6e.peak.bf16_tflops": 918,
            "float.rounds": "operands"},
    "openvino": {"compiler.requirements": ["openvino==2026.4.1"]},
}  # fmt: skip


@pytest.mark.parametrize("name", FIGURES)
def test_figures(name: str) -> None:
    profile = Profile.load(name)
    assert {key: profile.get(key) for key in FIGURES[name]} == FIGURES[name]


RULES = {
    "float32-even": {"atom", "atom-max", "rngd", "cpu", "cuda", "openvino"},
    "tflite-double": {
        "warboy", "dx-m1", "dx-h1", "aries", "regulus", "n-dolphin", "ethos-u55", "ethos-u65",
        "ethos-u85",
    },
    "two-stage": {"x220"},
    "int16-even": {"rk3588"},
    "fp19-truncate": {"ascend-910", "ascend-310p"},
    "q16": {"dolphin5"},
}  # fmt: skip


def test_requantization_rules() -> None:
    found: dict[str, set[str]] = {}
    for name in NAMES:
        if scheme := Profile.load(name).int_scheme:
            found.setdefault(scheme.requantize, set()).add(name)
    assert found == RULES


BF16, HALF = FloatFormat(8, 7), FloatFormat(5, 10)
FORMATS = {
    "rngd": (BF16,),
    "tpu": (BF16,),
    "ascend-910": (HALF,),
    "ascend-310p": (HALF,),
    "rk3588": (HALF,),
    "x330": (BF16, HALF),
    "rebel100": (BF16, FloatFormat(6, 9)),
    "atom-max": (BF16, FloatFormat(6, 9)),
}


def test_float_formats() -> None:
    found = {name: Profile.load(name).float_formats for name in NAMES if name != "atom"}
    assert {name: formats for name, formats in found.items() if formats} == FORMATS


def bounds(name: str, op: str, measure: str) -> list[object]:
    """Return (most, among, when) of each limit."""
    limits = Profile.load(name).limits
    found = [m for m in limits if op in m.ops and m.measure == measure]
    return [(m.most, m.among, dict(m.when)) for m in found]


LIMITS = {
    ("warboy", "Conv", "group"): [(128, None, {})],
    ("warboy", "Conv", "dilation"): [(12, None, {})],
    ("warboy", "Softmax", "batch"): [(2, None, {})],
    ("dx-m1", "Conv", "kernel"): [(15, None, {}), (None, (3, 5), {"depthwise": True})],
    ("dx-h1", "Softmax", "axis_length"): [(4080, None, {})],
    ("rk3588", "Conv", "kernel"): [
        (31, None, {"depthwise": False}),
        (8, None, {"depthwise": True}),
    ],
    ("rk3588", "MatMul", "k"): [(8192, None, {})],
    ("dolphin5", "Conv", "kernel"): [(None, (1, 2, 3, 5, 7, 9), {})],
    ("ethos-u65", "MaxPool", "stride"): [(3, None, {})],
    ("ethos-u85", "Conv", "stride"): [(8192, None, {})],
    ("ethos-u85", "Conv", "weight_abs_sum"): [(8323072, None, {})],
}


@pytest.mark.parametrize("about", LIMITS, ids=" ".join)
def test_operator_limits(about: tuple[str, str, str]) -> None:
    assert bounds(*about) == LIMITS[about]


def test_conflicting_or_unpublished_figures_stay_out() -> None:
    """Better no number than one of two that contradict each other."""
    assert "power.w" not in Profile.load("atom").facts  # 85 W and 150 W are both reported
    assert "power.w" not in Profile.load("regulus").facts
    assert "memory.gb_per_s" not in Profile.load("ascend-910").facts
    assert "memory.gib" not in Profile.load("dx-h1").facts
    assert not [key for key in Profile.load("rebel100").facts if key.startswith("int8.")]


def test_nothing_forbidden_is_installed() -> None:
    """npuc makes environments only of compilers that anybody may run."""
    installed = {n for n in NAMES if Profile.load(n).get("compiler.environment")}
    assert installed == {"rngd", "ethos-u55", "ethos-u65", "ethos-u85", "openvino", "tpu"}
    for name in installed:
        pins = Profile.load(name).get("compiler.requirements")
        assert not [pin for pin in pins if pin.startswith(("dx-com", "rknn", "furiosa-sdk"))]
