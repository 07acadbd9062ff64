"""What of this machine decides what a compile gives: versions, the CPU, toolchains, variables.

Nothing heavy is imported: a verdict that is known must not cost the libraries it needed once.
"""

import hashlib
import importlib.util
import json
import os
import platform
import re
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from npuc import plugins
from npuc.gate.digests import Digests
from npuc.targets import environments

DISTRIBUTIONS = (
    "torch", "onnx", "onnx-ir", "onnxscript", "onnxsim", "onnxruntime", "onnxruntime-gpu",
    "apache-tvm", "apache-tvm-ffi", "numpy", "ml-dtypes", "safetensors", "scikit-learn", "ziglang",
)  # fmt: skip
"""What computes; scikit-learn has the samples of npuc's own models."""

VARIABLES = re.compile(
    r"NPUC_(?!CACHE|GOLDEN).*|LD_LIBRARY_PATH|CUDA_(HOME|PATH|VISIBLE_DEVICES)|CC|CXX|"
    r"NVIDIA_TF32_OVERRIDE|TORCH_ALLOW_TF32_CUBLAS_OVERRIDE|CUBLAS_WORKSPACE_CONFIG|"
    r"(ONEDNN|DNNL)_.*"
)
"""Variables that choose tools, devices or arithmetic."""

_DEVICES = re.compile(
    r"(nvidia|rbln|warboy|npu|rngd|davinci|dxrt|aries|regulus|accel|apex|rknpu).*"
)

_NPUC: list[str] = []


@dataclass(frozen=True, slots=True)
class Machine:
    """The same for every pair of one run. `packages` are all that Python could import here."""

    npuc: str
    python: str
    platform: str
    versions: Mapping[str, str]
    packages: str
    cpu: str
    variables: Mapping[str, str]
    tools: str


def here(digests: Digests) -> Machine:
    """Look at this machine."""
    packages = _packages()
    variables = dict(_variables(digests))
    return Machine(
        npuc=npuc(digests),
        python=f"{sys.implementation.name} {platform.python_version()}",
        platform=f"{platform.system()} {platform.machine()} {'-'.join(platform.libc_ver())}",
        versions={name: _version(name) for name in DISTRIBUTIONS},
        packages=packages,
        cpu=cpu(),
        variables=variables,
        tools=_hash([packages, variables, *_tools()]),
    )


def npuc(digests: Digests) -> str:
    """Return the digest of npuc's own files, the weights of its models among them.

    As they are when a process first asks: what it has loaded by then does not change any more.
    """
    if not _NPUC:
        _NPUC.append(now(digests))
    return _NPUC[0]


def now(digests: Digests) -> str:
    """Return the digest of npuc's own files as they are now."""
    found = []
    for name in ("npuc", "npuc.passes", "npuc.targets", "npuc.models"):
        spec = importlib.util.find_spec(name)
        assert spec is not None and spec.submodule_search_locations is not None
        found += [digests.of(Path(place)) for place in spec.submodule_search_locations]
    return _hash(found)


def finding(target: str, machine: Machine, digests: Digests, memo: Path | None) -> str:
    """Return what a target's adapter says of its toolchain and of what its numbers rest on.

    The adapter is loaded only where something has changed that it may look at: variables, folders
    of commands, packages, devices. Raises `NpucError` where there is no such adapter.
    """
    noted = None if memo is None else memo / _hash([target, machine.tools, machine.npuc])
    if noted is not None:
        try:
            known: str = json.loads(noted.read_text())
            return known
        except (OSError, ValueError):  # not asked before, or damaged: ask
            pass
    adapter = plugins.find(target)
    tool = adapter.toolchain()
    said = f"{tool.name} {tool.version}; {tool.missing}; {adapter.evidence()}"
    if noted is not None:
        from npuc.outputs import text

        noted.parent.mkdir(parents=True, exist_ok=True)
        text(noted, json.dumps(said))
    return said


def adapter(target: str, digests: Digests) -> str:
    """Return the digest of an adapter's package where it is not npuc's own, which `npuc` is of."""
    points = [p for p in metadata.entry_points(group=plugins.GROUP) if p.name == target]
    found = []
    for point in points:
        if point.module.partition(".")[0] != "npuc":
            found += [point.value, module(point.module, digests)]
    return _hash(found)


def module(name: str, digests: Digests) -> str:
    """Return the digest of the Python files of an importable package; "" where there is none."""
    try:
        spec = importlib.util.find_spec(name.partition(".")[0])
    except (ImportError, ValueError):
        spec = None
    if spec is None:
        return ""
    places = list(spec.submodule_search_locations or ())
    if not places and spec.origin is not None and Path(spec.origin).is_file():
        return digests.of(Path(spec.origin))
    return _hash([digests.of(Path(place), ".py") for place in places])


def cpu() -> str:
    """Name this machine's CPU and what it can do: code is made for it, and kernels chosen by it."""
    try:
        first = Path("/proc/cpuinfo").read_text().split("\n\n")[0]
    except OSError:
        return f"{platform.machine()} {platform.processor()}"
    wanted = r"(vendor_id|model name|cpu family|model|stepping|flags|CPU \w+|Features)\s*:\s*(.*)"
    facts = [f"{k}: {v}" for k, v in re.findall(rf"(?m)^{wanted}$", first)]
    return _hash(facts) + " " + next((f for f in facts if f.startswith("model name")), "")


def _version(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return ""


def _packages() -> str:
    """Hash the names and versions of all distributions, from the names of their folders alone.

    Of site folders: what else Python imports from depends on how it was started.
    """
    found = set()
    for place in {str(Path(p).resolve()) for p in sys.path if p.endswith("-packages")}:
        names = os.listdir(place) if os.path.isdir(place) else []
        found |= {n for n in names if n.endswith((".dist-info", ".egg-info", ".pth", ".egg-link"))}
    return _hash(sorted(found))


def _variables(digests: Digests) -> Iterator[tuple[str, str]]:
    """Yield the variables that matter; of one that names a program, its content as well."""
    for name, value in sorted(os.environ.items()):
        if VARIABLES.fullmatch(name):
            path = Path(value)
            content = digests.of(path) if name.startswith("NPUC_") and path.is_file() else ""
            yield name, f"{value} {content}".rstrip()


def _tools() -> Iterator[object]:
    """Yield what changes where commands, environments, libraries or devices do."""
    places = os.environ.get("PATH", "").split(os.pathsep)
    yield [(place, _time(Path(place))) for place in places]
    folder = environments.folder()
    markers = sorted(folder.glob(f"*/{environments.MARKER}")) if folder.is_dir() else []
    yield [(str(marker), _time(marker)) for marker in markers]
    yield _time(Path("/etc/ld.so.cache"))
    driver = Path("/sys/module/nvidia/version")
    yield driver.read_text() if driver.is_file() else ""
    try:
        yield sorted(name for name in os.listdir("/dev") if _DEVICES.fullmatch(name))
    except OSError:
        yield "no /dev"


def _time(path: Path) -> int:
    try:
        return path.stat().st_mtime_ns
    except OSError:
        return 0


def _hash(value: object) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()
