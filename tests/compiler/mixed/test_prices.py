"""What keeping a layer in float costs, on devices that publish their rates and on others."""

from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from npuc import plugins
from npuc.mixed import prices
from npuc.partition import crossings, host_nodes
from npuc.passes.base import run
from npuc.per_target import prepare
from npuc.program import Program
from npuc.quantization import hosting
from npuc.quantization.quantizer import Quantizer

CHAIN = """
<ir_version: 10, opset_import: ["" : 20]>
chain (float[1, 8, 4, 4] x, float[16, 8, 1, 1] v, float[16, 16, 1, 1] w) => (float[1, 256] y) {
    a = Conv (x, v)
    b = Relu (a)
    c = Conv (b, w)
    s = Constant <value_ints = [1, 256]> ()
    d = Reshape (c, s)
    m = Identity (d)
    y = Relu (m)
}
"""


@pytest.fixture
def chain() -> Program:
    proto = onnx.parser.parse_model(CHAIN)
    draw = np.random.default_rng(0)
    for value in list(proto.graph.input)[1:]:
        shape = [d.dim_value for d in value.type.tensor_type.shape.dim]
        array = draw.standard_normal(shape).astype(np.float32)
        proto.graph.initializer.append(onnx.numpy_helper.from_array(array, value.name))
        proto.graph.input.remove(value)
    return Program.from_model(ir.from_proto(proto))


def quantizer(chain: Program, target: str) -> Quantizer:
    found = plugins.find(target)
    program = run(chain, prepare(found), found.profile)
    draw = np.random.default_rng(1)
    calls: Any = [{"x": draw.standard_normal((1, 8, 4, 4)).astype(np.float32)} for _ in range(4)]
    return Quantizer(program, calls, found.profile)


def layers(made: Quantizer) -> dict[str, prices.Layer]:
    found = prices.layers(made.prepared, made.program(), made.profile)
    return {layer.node: layer for layer in found}


def test_time_is_the_price_where_both_peaks_are_public(chain: Program) -> None:
    """Atom's peaks are 128 and 32: a layer takes four times as long, so three times is added."""
    found = list(layers(quantizer(chain, "atom")).values())
    first, second = found
    assert [layer.op for layer in found] == ["Conv", "Conv"]
    assert first.timed and (first.operations, second.operations) == (2 * 8 * 256, 2 * 16 * 256)
    # Each Relu makes 256 values in float, at a quarter of the rate.
    assert first.share + second.share == pytest.approx(3 * 12288 / (12288 + 4 * 512))
    assert second.share == pytest.approx(2 * first.share)
    assert first.price.endswith("% estimated time") and prices.form(profile("atom")) == "bf16"


def profile(name: str) -> Any:
    return plugins.find(name).profile


def test_work_is_the_price_where_a_peak_is_not_public(chain: Program) -> None:
    first, second = layers(quantizer(chain, "cpu")).values()
    assert not first.timed and first.share + second.share == pytest.approx(1, abs=0.1)
    assert first.price.endswith("% of the work") and prices.form(profile("cpu")) == "float32"


def test_a_layer_on_the_host_pays_for_what_crosses(chain: Program) -> None:
    first, second, *_ = layers(quantizer(chain, "ethos-u55")).values()
    assert prices.form(profile("ethos-u55")) == "float32 on the host"
    assert (first.crossing, second.crossing) == (4 * (128 + 256), 4 * (256 + 256))
    assert first.cost > first.share and "1.5 kB to cross per call" in first.price


def test_a_device_without_floats_sends_the_layer_to_the_host(chain: Program) -> None:
    """With it goes its clamp; the next layer, which moves values only, runs where they are."""
    made = quantizer(chain, "ethos-u55")
    first, second, *_ = layers(made)
    assert host_nodes(made.prepared.model) == () and made.floats() is made.prepared
    program = made.program((first,))
    kinds = [node.op_type for node in host_nodes(program.model)]
    assert kinds == ["Conv", "Relu"]
    assert [c.to for c in crossings(made.floats((first,)).model)] == ["device"]

    hosted = [node.op_type for node in host_nodes(made.program((second,)).model)]
    assert hosted[:2] == ["Conv", "Reshape"] and "Conv" not in hosted[1:]
    assert all(node.metadata_props["npuc.place"] == hosting.REASON
               for node in host_nodes(program.model))  # fmt: skip


def test_a_device_with_floats_keeps_the_layer(chain: Program) -> None:
    for target in ("atom", "cpu", "rk3588"):
        made = quantizer(chain, target)
        first, *_ = layers(made)
        assert not hosting.without_floats(made.profile)
        assert host_nodes(made.program((first,)).model) == ()
