"""The runtimes that a benchmark lets run the same program: the artifact's own, and its peers."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from npuc.errors import NpucError
from npuc.program import Tensors

Call = Callable[[], Tensors]

OWN = "npuc"


@dataclass(frozen=True, slots=True)
class Job:
    """What to run: an artifact, its program as an ONNX file, one call's inputs, and how."""

    artifact: Path
    model: Path
    inputs: Tensors
    threads: int
    source: str


class PeerError(NpucError):
    """A peer cannot run this program here; the reason goes into its row of the table."""


def own(job: Job) -> tuple[str, Any]:
    """Return what the artifact is, and a runner of it as `npuc run` uses it."""
    from npuc import artifact, plugins

    opened = artifact.read(job.artifact)
    runner = plugins.find(opened.manifest.target).runner(opened, artifact.deferred(opened))
    return f"{opened.manifest.target}, {opened.manifest.precision}", runner


def onnxruntime(job: Job) -> tuple[str, Call]:
    """Run the artifact's program in ONNX Runtime with all of its optimizations."""
    return _session(job, job.model, "the artifact's program")


def onnx_file(job: Job, path: Path) -> tuple[str, Call]:
    """Run another ONNX file in ONNX Runtime; its inputs go by position where names differ."""
    return _session(job, path, path.name)


def _session(job: Job, path: Path, what: str) -> tuple[str, Call]:
    ort = _imported("onnxruntime")
    options = ort.SessionOptions()
    options.intra_op_num_threads = job.threads
    options.log_severity_level = 4
    try:
        session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        names = [item.name for item in session.get_outputs()]
        ports = [item.name for item in session.get_inputs()]
        same = set(ports) == set(job.inputs)
        feed = dict(job.inputs if same else zip(ports, job.inputs.values(), strict=True))
        session.run(names, feed)
    except Exception as error:  # onnxruntime raises pybind types without a common base
        raise PeerError(_line(error)) from error
    what = f"onnxruntime {ort.__version__}, {what}, all optimizations"
    return what, lambda: dict(zip(names, session.run(names, feed), strict=True))


def openvino(job: Job) -> tuple[str, Call]:
    """Run the artifact's program in OpenVINO on the CPU, tuned for latency."""
    ov = _imported("openvino")
    settings = {"INFERENCE_NUM_THREADS": job.threads, "PERFORMANCE_HINT": "LATENCY"}
    try:
        # By default it computes floats as bfloat16 where the CPU can, which no other side does.
        settings["INFERENCE_PRECISION_HINT"] = "f32"
        compiled = ov.Core().compile_model(str(job.model), "CPU", settings)
    except Exception as error:  # openvino's errors are RuntimeError and others
        raise PeerError(_line(error)) from error
    request = compiled.create_infer_request()
    feed = dict(job.inputs)

    def call() -> Tensors:
        results = request.infer(feed)
        return {port.get_any_name(): np.asarray(results[port]) for port in compiled.outputs}

    return f"openvino {ov.__version__.split('-')[0]}, the artifact's program", call


def torch(job: Job) -> tuple[str, Call]:
    """Run the original module through torch.compile, in float32 whatever the artifact has."""
    if not job.source.startswith("zoo:"):
        raise PeerError(
            f"an artifact does not hold the module that it was made of ({job.source or 'unknown'}):"
            " torch can be timed for reference models (zoo:NAME)"
        )
    library = _imported("torch")
    from npuc import models

    library.set_num_threads(job.threads)
    module = models.get(job.source).module()
    given = [library.from_numpy(np.ascontiguousarray(array)) for array in job.inputs.values()]
    compiled = library.compile(module)

    def call() -> Tensors:
        with library.inference_mode():
            answer = compiled(*given)
        answers = answer if isinstance(answer, tuple) else (answer,)
        return {str(at): value.numpy() for at, value in enumerate(answers)}

    try:
        call()
    except Exception as error:  # whatever torch's compiler raises
        raise PeerError(_line(error)) from error
    return f"torch.compile {library.__version__}, the original module, float32", call


PEERS: Mapping[str, Callable[[Job], tuple[str, Call]]] = {
    "onnxruntime": onnxruntime,
    "torch": torch,
    "openvino": openvino,
}


def peer(job: Job, name: str) -> tuple[str, Call]:
    """Start a peer: one of `PEERS`, or an ONNX file; raises `PeerError`."""
    return onnx_file(job, Path(name)) if is_file(name) else PEERS[name](job)


def is_file(name: str) -> bool:
    """Whether a peer is named by an ONNX file."""
    return name.endswith(".onnx")


def distance(own: Tensors, other: Tensors) -> float | None:
    """Return the largest distance of any output, as a share of the first side's largest value.

    Outputs go by position; None where shapes differ, and nothing can be said.
    """
    if len(own) != len(other):
        return None
    worst = 0.0
    for a, b in zip(own.values(), other.values(), strict=True):
        if a.shape != b.shape:
            return None
        if a.size:
            wide = np.asarray(a, np.float64)
            peak = float(np.abs(wide).max()) or 1.0
            worst = max(worst, float(np.abs(wide - b).max()) / peak)
    return worst


def _imported(name: str) -> Any:
    import importlib

    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise PeerError(f"{name} is not installed (pip install {name})") from error


def _line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0][:300]
