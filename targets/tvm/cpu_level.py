"""What ``--cpu`` names: an LLVM target, its vector registers, and what a host must offer."""

import platform
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from npuc.errors import UsageError

_V3 = {"avx2": "avx2", "bmi1": "bmi", "bmi2": "bmi2", "f16c": "f16c", "fma": "fma",
       "movbe": "movbe"}  # fmt: skip
_V4 = _V3 | {f"avx512{name}": f"avx512{name}" for name in ("bw", "cd", "dq", "f", "vl")}
_X86 = _V4 | {
    "avx512_bf16": "avx512bf16",
    "avx512_bitalg": "avx512bitalg",
    "avx512_vbmi2": "avx512vbmi2",
    "avx512_vnni": "avx512vnni",
    "avx512_vpopcntdq": "avx512vpopcntdq",
    "avx512vbmi": "avx512vbmi",
    "avx_vnni": "avxvnni",
}
_ARM = {
    "asimd": "neon",
    "asimddp": "dotprod",
    "asimdhp": "fullfp16",
    "atomics": "lse",
    "bf16": "bf16",
    "i8mm": "i8mm",
    "sve": "sve",
}
"""Linux's name of a CPU feature that LLVM may use and that machines differ in → LLVM's name."""

_DOTS = ("avx512vnni", "avxvnni", "i8mm", "dotprod")
"""LLVM's names of what brings a dot product of four 8-bit values, the best first."""

_EXTRA = {"x86_64": ("avx512vnni", "avx512bf16", "avxvnni"), "aarch64": ("dotprod", "i8mm")}
"""What may be named after a plus sign."""


@dataclass(frozen=True, slots=True)
class Level:
    """A CPU to compile for.

    `requires` are Linux cpuinfo flags a host must have to run the code. `lanes` is how many
    float32 one vector register holds. `features` are LLVM's, switched on (+) or off (-) on top of
    those of `mcpu`. `dot` is the feature that brings a dot product of four 8-bit values, or "";
    `halves` says whether there is one of two bfloat16.
    """

    triple: str
    mcpu: str
    requires: tuple[str, ...]
    lanes: int
    features: tuple[str, ...] = ()
    dot: str = ""
    halves: bool = False

    @property
    def arch(self) -> str:
        """Return the machine name as `platform.machine` spells it on Linux."""
        return self.triple.split("-", maxsplit=1)[0]

    @property
    def name(self) -> str:
        """Return the CPU and the features switched on or off, as one word."""
        return "".join((self.mcpu, *self.features))

    def target(self) -> Any:
        """Return the TVM target."""
        import tvm

        # LLVM 22's loop vectoriser miscompiles A[(i & 3) * 5] on AVX-512 (tests: Tile): vectors
        # are npuc's own.
        options = ["-vectorize-loops:bool=0"]
        config = {"kind": "llvm", "mtriple": self.triple, "mcpu": self.mcpu, "cl-opt": options}
        return tvm.target.Target(config | ({"mattr": list(self.features)} if self.features else {}))


