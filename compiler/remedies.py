"""Say how a user changes a model so that a device takes it."""

from collections.abc import Mapping

from npuc.legality import Finding

OPERATORS: Mapping[str, str] = {
    "Erf": "use GELU's tanh form (approximate='tanh')",
    "GridSample": "warp before the model, or resample with Resize and Conv",
    "GRU": "let npuc unroll it (decompose-rnn), or use convolutions or attention",
    "LSTM": "let npuc unroll it (decompose-rnn), or use convolutions or attention",
    "NonMaxSuppression": "return boxes and scores, and suppress after the model",
    "NonZero": "multiply by the mask instead of indexing with it",
    "ScatterElements": "write by a mask: torch.where(mask, new, old)",
    "ScatterND": "write by a mask: torch.where(mask, new, old)",
    "TopK": "return the scores, and choose after the model",
    "ArgMax": "return the scores, and choose after the model",
    "CumSum": "multiply by a triangle of ones",
    "Loop": "unroll the loop in forward()",
    "If": "compute both sides and choose with torch.where",
}
"""What to write in place of an operator that a device does not run."""

MEASURES: Mapping[str, str] = {
    "alpha": "scale by a Mul of its own",
    "axis": "transpose so that it works along an axis the device takes",
    "axis_length": "split the axis, or use fewer entries",
    "batch": "compile for the device's batch (--dim) and call it once per part",
    "beta": "scale the bias itself",
    "ceil_mode": "pad the input, and pool with ceil_mode=False",
    "channels": "split the channels over several operators and concatenate",
    "constant_weights": "make the weights parameters, not results of other operators",
    "coordinates": "resize with coordinates that the device has (align_corners)",
    "depthwise": "use the kind of convolution that the device has",
    "dilation": "use a smaller dilation and one more layer",
    "dimension": "give it its size: --dim NAME=SIZE",
    "dtype": "cast to float32 before it",
    "group": "split the channels over several convolutions and concatenate",
    "height": "cut the image into tiles",
    "index_rank": "flatten the indices, gather, and reshape",
    "inputs": "chain operators of two inputs",
    "integer_scale": "resize by a whole factor, and crop",
    "k": "split the inner dimension into parts, multiply each, and add",
    "kernel": "replace it by smaller ones in a row: two of 3 reach as far as one of 5",
    "kernel_area": "replace it by smaller ones in a row, or by one per axis",
    "last_dim": "choose a width that is such a multiple",
    "memory": "store weights in fewer bits, or cut the model in two",
    "mode": "use a mode that the device has",
    "opset": "export it again: --opset VERSION, or torch.onnx.export(opset_version=VERSION)",
    "output_channels": "split the outputs over several operators and concatenate",
    "output_padding": "pad the result by a Pad of its own",
    "p": "use a norm that the device has",
    "pad": "pad by a Pad of its own, or use a smaller kernel",
    "pass": "replace the operators it names, or export with a lower opset",
    "rank": "reshape: merge axes that stand beside each other before it, and part them after",
    "reduced_axes": "reduce one axis after the other, or pool globally",
    "shape": "keep all entries and mask them, or do it after the model",
    "stride": "use a smaller stride and one more layer",
    "trans_a": "transpose before it",
    "weight_abs_sum": "split the input channels over two convolutions and add",
    "width": "cut the image into tiles",
}
"""What to do where a measure breaks a bound; one for each that `npuc.features` has, and of the
whole model."""

ANYTHING = "replace it in the model"


def edit(finding: Finding) -> str:
    """Return what to change in the model, or "" where nothing needs to change."""
    if finding.measure == "operators":
        return ""
    if finding.measure == "operator":
        return OPERATORS.get(finding.op, ANYTHING)
    return MEASURES.get(finding.measure, ANYTHING)
