"""`npuc record`."""

from pathlib import Path
from typing import Any

import click

from npuc.console import out
from npuc.errors import ParityError, UsageError, worst
from npuc.options import (
    FILE,
    source_options,
    strict_option,
)


@click.command("record", short_help="Write a model with its own answers.")
@click.argument("models", metavar="[MODEL]", nargs=-1)
@source_options
@click.option(
    "--inputs",
    "npz",
    type=FILE,
    help="The calls to record, as an .npz file: names to arrays, samples along axis 0.",
)
@click.option("--calibration", type=FILE, help="Inputs to quantize with.  [default: --inputs]")
@click.option("-o", "--output", type=FILE, help="The model with its answers (.pt).")
@click.option(
    "--reference",
    type=FILE,
    help="The answers alone, to verify artifacts where no model is (.ref).",
)
@click.option(
    "--intermediate", "intermediates", multiple=True, metavar="MODULE",
    help="Keep what this module returns as well: features.3.",
)  # fmt: skip
@click.option(
    "--max-size", default="256MB", show_default=True, metavar="SIZE",
    help="The most that inputs and answers may take.",
)  # fmt: skip
@strict_option
@click.option(
    "--update", type=FILE, metavar="FILE",
    help="Record again on the inputs in FILE: its own model, or MODEL; shows what moved.",
)  # fmt: skip
@click.option(
    "--check", is_flag=True, help="Write nothing; exit code 6 where a reference is out of date."
)
def record_verb(
    models: tuple[str, ...], npz: Path | None, calibration: Path | None, output: Path | None,
    reference: Path | None,
    intermediates: tuple[str, ...], max_size: str, strict: bool, update: Path | None, check: bool,
    **options: Any,
) -> int:  # fmt: skip
    """Run MODEL here and write it with its inputs, answers and noise, as npuc.save does.

    \b
    npuc record MODEL --inputs X.npz -o model.pt        with the model
    npuc record MODEL --inputs X.npz --reference m.ref  the answers alone
    npuc record --update model.pt                       again, on the same inputs
    npuc record weights.pt --model net:make --update model.pt
    npuc record --check model.pt …                      is it out of date?

    A summary (model.pt.txt) is written beside each file, for the diff of a merge request.
    """
    again = update is not None or check
    if again and (output or reference or calibration):
        raise UsageError(
            "-o, --reference and --calibration are for new files; --update and --check name theirs"
        )
    if again:
        return _again(models, update, npz, intermediates, size(max_size), strict, check, options)
    if len(models) != 1 or npz is None or not (output or reference):
        raise UsageError(
            "what to record, on what, and into which file?",
            hint="npuc record MODEL --inputs X.npz -o model.pt (or --reference model.ref)",
        )
    from npuc import outputs, record
    from npuc.load import load

    for path in filter(None, (output, reference)):
        outputs.probe(path)
    found = record.record(
        load(models[0], **options), npz, output, calibration or (), reference=reference,
        intermediates=intermediates, max_bytes=size(max_size), strict=strict,
    )  # fmt: skip
    names = " and ".join(str(path) for path in (output, reference) if path)
    out(f"recorded {len(found.samples)} calls → {names}")
    return 0


def _again(
    models: tuple[str, ...], path: Path | None, npz: Path | None, intermediates: tuple[str, ...],
    limit: int, strict: bool, check: bool, options: dict[str, Any],
) -> int:  # fmt: skip
    """Record again or check: one file with MODEL in its place, or each file with its own model."""
    from npuc import outputs, update
    from npuc.load import load

    if path is None:
        jobs: list[tuple[Path, Any]] = [(Path(model), None) for model in models]
    elif len(models) > 1:
        raise UsageError(f"--update {path}: one MODEL, not {len(models)}: {', '.join(models)}")
    else:
        jobs = [(path, load(models[0], **options) if models else None)]
    if not jobs:
        raise UsageError("--check: which file?", hint="npuc record --check model.pt")
    codes = []
    for file, loaded in jobs:
        if not check:
            outputs.probe(file)
        outcome = update.update(
            file, loaded, inputs=npz, intermediates=intermediates, max_bytes=limit,
            strict=strict, check=check,
        )  # fmt: skip
        out(outcome.text)
        if check and outcome.stale:
            again = "the same without --check" if path else f"npuc record --update {file}"
            out(f"→ to record what is true now: {again}")
        codes.append(ParityError.exit_code if check and outcome.stale else 0)
    return worst(codes)


def size(text: str) -> int:
    """Read a size: ``64MB``, ``500kB``, ``1GB`` or a number of bytes; raises `UsageError`."""
    units = {"gb": 10**9, "mb": 10**6, "kb": 10**3, "b": 1, "": 1}
    number = text.strip().rstrip("gGmMkKbB")
    unit = text.strip()[len(number) :].lower()
    try:
        found = float(number) * units[unit]
    except (ValueError, KeyError):
        found = 0.0
    if not 1 <= found < float("inf"):
        raise UsageError(f"{text!r} is no size", hint="64MB, 500kB and 1GB are")
    return int(found)