def resolve(cpu: str) -> Level:
    """Read ``--cpu``; raises `UsageError` for a name that neither npuc nor LLVM knows."""
    name, *extra = cpu.split("+")
    base, _, model = name.partition(":")
    if base == "aarch64":
        return _aarch64(model or "generic", extra)
    if cpu == "native":
        return _native()
    if name in ("x86-64-v3", "x86-64-v4"):
        _check(cpu, extra, "x86_64")
        wide = [e for e in extra if e.startswith("avx512")]
        if wide and name != "x86-64-v4":
            raise UsageError(
                f"--cpu {cpu}: {wide[0]} needs x86-64-v4",
                hint="use --cpu x86-64-v4+avx512vnni or x86-64-v3+avxvnni",
            )
        return _x86(name, _V4 if name.endswith("4") else _V3, tuple(f"+{e}" for e in extra))
    raise UsageError(
        f"unknown CPU {cpu!r}",
        hint="use --cpu native, x86-64-v3, x86-64-v3+avxvnni, x86-64-v4, "
        "x86-64-v4+avx512vnni, x86-64-v4+avx512vnni+avx512bf16, "
        "aarch64, aarch64+dotprod or aarch64:<LLVM CPU name>",
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


def _check(cpu: str, extra: list[str], arch: str) -> None:
    unknown = [e for e in extra if e not in _EXTRA[arch]]
    if unknown:
        raise UsageError(
            f"--cpu {cpu}: npuc knows no feature {', '.join(unknown)}",
            hint=f"on {arch} it may be {' or '.join(_EXTRA[arch])}",
        )


def _x86(mcpu: str, known: dict[str, str], features: tuple[str, ...]) -> Level:
    """Return an x86 CPU that has the features of `known`, and those switched on besides."""
    linux = {llvm: flag for flag, llvm in _X86.items()}
    flags = {*known, *(linux[f[1:]] for f in features if f[0] == "+")}
    has = {_X86[flag] for flag in flags}
    lanes = 16 if set(_V4) <= flags else 8
    # 256-bit VNNI beside AVX-512 would waste half of the registers' width.
    dots = [d for d in _DOTS if d in has and (d == "avx512vnni") == (lanes == 16)]
    order = tuple(sorted(flags))
    halves = lanes == 16 and "avx512bf16" in has
    return Level("x86_64-linux-gnu", mcpu, order, lanes, features, dots[0] if dots else "", halves)


def _native() -> Level:
    from tvm.target import codegen

    mcpu = str(codegen.llvm_get_system_cpu())
    machine, host = platform.machine(), host_flags()
    if machine == "aarch64":
        off = _missing("aarch64-linux-gnu", mcpu, _ARM, host)
        return _arm(mcpu, {llvm for flag, llvm in _ARM.items() if flag in host}, off)
    if machine != "x86_64":
        raise UsageError(
            f"--cpu native: npuc has no kernels for {machine}",
            hint="use --cpu x86-64-v3, x86-64-v4 or aarch64",
        )
    missing = sorted(set(_V3) - host)
    if missing:
        raise UsageError(
            f"--cpu native: this CPU ({mcpu}) lacks {', '.join(missing)}",
            hint="npuc's kernels need x86-64-v3 (AVX2 and FMA, 2013 and later)",
        )
    known = {flag: llvm for flag, llvm in _X86.items() if flag in host}
    return _x86(mcpu, known, _missing("x86_64-linux-gnu", mcpu, _X86, host))


def _missing(
    triple: str, mcpu: str, known: dict[str, str], host: frozenset[str]
) -> tuple[str, ...]:
    """Switch off what LLVM takes this CPU to have and the machine does not: a hypervisor hides it.

    Where /proc/cpuinfo says nothing, LLVM is believed.
    """
    has = _features(triple, mcpu)
    hidden = [llvm for flag, llvm in known.items() if llvm in has and flag not in host]
    return tuple(f"-{llvm}" for llvm in hidden) if host else ()


def _features(triple: str, mcpu: str, features: tuple[str, ...] = ()) -> frozenset[str]:
    """Return LLVM's names of a CPU's features."""
    from tvm.target import codegen

    target = Level(triple, mcpu, (), 4, features).target()
    return frozenset(str(name) for name in codegen.llvm_get_cpu_features(target))


def _aarch64(model: str, extra: list[str]) -> Level:
    import tvm
    from tvm.target import codegen

    triple = "aarch64-linux-gnu"
    _check("+".join((f"aarch64:{model}", *extra)), extra, "aarch64")
    bare = tvm.target.Target({"kind": "llvm", "mtriple": triple})
    known = [str(name) for name in codegen.llvm_get_cpu_archlist(bare)]
    if model not in known:
        raise UsageError(
            f"unknown aarch64 CPU {model!r}", hint=f"LLVM knows: {', '.join(sorted(known))}"
        )
    # Every CPU with mixed-sign dot products has the plain ones, which LLVM does not conclude.
    features = tuple(f"+{e}" for e in (["dotprod", *extra] if "i8mm" in extra else extra))
    return _arm(model, _features(triple, model, features), features)


def _arm(mcpu: str, has: set[str] | frozenset[str], features: tuple[str, ...]) -> Level:
    flags = tuple(sorted(flag for flag, llvm in _ARM.items() if llvm in has))
    dots = [d for d in _DOTS if d in has]
    return Level("aarch64-linux-gnu", mcpu, flags, 4, features, dots[0] if dots else "")
