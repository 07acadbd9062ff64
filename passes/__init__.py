"""The standard passes, in order, and the catalogue of all of them.

Importing this package loads no ONNX library; calling its functions does.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from npuc.passes.base import Pass
    from npuc.profile import FloatFormat, IntScheme, Profile


def standard(dims: Mapping[str, int]) -> tuple[Pass, ...]:
    """Return the passes every program goes through first; `dims` binds dynamic dimensions."""
    from npuc.passes.drop_unused import DropUnused
    from npuc.passes.fix_shapes import FixShapes
    from npuc.passes.fold_batchnorm import FoldBatchNorm
    from npuc.passes.fold_constants import FoldConstants
    from npuc.passes.simplify import Simplify

    return (
        FoldConstants(),  # first: the others look for weights among the initializers
        DropUnused(),  # identities would stand between a convolution and its normalization
        FoldBatchNorm(),  # before simplify, so that what did not fold has a reason
        Simplify(),  # while dimensions are dynamic: the parity check can try several sizes
        FixShapes(dims),  # the last that may see a dynamic dimension
        FoldConstants(),  # numbers for shapes make constants of what computed them
        DropUnused(),  # and leave behind nodes that nobody reads
    )


def legalise(profile: Profile) -> tuple[Pass, ...]:
    """Return the passes that rewrite what a device does not have, chosen by its facts.

    A fact that is not public asks for nothing.
    """
    from npuc.passes.align_channels import AlignChannels
    from npuc.passes.check_batch import CheckBatch
    from npuc.passes.decompose import Decompose
    from npuc.passes.decompose_rnn import DecomposeRnn
    from npuc.passes.narrow_int64 import NarrowInt64
    from npuc.passes.reduce_rank import ReduceRank

    supported = profile.supported
    passes: list[Pass] = []
    if "shapes.batch" in profile.facts:
        passes.append(CheckBatch())
    if supported is not None and not supported >= {"GRU", "LSTM", "RNN"}:
        passes.append(DecomposeRnn())  # first: what it emits has to be legal too
    if supported is not None or profile.limits or profile.opset_max is not None:
        passes.append(Decompose())
    if "ops.rank_max" in profile.facts:
        passes.append(ReduceRank())  # after: what was written out may have more axes
    if "ops.dtypes" in profile.facts:
        passes.append(NarrowInt64())
    if "align.channels" in profile.facts:
        passes.append(AlignChannels())
    return tuple(passes)


def numerics(profile: Profile, precision: str, form: FloatFormat | None) -> tuple[Pass, ...]:
    """Return the passes that make a program compute as the device does, after quantization.

    `form` is what the device stores floats in; None where that is float32, or nothing.
    """
    from npuc.passes.integer_arithmetic import IntegerArithmetic
    from npuc.passes.round_floats import RoundFloats
    from npuc.passes.tflite_arithmetic import TfliteArithmetic

    scheme = profile.scheme(precision)
    passes: list[Pass] = []
    if scheme is not None and not _as_written(scheme):
        passes.append(IntegerArithmetic())
    if scheme is not None and scheme.elementwise == "tflite":
        passes.append(TfliteArithmetic())
    if form is not None:
        passes.append(RoundFloats(form))
    return tuple(passes)


def _as_written(scheme: IntScheme) -> bool:
    """Whether a device's products are what DequantizeLinear → product → QuantizeLinear says."""
    plain = (scheme.accumulator_bits, scheme.overflow) == (32, "wrap")
    return plain and scheme.requantize == "float32-even"


def catalogue() -> Mapping[str, type[Pass]]:
    """Return every pass npuc has by name, in alphabetical order."""
    from npuc.passes.align_channels import AlignChannels
    from npuc.passes.center import Center
    from npuc.passes.check_batch import CheckBatch
    from npuc.passes.correct_bias import CorrectBias
    from npuc.passes.decompose import Decompose
    from npuc.passes.decompose_rnn import DecomposeRnn
    from npuc.passes.drop_unused import DropUnused
    from npuc.passes.equalize import Equalize
    from npuc.passes.fix_shapes import FixShapes
    from npuc.passes.fold_batchnorm import FoldBatchNorm
    from npuc.passes.fold_constants import FoldConstants
    from npuc.passes.integer_arithmetic import IntegerArithmetic
    from npuc.passes.learn_rounding import LearnRounding
    from npuc.passes.lower_opset import LowerOpset
    from npuc.passes.narrow_int64 import NarrowInt64
    from npuc.passes.quantize import Quantize
    from npuc.passes.reduce_rank import ReduceRank
    from npuc.passes.round_factors import RoundFactors
    from npuc.passes.round_floats import RoundFloats
    from npuc.passes.simplify import Simplify
    from npuc.passes.tflite_arithmetic import TfliteArithmetic
    from npuc.passes.weight_only import WeightOnly

    every: tuple[type[Pass], ...] = (
        AlignChannels,
        Center,
        CheckBatch,
        CorrectBias,
        Decompose,
        DecomposeRnn,
        DropUnused,
        Equalize,
        FixShapes,
        FoldBatchNorm,
        FoldConstants,
        IntegerArithmetic,
        LearnRounding,
        LowerOpset,
        NarrowInt64,
        Quantize,
        ReduceRank,
        RoundFactors,
        RoundFloats,
        Simplify,
        TfliteArithmetic,
        WeightOnly,
    )
    return {item.name: item for item in every}
