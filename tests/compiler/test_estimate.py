"""Roofline bounds, checked by hand on a model that one can count."""

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from npuc import partition
from npuc.estimate import estimate, spelled, text
from npuc.profile import Profile
from npuc.program import Program

MODEL = """<ir_version: 10, opset_import: ["": 20]>
net (float[1, 4, 10, 10] x) => (float[1, 8, 10, 10] z)
<float[8, 4, 3, 3] w, float[8] b>
{
  [conv] y = Conv <pads = [1, 1, 1, 1]> (x, w, b)
  [act] z = Sigmoid (y)
}"""
FACTS = {
    "peak.int8_tops": 2,
    "peak.fp16_tflops": 1,
    "memory.gb_per_s": 10,
    "sram.mb_total": 1,
    "float.formats": "[[5, 10]]",
    "int8.ops": '["Conv"]',
    "int8.weight_range": "[-127, 127]",
    "int8.activation_range": "[-128, 127]",
    "int8.weight_per_channel": "true",
    "int8.activation_symmetric": "true",
    "precisions": '["int8", "float"]',
}


def profile(**changed: object) -> Profile:
    """Return a device with some facts changed, or absent where None."""
    facts = FACTS | {k.replace("__", "."): v for k, v in changed.items()}
    lines = [
        f'"{k}" = {{ value = {v}, grade = "P", source = "s" }}'
        for k, v in facts.items()
        if v is not None
    ]
    return Profile.parse(
        "\n".join(['name="d"', 'title="D"', "[sources]", 's="s"', "[facts]", *lines])
    )


def program() -> Program:
    """Return a convolution and a sigmoid."""
    proto = onnx.parser.parse_model(MODEL)
    for name, dims in (("w", (8, 4, 3, 3)), ("b", (8,))):
        proto.graph.initializer.append(onnx.numpy_helper.from_array(np.zeros(dims, "f4"), name))
    return Program.from_model(ir.from_proto(onnx.shape_inference.infer_shapes(proto, True)))


def test_a_model_that_fits_is_bound_by_its_arithmetic() -> None:
    """800 outputs of 36 multiply-adds at 2 TOPS; 800 sigmoids at 1 TFLOPS; nothing is moved."""
    found = estimate(program(), profile(), "int8")
    assert found.operations == 2 * 800 * 36 + 800
    assert found.weight_bytes == 8 * 36 + 8
    assert found.fits is True and found.bytes == 0
    conv, act = found.layers
    assert conv.seconds == pytest.approx(57600 / 2e12) and conv.limit == "compute"
    assert act.seconds == pytest.approx(800 / 1e12) and act.limit == "compute"


def test_floats_take_two_bytes_and_the_float_rate() -> None:
    found = estimate(program(), profile(), "float")
    assert found.weight_bytes == 2 * (8 * 36 + 8)
    assert found.layers[0].compute_seconds == pytest.approx(57600 / 1e12)
    assert set(found.facts) == {"peak.fp16_tflops", "memory.gb_per_s", "sram.mb_total"}


def test_what_does_not_fit_crosses_the_memory_interface() -> None:
    """100 bytes on the chip: all weights, and what each layer has above that."""
    found = estimate(program(), profile(sram__mb_total=0.0001), "int8")
    conv, act = found.layers
    assert found.fits is False
    assert conv.bytes == 296 + (400 + 800 - 100)
    assert act.bytes == 1600 * 2 - 100
    assert conv.seconds == pytest.approx(conv.bytes / 10e9) and conv.limit == "memory"


def test_absent_facts_are_named_and_bound_nothing() -> None:
    found = estimate(program(), profile(memory__gb_per_s=None, sram__mb_total=None), "int8")
    assert found.missing == ("sram.mb_total", "memory.gb_per_s") and found.fits is None
    assert estimate(program(), profile(sram__mb_total=None), "int8").bytes == 0  # it may all fit
    assert found.seconds == pytest.approx(57600 / 2e12 + 800 / 1e12)
    nothing = profile(
        memory__gb_per_s=None, peak__int8_tops=None, peak__fp16_tflops=None, sram__mb_total=None
    )
    found = estimate(program(), nothing, "int8")
    assert found.seconds is None
    assert "no bound: sram.mb_total, memory.gb_per_s, peak.int8_tops" in text(found)


def test_what_stays_on_the_host_is_not_counted() -> None:
    marked = program()
    marked.model.graph[1].metadata_props[partition.PLACE] = "no Sigmoid"
    found = estimate(marked, profile(), "int8")
    assert [layer.op for layer in found.layers] == ["Conv"] and found.host == 1


def test_the_text_says_bound_and_what_it_rests_on() -> None:
    shown = text(estimate(program(), profile(), "int8"))
    for words in ("at least 29.6 ns", "bound", "fits on the chip", "peak.int8_tops", "97%"):
        assert words in shown, shown
    assert "one layer runs after the other" in shown


def test_json_names_the_schema_and_the_word_bound() -> None:
    data = estimate(program(), profile(), "int8").to_json()
    assert data["schema"] == "npuc-estimate-1"
    assert data["bound_seconds"] == pytest.approx(29.6e-9)
    assert [layer["limit"] for layer in data["layers"]] == ["compute", "compute"]
    assert data["facts"]["peak.int8_tops"]["grade"] == "P"


@pytest.mark.parametrize(
    ("seconds", "words"), [(2.5, "2.5 s"), (0.0031, "3.1 ms"), (4.2e-6, "4.2 µs"), (3e-9, "3 ns")]
)
def test_times_are_spelled_in_their_unit(seconds: float, words: str) -> None:
    assert spelled(seconds) == words


def test_weights_of_four_bits_take_half_a_byte() -> None:
    """Only those of operators that compute on codes; activations keep their eight bits."""
    eight, four = (estimate(program(), profile(), p) for p in ("int8", "w4a8"))
    assert four.weight_bytes == 8 * 36 // 2 + 8 // 2
    assert four.peak_activation_bytes == eight.peak_activation_bytes
    assert four.seconds == eight.seconds and four.precision == "w4a8"
