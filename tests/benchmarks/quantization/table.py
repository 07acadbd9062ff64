"""Markdown of the results: quality at 64 samples, cost of the full-size models, every number."""

from quantization.methods import METHODS
from quantization.promises import OURS, SAMPLES, best
from quantization.rows import HELD_OUT_MODELS, Case, Results, Row

MARKS = ("<!-- quantization -->\n", "<!-- /quantization -->\n")

_HEAD = (
    "| model | npuc | ONNX Runtime's best | NNCF's best | npuc over it | same choice: npuc, theirs "
    "| metric: float, npuc, theirs | 8-bit products (on integers): npuc, ORT, NNCF |\n|"
    + "---|"
    * 8
)


def _quality(results: Results) -> list[Case]:
    trained = [c for c in results.cases() if c[2] == SAMPLES and results.models[c[0]]["trained"]]
    return sorted(trained, key=lambda case: case[0] in HELD_OUT_MODELS)


def quality(results: Results) -> str:
    """Return the table of trained models, those held out while developing at its end, apart."""
    lines = [_HEAD]
    apart = False
    for case in _quality(results):
        if case[0] in HELD_OUT_MODELS and not apart:
            lines.append("| *held out while developing* |" + " |" * 7)
            apart = True
        lines.append(_quality_row(case, results))
    return "\n".join(lines)


def _quality_row(case: Case, results: Results) -> str:
    rows = results.of(case)
    ours = rows.get(OURS)
    ort, nncf = best(rows, "ort"), best(rows, "nncf")
    peers = [row for row in (ort, nncf) if row is not None]
    peer = max(peers, key=lambda row: row.worst, default=None)
    more = f"{ours.worst - peer.worst:+.1f}" if ours and ours.sqnr and peer else "-"
    about = results.models[case[0]]
    cells = (
        f"`{case[0]}`" + ("" if case[1] == "plain" else " rescaled"),
        _db(ours), _named(ort), _named(nncf), more,
        ", ".join(_percent(row.agreement if row else None) for row in (ours, peer)),
        ", ".join(_metric(m) for m in (about["metric"], *((r and r.metric) for r in (ours, peer)))),
        ", ".join(_share(row) for row in (ours, ort, nncf)),
    )  # fmt: skip
    return f"| {' | '.join(cells)} |"


def _db(row: Row | None) -> str:
    if row is None:
        return "-"
    return f"{row.worst:.1f} dB" if row.sqnr else "failed"


def _share(row: Row | None) -> str:
    if row is None or not row.share:
        return "-"
    done = "" if row.kernels is None else f" ({row.kernels})"
    return f"{row.share[0]}/{row.share[1]}{done}"


def _named(row: Row | None) -> str:
    return "-" if row is None else f"{row.worst:.1f} dB, {row.method.partition('-')[2]}"


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{share:.2%}"


def _metric(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def cost(results: Results) -> str:
    """Return the table of full-size models: seconds, peak memory and SQNR of every method."""
    cases = [case for case in results.cases() if not results.models[case[0]]["trained"]]
    if not cases:
        return "No full-size model was measured yet."
    lines = [
        f"| method | {' | '.join(_title(case) for case in cases)} |",
        "|---|" + "---|" * len(cases),
    ]
    for method in METHODS:
        rows = [results.of(case).get(method.name) for case in cases]
        if any(row is not None for row in rows):
            lines.append(f"| {method.title} | {' | '.join(map(_cost_cell, rows))} |")
    return "\n".join(lines)


def _title(case: Case) -> str:
    return f"`{case[0]}`{'' if case[1] == 'plain' else ' rescaled'}, {case[2]}"


def _cost_cell(row: Row | None) -> str:
    if row is None:
        return "-"
    if row.error:
        return row.error.replace("|", "/")
    return f"{row.wall:.0f} s, {row.memory / 1024:.1f} GiB, {row.worst:.1f} dB"


def every(results: Results) -> str:
    """Return one row per case and method: all that is known."""
    lines = [
        "| model | twin | samples | method | SQNR, each output | same choice | ties | metric "
        "| 8-bit products (on integers) | seconds | before that | peak MiB | of it before "
        "| anonymous |",
        "|" + "---|" * 14,
    ]
    order = {method.name: index for index, method in enumerate(METHODS)}
    for case in results.cases():
        for row in sorted(results.of(case).values(), key=lambda row: order[row.method]):
            lines.append(f"| {' | '.join(_every_cells(row))} |")
    return "\n".join(lines)


def _every_cells(row: Row) -> tuple[str, ...]:
    first = (f"`{row.model}`", row.twin, str(row.samples), row.method)
    if row.error:
        return (*first, row.error.replace("|", "/"), *[""] * 9)
    return (
        *first, ", ".join(f"{db:.1f}" for db in row.sqnr), _percent(row.agreement),
        str(row.ties), _metric(row.metric), _share(row),
        *(", ".join(f"{n:.3g}" for n in ns) for ns in (row.seconds, row.prepared)),
        *(", ".join(f"{n:.0f}" for n in ns) for ns in (row.peak, row.before, row.anonymous)),
    )  # fmt: skip
