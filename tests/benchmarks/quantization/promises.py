"""What npuc promises of its quantization, held against what was measured."""

from collections.abc import Iterator, Mapping

from quantization.rows import Case, Results, Row

SAMPLES = 64
OURS = "npuc-default"

_MARGIN, _TWIN = 3.0, 1.0
"""dB: what npuc has to be better by on rescaled models; how close they stay to their plain twin."""

_LEAST = {"classification": 0.99, "language": 0.95}
"""Agreement with the float model's choices, its ties apart."""

_FLAT = 1.1
"""Memory at the most samples over that at the least. Seconds are `run.py calibration`'s: here
npuc's hold preparation and bias correction too."""


def best(rows: Mapping[str, Row], side: str) -> Row | None:
    """Return the peer's variant with the largest SQNR; None where none finished."""
    found = [row for name, row in rows.items() if name.startswith(f"{side}-") and row.sqnr]
    return max(found, key=lambda row: row.worst, default=None)


def missed(results: Results) -> Iterator[str]:
    """Yield what falls short of the promises, one line each."""
    for case in results.cases():
        if case[2] == SAMPLES:
            yield from _quality(case, results)
        yield from _cost(case, results)
    for case in results.cases():
        if case[2] == SAMPLES:
            yield from _flat(case, results)


def _quality(case: Case, results: Results) -> Iterator[str]:
    rows, name = results.of(case), " ".join(case[:2])
    if OURS not in rows:
        return
    ours = rows[OURS]
    peers = [row for side in ("ort", "nncf") if (row := best(rows, side)) is not None]
    bar = max((row.worst for row in peers), default=-float("inf"))
    bar += _MARGIN if case[1] == "rescaled" else 0.0
    if ours.worst < bar:
        yield f"{name}: {ours.worst:.1f} dB, {bar:.1f} dB are needed beside the best peer"
    plain = results.of((case[0], "plain", case[2])).get(OURS)
    if case[1] == "rescaled" and plain is not None and abs(plain.worst - ours.worst) > _TWIN:
        yield f"{name}: {ours.worst:.1f} dB, the plain twin has {plain.worst:.1f} dB"
    least = _LEAST.get(results.models[case[0]]["task"], 0.0)
    if ours.agreement is not None and ours.agreement < least:
        yield f"{name}: agreement {ours.agreement:.4f}, {least} is needed"


def _cost(case: Case, results: Results) -> Iterator[str]:
    rows, name = results.of(case), " ".join(map(str, case))
    nncf = [row.memory for key, row in rows.items() if key.startswith("nncf-") and row.peak]
    mine = rows.get(OURS)
    if nncf and mine and mine.peak and mine.memory >= min(nncf):
        yield f"{name}: peak {mine.memory:.0f} MiB, NNCF's least is {min(nncf):.0f} MiB"


def _flat(case: Case, results: Results) -> Iterator[str]:
    few = results.of(case).get(OURS)
    most = max(c[2] for c in results.cases() if c[:2] == case[:2])
    many = results.of((*case[:2], most)).get(OURS)
    if few and many and few.peak and many.peak and many.memory > _FLAT * few.memory:
        grown = f"{few.memory:.0f} to {many.memory:.0f} MiB"
        yield f"{' '.join(case[:2])}: memory grows from {grown} at {most} samples"
