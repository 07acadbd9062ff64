"""Defects of exporters: the graph is wrong from the start."""

import numpy as np
import onnx_ir as ir
from edits import (
    after,
    attribute,
    before,
    dropped,
    op,
    permuted,
    put,
    stored,
    swapped_outputs,
    times,
    value_of,
)
from seams import Array, Edit, Fault, Seam, Site, exporter, nth, where

from npuc.passes.graphs import Names, initializer


def _fault(name: str, model: str, what: str, like: str, site: Site, edit: Edit) -> Fault:
    return Fault(
        name, model, "cpu", "float", "export", "exported", what, like, exporter(site, edit)
    )


def _grouped_as_dense(model: ir.Model, node: ir.Node) -> None:
    weight = value_of(node.inputs[1])
    put(model, node, 1, np.repeat(weight, node.attributes["group"].as_int(), axis=1))
    attribute(group=1)(model, node)


def _hard_sigmoid_unbounded(model: ir.Model, node: ir.Node) -> None:
    given, result = node.inputs[0], node.outputs[0]
    assert given is not None
    names = Names(model)
    slope = initializer(model.graph, names.new("slope"), np.asarray(1 / 6, np.float32))
    offset = initializer(model.graph, names.new("offset"), np.asarray(0.5, np.float32))
    scaled = op(model, "Mul", [given, slope], result)
    moved = op(model, "Add", [scaled.outputs[0], offset], result)
    model.graph.insert_after(node, [scaled, moved])
    result.replace_all_uses_with(moved.outputs[0])


def _first_of_batch(model: ir.Model, value: ir.Value) -> list[ir.Node]:
    names = Names(model)
    zero, one = (initializer(model.graph, names.new("edge"), np.array([i])) for i in (0, 1))
    axis = initializer(model.graph, names.new("axis"), np.array([0]))
    node = op(model, "Slice", [value, zero, one, axis], value)
    node.outputs[0].shape = None
    return [node]


def _one_above(model: ir.Model, node: ir.Node) -> None:
    given, result = node.inputs[0], node.outputs[0]
    assert given is not None
    first = initializer(model.graph, Names(model).new("k"), np.array(1))
    other = op(model, "Trilu", [given, first], result, upper=node.attributes.get_int("upper", 1))
    model.graph.insert_after(node, other)
    result.replace_all_uses_with(other.outputs[0])


def _mean_over_eight(model: ir.Model, node: ir.Node) -> None:
    node.op_type = "ReduceSum"
    after(times(1 / 8))(model, node)


def _as_uint16(array: Array) -> Array:
    return (array.astype(np.float32).view(np.uint32) >> 16).astype(np.float32)


def _unbiased(array: Array) -> Array:
    return np.asarray(array * np.sqrt((len(array) - 1) / len(array)))


def _reads(name: str, op_type: str, index: int = 0) -> Site:
    """Choose the nth node of a kind with an input whose name holds `name`."""
    return where(
        lambda n: n.op_type == op_type and any(v and name in (v.name or "") for v in n.inputs),
        index,
    )


def _scalar(op_type: str, index: int = 0) -> Site:
    """Choose the nth node of a kind that reads a constant of one element."""

    def one(node: ir.Node) -> bool:
        held = node.inputs[1] if len(node.inputs) > 1 else None
        array = None if held is None or held.const_value is None else held.const_value
        return node.op_type == op_type and array is not None and array.size == 1

    return where(one, index)


