"""`npuc record`."""

from pathlib import Path
from typing import Any

import click

from npuc.console import out
from npuc.options import (
    FILE,
    source_options,
)


@click.command("record", short_help="Write a model with its own answers.")
@click.argument("model_file", metavar="MODEL")
@source_options
@click.option(
    "--inputs",
    "npz",
    type=FILE,
    required=True,
    help="The calls to record, as an .npz file: names to arrays, samples along axis 0.",
)
@click.option("-o", "--output", type=FILE, required=True, help="The recorded model (.pt).")
def record_verb(model_file: str, npz: Path, output: Path, **options: Any) -> None:
    """Run MODEL here and write it with its inputs, answers and noise floor, as npuc.save does."""
    from npuc import outputs, record
    from npuc.load import load

    outputs.probe(output)
    reference = record.record(load(model_file, **options), npz, output)
    out(f"recorded {len(reference.samples)} calls → {output}")
