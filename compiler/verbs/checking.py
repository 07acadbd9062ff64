"""What is done with an artifact: `npuc run`, `verify` and `inspect`."""

from pathlib import Path
from typing import Any

import click

from npuc.console import json_out, out
from npuc.errors import NpucError
from npuc.options import (
    FILE,
    as_json_option,
    min_sqnr,
    outlet_options,
    reference_option,
    samples_option,
    strict_option,
)


@click.command()
@click.argument("artifact", type=FILE)
@click.option("--inputs", "npz", type=FILE, help="An .npz file.  [default: the stored sample]")
@click.option("-o", "--output", type=FILE, help="Write the outputs to this .npz file.")
@as_json_option
def run(artifact: Path, npz: Path | None, output: Path | None, as_json: bool) -> None:
    """Run ARTIFACT here and show what it answers."""
    from npuc import execute, outputs

    if output is not None:
        outputs.probe(output)
    answers = execute.run(artifact, npz)
    if output is not None:
        execute.save(answers, output)
    json_out(execute.summary(answers)) if as_json else out(execute.text(answers))


@click.command(short_help="Check an artifact and compare it again.")
@click.argument("artifact", type=FILE)
@samples_option
@click.option("--against", type=FILE, metavar="MODEL", help="Compare with this model instead.")
@reference_option
@strict_option
@min_sqnr
@outlet_options
@as_json_option
def verify(artifact: Path, min_sqnr: float, as_json: bool, **options: Any) -> int:
    """Check ARTIFACT's hashes, run it, and compare it again with the stored original answers.

    With --reference on all of that file's samples; neither torch nor the model is needed.
    """
    from npuc import pipeline
    from npuc.outlets.writing import Files
    from npuc.policy import Policy

    files = Files.taken(options)
    policy = Policy(sqnr_db=min_sqnr)
    try:
        report = pipeline.verify(artifact, policy=policy, **options)
    except NpucError as error:
        files.write_reports([], {"": error}, str(artifact))
        raise
    files.write_reports([report], {}, str(artifact))
    json_out(report.to_json()) if as_json else out(report.table())
    return int(report.exit_code)


@click.command(short_help="Say what a file is and what was done to it.")
@click.argument("file")
@as_json_option
def inspect(file: str, as_json: bool) -> None:
    """Say what FILE is; for an artifact, what was done to it, and why not more."""
    from npuc import look

    seen = look.look(file)
    json_out(seen) if as_json else out(look.text(seen))