FAULTS: tuple[Fault, ...] = (
    _fault(
        "layernorm-unbiased", "digits-vit", "LayerNorm divides by n - 1 instead of n",
        "OODTE (arXiv 2505.01892): divisor changed",
        nth("LayerNormalization", 1), stored(1, _unbiased),
    ),
    _fault(
        "layernorm-epsilon", "digits-vit", "LayerNorm's epsilon is the default, not the model's",
        "huggingface/optimum#449", nth("LayerNormalization", 2), attribute(epsilon=1e-3),
    ),
    _fault(
        "attention-divisor", "digits-vit", "scores are divided by sqrt(width), not sqrt(head)",
        "OODTE: divisor changed", _scalar("Mul", 2), stored(1, lambda a: a * (14 / 56) ** 0.25),
    ),
    _fault(
        "softmax-axis", "text-bert", "Softmax along the queries: both axes have 48 entries",
        "OODTE: axes lost", nth("Softmax", 1), attribute(axis=-2),
    ),
    _fault(
        "mean-axes-lost", "digits-mobilenet", "ReduceMean loses its axes and takes all",
        "microsoft/onnxscript#2810: axes of Squeeze lost",
        where(lambda n: n.op_type == "ReduceMean" and n.attributes.get_int("keepdims", 1) == 1, 1),
        stored(1, lambda a: np.array([1, 2, 3])),
    ),
    _fault(
        "gelu-tanh", "text-bert", "GELU by its tanh approximation in place of erf",
        "huggingface/optimum#1755", nth("Gelu", 1), attribute(approximate="tanh"),
    ),
    _fault(
        "causal-mask-shifted", "text-gpt", "every token sees the next one too",
        "pytorch/pytorch: is_causal off by one", nth("Trilu", 1), _one_above,
    ),
    _fault(
        "mask-too-small", "text-bert", "the mask's -10000 became -1: padding is heard",
        "OODTE: constants changed", _reads("val_22", "Mul"), stored(1, lambda a: a * 1e-4),
    ),
    _fault(
        "mask-of-first-sample", "text-bert", "the first sample's mask is used for the whole batch",
        "NVIDIA/TensorRT#4607: one sample only",
        nth("Unsqueeze"), before(0, _first_of_batch),
    ),
    _fault(
        "position-off-by-one", "text-bert", "positions count from 1",
        "pytorch/executorch#20168: position of the KV cache off by one",
        _reads("embedding_1", "Add"), stored(1, lambda a: np.roll(a, -1, axis=-2)),
    ),
    _fault(
        "embedding-row-shift", "text-gpt", "a padding row was put in: every id reads the row above",
        "microsoft/Olive#2223: wrong weight data saved", nth("Gather"),
        stored(0, lambda a: np.roll(a, 1, axis=0)),
    ),
    _fault(
        "gather-last", "text-bert", "the last token is pooled instead of the first",
        "onnxsim/onnxsim#265: negative index", nth("Gather", -1), stored(1, lambda a: a - 1),
    ),
    _fault(
        "average-window", "chirp-keyword", "the average's windows overlap by one",
        "OODTE: ceil_mode and window of pooling", nth("AveragePool"), attribute(strides=[1, 7],
        kernel_shape=[1, 8], pads=[0, 0, 0, 0], ceil_mode=0),
    ),
    _fault(
        "resize-corners", "digits-unet", "Resize aligns corners instead of pixel centres",
        "NVIDIA/TensorRT#2571", nth("Resize"),
        attribute(coordinate_transformation_mode="align_corners"),
    ),
    _fault(
        "dilation-ignored", "chirp-keyword", "a dilated convolution is written as a dense one",
        "sophgo/tpu-mlir: dilation dropped",
        where(lambda n: n.op_type == "Conv" and n.attributes["dilations"].as_ints()[0] == 2),
        attribute(dilations=[1], pads=[2, 2]),
    ),
    _fault(
        "groups-lost", "chirp-keyword", "a depthwise convolution sums over all channels",
        "apache/tvm#17835", where(lambda n: n.op_type == "Conv"
        and n.attributes["group"].as_int() > 1), _grouped_as_dense,
    ),
    _fault(
        "lstm-gate-order", "digits-lstm", "gates in torch's order where ONNX has another",
        "pytorch/pytorch: LSTM weights in i f g o order", nth("Concat", 1), permuted([0, 2, 1, 3]),
    ),
    _fault(
        "lstm-directions", "digits-lstm", "forward and backward recurrent weights change places",
        "microsoft/onnxruntime: bidirectional RNN", _reads("val_43", "Concat"), permuted([1, 0]),
    ),
    _fault(
        "lstm-initial-state", "digits-lstm", "the first state is not zero",
        "AWS Neuron: state left over", nth("Expand"), stored(0, lambda a: a + 0.1),
    ),
    _fault(
        "example-length-baked", "digits-lstm", "the mean divides by the example's 8 steps",
        "onnx: constant folded from the example; huggingface/optimum#607",
        nth("ReduceMean"), _mean_over_eight,
    ),
    _fault(
        "split-swapped", "digits-detector", "two results of one shape change places",
        "OODTE: outputs swapped", nth("Split", 1), swapped_outputs(0, 1),
    ),
    _fault(
        "clip-lost", "digits-mobilenet", "a hard sigmoid loses its bounds",
        "onnxsim/onnxsim: Clip bounds lost", nth("HardSigmoid", 2), _hard_sigmoid_unbounded,
    ),
    _fault(
        "square-weight-transposed", "text-bert", "a 48x48 weight is transposed once too often",
        "iree-org/iree#23171: layout of equal dimensions",
        where(lambda n: n.op_type == "MatMul" and n.inputs[1] is not None
        and n.inputs[1].const_value is not None and tuple(n.inputs[1].const_value.shape.numpy())
        == (48, 48), 5), stored(1, lambda a: a.T),
    ),
    _fault(
        "bias-dropped", "digits-resnet", "a convolution loses its bias",
        "OODTE: inputs dropped", nth("Conv", 4), stored(2, np.zeros_like),
    ),
    _fault(
        "bf16-as-uint16", "digits-embed", "weights in bfloat16 are read as 16-bit integers",
        "microsoft/Olive#2223; safetensors without bfloat16", nth("Conv", 2),
        stored(1, _as_uint16),
    ),
    _fault(
        "dropout-scale", "text-bert", "dropout's scale of training stays behind",
        "pytorch/pytorch: export in train mode", nth("Softmax"), after(times(1 / 0.9)),
    ),
    _fault(
        "concat-order", "digits-unet", "skip and upsampled features change places",
        "OODTE: inputs swapped", nth("Concat", 1), permuted([1, 0]),
    ),
    _fault(
        "relu-dropped", "digits-resnet", "an activation is taken for a second one, and dropped",
        "OODTE: activation fused twice", nth("Relu", 3), dropped,
    ),
    _fault(
        "padding-edge", "digits-resnet", "padding of 1 and 1 becomes 0 and 2",
        "tensorflow SAME_UPPER and SAME_LOWER; google-ai-edge/onnx2tf",
        where(lambda n: n.op_type == "Conv" and n.attributes["strides"].as_ints()[0] == 2
        and n.attributes["kernel_shape"].as_ints()[0] == 3), attribute(pads=[0, 0, 2, 2]),
    ),
    _fault(
        "stale-weight", "digits-resnet", "one weight is the last checkpoint's",
        "microsoft/Olive#1936: cache not keyed right", nth("Conv", 5),
        stored(1, lambda a: a * (1 + 1e-3 * np.sign(np.sin(np.arange(a.size))).reshape(a.shape))),
    ),
)  # fmt: skip


def _neighbour(model: ir.Model, node: ir.Node) -> None:
    """Give every weight the value it had a step earlier: a thousandth apart, as training moves."""
    random = np.random.default_rng(7)
    for value in model.graph.initializers.values():
        tensor = value.const_value
        if tensor is not None and tensor.dtype.is_floating_point() and tensor.size > 1:
            array = tensor.numpy()
            step = 1e-3 * array.std() * np.sign(random.standard_normal(array.shape))
            value.const_value = ir.tensor((array + step).astype(array.dtype), name=value.name)


def _checkpoint() -> Seam:
    return exporter(nth("Conv"), _neighbour)


FAULTS += (
    Fault(
        "neighbour-checkpoint", "digits-mobilenet", "cpu", "float", "export", "exported",
        "all weights are those of the checkpoint before", "microsoft/Olive#1936", _checkpoint(),
    ),
)  # fmt: skip
