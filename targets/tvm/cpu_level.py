"""What ``--cpu`` names: an LLVM target, its vector registers, and what a host must offer."""

import platform
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from npuc.errors import UsageError

_V3 = ("avx2", "bmi1", "bmi2", "f16c", "fma", "movbe")
_V4 = (*_V3, "avx512bw", "avx512cd", "avx512dq", "avx512f", "avx512vl")
_PROBED = (*_V4, "avx512_vnni", "avx512_bf16", "avx512vbmi", "avx_vnni")
"""Linux names of the x86 features that LLVM may use and that machines differ in."""


@dataclass(frozen=True, slots=True)
class Level:
    """A CPU to compile for.

    `requires` are Linux cpuinfo flags a host must have to run the code. `lanes` is how many
    float32 one vector register holds; `vnni` says whether there is a 4-way u8·s8 dot product.
    """

    triple: str
    mcpu: str
    requires: tuple[str, ...]
    lanes: int
    vnni: bool = False

    @property
    def arch(self) -> str:
        """Return the machine name as `platform.machine` spells it on Linux."""
        return self.triple.split("-", maxsplit=1)[0]

    def target(self) -> Any:
        """Return the TVM target."""
        import tvm

        # LLVM 22's loop vectoriser miscompiles A[(i & 3) * 5] on AVX-512 (tests: Tile): vectors
        # are npuc's own.
        options = ["-vectorize-loops:bool=0"]
        config = {"kind": "llvm", "mtriple": self.triple, "mcpu": self.mcpu, "cl-opt": options}
        return tvm.target.Target(config)


def resolve(cpu: str) -> Level:
    """Read ``--cpu``; raises `UsageError` for a name that neither npuc nor LLVM knows."""
    name, _, model = cpu.partition(":")
    if name == "aarch64":
        return _aarch64(model or "generic")
    if cpu == "native":
        return _native()
    if cpu in ("x86-64-v3", "x86-64-v4"):
        flags = _V4 if cpu.endswith("4") else _V3
        return Level("x86_64-linux-gnu", cpu, flags, 16 if cpu.endswith("4") else 8)
    raise UsageError(
        f"unknown CPU {cpu!r}",
        hint="use --cpu native, x86-64-v3, x86-64-v4, aarch64 or aarch64:<LLVM CPU name>",
    )


def host_flags() -> frozenset[str]:
    """Return this machine's CPU flags as Linux lists them; empty where it does not."""
    info = Path("/proc/cpuinfo")
    if not info.exists():
        return frozenset()
    for line in info.read_text().splitlines():
        if line.startswith(("flags", "Features")):
            return frozenset(line.partition(":")[2].split())
    return frozenset()


def _native() -> Level:
    from tvm.target import codegen

    mcpu = str(codegen.llvm_get_system_cpu())
    if platform.machine() == "aarch64":
        return Level("aarch64-linux-gnu", mcpu, ("asimd",), 4)
    if platform.machine() != "x86_64":
        raise UsageError(
            f"--cpu native: npuc has no kernels for {platform.machine()}",
            hint="use --cpu x86-64-v3, x86-64-v4 or aarch64",
        )
    flags = tuple(sorted(host_flags() & set(_PROBED)))
    missing = sorted(set(_V3) - set(flags))
    if missing:
        raise UsageError(
            f"--cpu native: this CPU ({mcpu}) lacks {', '.join(missing)}",
            hint="npuc's kernels need x86-64-v3 (AVX2 and FMA, 2013 and later)",
        )
    wide = set(_V4) <= set(flags)
    vnni = wide and "avx512_vnni" in flags
    return Level("x86_64-linux-gnu", mcpu, flags, 16 if wide else 8, vnni)


def _aarch64(model: str) -> Level:
    import tvm
    from tvm.target import codegen

    triple = "aarch64-linux-gnu"
    bare = tvm.target.Target({"kind": "llvm", "mtriple": triple})
    known = [str(name) for name in codegen.llvm_get_cpu_archlist(bare)]
    if model not in known:
        raise UsageError(
            f"unknown aarch64 CPU {model!r}", hint=f"LLVM knows: {', '.join(sorted(known))}"
        )
    return Level(triple, model, ("asimd",), 4)
