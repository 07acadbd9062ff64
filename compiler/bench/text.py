"""Spell a benchmark for people."""

from collections.abc import Iterator

from npuc.bench.result import Bench, Kernel, Side, worst_first
from npuc.estimate import spelled
from npuc.text import columns, section, size

HEAD = ("", "min", "p50", "p90", "p99", "per second", "CPU", "peak memory", "of it model",
        "npuc / it: p50", "min", "distance")  # fmt: skip
SHOWN = 15
"""Kernels that are listed; JSON and HTML have them all."""


def text(found: Bench) -> str:
    """Return tables of the sides and of the kernels that take the most time."""
    blocks = [
        heading(found),
        columns([HEAD, *(row(found, side) for side in found.sides)], indent=2),
        "",
        *sides(found),
        "",
        section("Reached", reached(found)),
    ]
    total = sum(kernel.seconds for kernel in found.kernels)
    if found.kernels:
        listed = worst_first(found.kernels)[:SHOWN]
        blocks.append(
            section(
                f"Longest of {len(found.kernels)} kernel calls, {spelled(total)} in all",
                [KERNEL_HEAD, *(kernel(found, item, total) for item in listed)],
            )
        )
    return "\n".join([*blocks, *(f"note: {note}" for note in found.notes)]).rstrip()


def heading(found: Bench) -> str:
    """Return one line: what ran, and where."""
    threads = f"{found.threads} thread{'s' * (found.threads != 1)}"
    model = f" ({found.model})" if found.model else ""
    cpu = f" on {found.cpu}" if found.cpu else ""
    return (
        f"{found.artifact}{model}: {found.target}, {found.precision}, batch {found.batch}, "
        f"{threads}{cpu}"
    )


def row(found: Bench, side: Side) -> list[str]:
    """Return a side's cells, as `HEAD` names them."""
    if side.times is None:
        return [side.name, f"not run: {side.why}"]
    times, ratio = side.times, found.ratio(side)
    return [
        side.name,
        *(spelled(s) for s in (times.least, *(times.percentile(p) for p in (0.5, 0.9, 0.99)))),
        f"{found.batch / times.percentile(0.5):.4g}",
        spelled(times.cpu),
        "-" if side.peak_bytes is None else size(side.peak_bytes),
        "-" if side.model_bytes is None else size(side.model_bytes),
        *(["-", "-"] if ratio is None else [f"{value:.2f}" for value in ratio]),
        "-" if side.difference is None else f"{side.difference:.1e}",
    ]


def sides(found: Bench) -> Iterator[str]:
    """Yield what each side is, and how much it was measured."""
    for side in found.sides:
        if side.times is not None:
            yield f"  {side.name}: {side.what}; {len(side.times.calls)} calls"


def reached(found: Bench) -> list[list[str]]:
    """Return the shares of this machine's peaks that a call reaches, with the peaks."""
    shares, peaks = found.reached(), found.peaks
    if peaks is None or not shares:
        return []
    kinds = {"float": peaks.float32, "bf16": peaks.bfloat16, "int8": peaks.integer}
    rates = ", ".join(f"{name} {rate / 1e9:.4g}" for name, rate in kinds.items())
    return [
        ["products", f"{shares['arithmetic']:.0%} of the arithmetic peak ({rates} G/s, measured)"],
        [
            "weights",
            f"{shares['bandwidth']:.0%} of the memory bandwidth, were {size(found.weight_bytes)} "
            f"read once per call ({peaks.bandwidth / 1e9:.3g} GB/s, measured)",
        ],
    ]


KERNEL_HEAD = ["kernel", "time", "share", "G operations/s", "of peak", "GB/s", "operators"]


def kernel(found: Bench, item: Kernel, total: float) -> list[str]:
    """Return a kernel's cells, as `KERNEL_HEAD` names them."""
    share = item.share_of_peak(found.peaks) if found.peaks else None
    return [
        item.name,
        spelled(item.seconds),
        f"{item.seconds / total:.1%}",
        f"{item.operations / item.seconds / 1e9:.4g}" if item.operations else "-",
        "-" if share is None else f"{share:.0%}",
        f"{item.bytes / item.seconds / 1e9:.3g}",
        operators(item),
    ]


def operators(item: Kernel, most: int = 4) -> str:
    """Spell what a kernel computes; the kinds alone where there are many."""
    if not item.operators:
        return "-"
    kinds = [name.partition(" ")[0] for name in item.operators]
    first = item.operators[0]
    more = f" +{len(kinds) - most}" if len(kinds) > most else ""
    return f"{first}" + "".join(f", {kind}" for kind in kinds[1:most]) + more
