"""From Relax operators to calls of kernels: npuc's where it has one, TVM's elsewhere."""

from typing import Any

from npuc.targets.tvm.cpu_level import Level


def run(module: Any, level: Level) -> Any:
    """Replace every operator by a call of a TensorIR function, and fuse elementwise chains."""
    import tvm
    from tvm.relax import transform as t

    passes = [
        t.DecomposeOpsForInference(),
        t.FoldConstant(),
        t.LegalizeOps(),
        t.AnnotateTIROpPattern(),
        t.FoldConstant(),
        t.FuseOps(),
        t.FuseTIR(),
        t.DeadCodeElimination(),
    ]
    return tvm.transform.Sequential(passes)(module)
