"""Telechips' chips: their compilers' command lines are not public."""

from npuc.targets.npu import Npu
from npuc.targets.undocumented import Undocumented

OWNER = "Telechips"


def n_dolphin() -> Npu:
    """Return Telechips N-Dolphin (TCC750x)."""
    return Npu.named("n-dolphin", Undocumented("tc-nn-toolkit", OWNER, _N_DOLPHIN))


def dolphin5() -> Npu:
    """Return Telechips Dolphin5 (TCC807x)."""
    return Npu.named("dolphin5", Undocumented("TVM 0.18 for Ethos-N", OWNER, _DOLPHIN5))


_N_DOLPHIN = """\
What is public. tc-nn-toolkit converts ONNX (from PyTorch), TFLite, MXNet and Darknet models, and
ends with net.so, npu_cmd.bin and quantized_network.bin, which tcnnapp -n FOLDER runs on the
board. Source: Telechips' model zoo for TCC750x."""

_DOLPHIN5 = """\
What is public. Telechips' model zoo for TCC807x compiles quantized TFLite models with TVM 0.18.0
and Arm's ethos-n-driver-stack 25.03 (Python 3.10, LLVM 11), and ends with mod.so, mod.json and
mod.param, which rtvm --model=FOLDER --device=cpu runs on the board. How Telechips configures that
TVM is not public, and npuc writes no TFLite."""
