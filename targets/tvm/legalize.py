"""From Relax operators to calls of kernels: npuc's where it has one, TVM's elsewhere."""

from typing import Any

from npuc.targets.tvm import pointwise, schedule
from npuc.targets.tvm.cpu_level import Level
from npuc.targets.tvm.graph import dtype_of


def run(module: Any, level: Level) -> Any:
    """Replace every operator by a call of a TensorIR function, and fuse elementwise chains."""
    import tvm
    from tvm.relax import transform as t

    from npuc.targets.tvm.commute import Commute
    from npuc.targets.tvm.constants import FoldConstants
    from npuc.targets.tvm.flatten import Flatten
    from npuc.targets.tvm.halves import Halve
    from npuc.targets.tvm.layout import Layout
    from npuc.targets.tvm.recurrence import Recurrence
    from npuc.targets.tvm.select import Select

    module = t.DecomposeOpsForInference()(module)
    module = Recurrence(FoldConstants(module).run(), level).run()
    module = Layout(Commute(module).run()).run()
    module = Flatten(FoldConstants(module).run()).run()
    module = t.DeadCodeElimination()(Select(Halve(module).run(), level).run())
    module = FoldConstants(module, codes=True).run()
    passes = [
        t.DeadCodeElimination(),
        t.LegalizeOps({**pointwise.legalizations(), "relax.take": take}),
        t.AnnotateTIROpPattern(),
        t.FoldConstant(),
        t.FuseOps(),
        t.FuseTIR(),
        t.DeadCodeElimination(),
    ]
    return schedule.run(tvm.transform.Sequential(passes)(module), level.lanes)


def take(bb: Any, call: Any) -> Any:
    """Gather without reading foreign memory: what is out of bounds is NaN, or for integers the
    nearest element, where ONNX Runtime raises an error."""
    from tvm import topi

    data, indices = call.args
    mode = "nan" if dtype_of(data) == "float32" else "clip"
    axis = call.attrs.axis
    return bb.call_te(topi.take, data, indices, None if axis is None else int(axis), mode=mode)
