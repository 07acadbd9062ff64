"""From Relax operators to calls of kernels: npuc's where it has one, TVM's elsewhere."""

from typing import Any

from npuc.targets.tvm import pointwise, schedule
from npuc.targets.tvm.cpu_level import Level


def run(module: Any, level: Level) -> Any:
    """Replace every operator by a call of a TensorIR function, and fuse elementwise chains."""
    import tvm
    from npuc.targets.tvm.constants import FoldConstants
    from npuc.targets.tvm.layout import Layout
    from npuc.targets.tvm.select import Select
    from tvm.relax import transform as t

    module = t.DecomposeOpsForInference()(module)
    module = FoldConstants(module).run()
    module = Layout(module).run()
    module = FoldConstants(module).run()
    module = Select(module, level).run()
    passes = [
        t.DeadCodeElimination(),
        t.LegalizeOps(pointwise.legalizations()),
        t.AnnotateTIROpPattern(),
        t.FoldConstant(),
        t.FuseOps(),
        t.FuseTIR(),
        t.DeadCodeElimination(),
    ]
    return schedule.run(tvm.transform.Sequential(passes)(module), level.lanes)
