"""Turn an ONNX model that the allow-list accepts into a Relax module."""

import contextlib
import io
import warnings
from types import SimpleNamespace
from typing import Any

import onnx_ir as ir

from npuc.errors import PassError
from npuc.targets.tvm import markers, names
from npuc.targets.tvm.converters import CONVERTERS

DOMAIN = "ai.npuc"


def to_relax(model: ir.Model, *, named: bool = True) -> Any:
    """Import a static model as a `tvm.IRModule` whose main takes and returns tensors by position.

    TVM's importer looks operators up by name and ignores their domain, so npuc's own functions
    are renamed first and converted here: to `relax.call_dps_packed` markers that `legalize`
    replaces by kernels. Where `named`, variables are called after the program's tensors
    (`npuc.targets.tvm.names`), which is no name in CUDA. Raises `PassError` naming the operator
    the importer fails at.
    """
    proto = ir.to_proto(model)
    del proto.functions[:]
    for node in proto.graph.node:
        if node.domain == DOMAIN:
            node.op_type = f"{DOMAIN}.{node.op_type}"
    importer = _importer(named)
    shapes = {v.name: list(v.shape.numpy()) for v in model.graph.inputs if v.shape is not None}
    printed = io.StringIO()
    try:
        with contextlib.redirect_stdout(printed), warnings.catch_warnings():
            # It warns for every input whose name is no identifier; ports are kept by position.
            warnings.filterwarnings("ignore", message="Renaming name", category=UserWarning)
            opset = model.opset_imports.get("", 1)
            return importer(shapes, "float32").from_onnx(proto.graph, opset)
    except Exception as error:  # the importer raises whatever its converters raise
        place = printed.getvalue().strip().splitlines()
        where = place[-1][:300] if place else "TVM's ONNX importer"
        raise PassError(
            f"TVM cannot import this program: {where}: {type(error).__name__}: {error}",
            hint="compile with --fallback ort, and report this as a bug: the allow-list let it in",
        ) from error


def _importer(named: bool) -> Any:
    from tvm import relax
    from tvm.ir import Call
    from tvm.relax.frontend.onnx.onnx_frontend import ONNXGraphImporter

    class Importer(ONNXGraphImporter):  # type: ignore[misc]
        """TVM's importer with npuc's operators; what it may see, the allow-list has decided."""

        def _check_for_unsupported_ops(self, graph: Any) -> None:
            pass

        def _construct_nodes(self, graph: Any) -> None:
            for node in graph.node:
                one: Any = SimpleNamespace(node=[node])
                super()._construct_nodes(one)
                for name in node.output:
                    result = self._nodes.get(name)
                    if isinstance(result, Call) and isinstance(result.ty, relax.TensorType):
                        called = names.variable(name) if named else ""
                        self._nodes[name] = self.bb.emit(result, called)

        def _convert_operator(self, op_name: str, inputs: Any, attrs: Any, opset: int) -> Any:
            if op_name.startswith(f"{DOMAIN}."):
                (data,) = inputs
                return self.bb.normalize(markers.mark(op_name, data))
            converter = CONVERTERS.get(op_name)
            result = converter(self.bb, inputs, attrs) if converter is not None else None
            if result is not None:
                return self.bb.normalize(result)
            return super()._convert_operator(op_name, inputs, attrs, opset)

    return Importer
