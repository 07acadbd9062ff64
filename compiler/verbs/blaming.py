"""`npuc blame`."""

from pathlib import Path
from typing import Any

import click

from npuc.console import json_out, out, progress
from npuc.errors import UsageError
from npuc.options import (
    FILE,
    as_json_option,
    dim_option,
    min_sqnr,
    opset_option,
    quantization_options,
    quiet_option,
    samples_option,
    sizes,
    source_options,
)


@click.command("blame", short_help="Say which step and operator changed the answer.")
@click.argument("sources", nargs=-1, required=True, metavar="SOURCE…")
@click.option("-t", "--target", default="", metavar="NAME", help="The target, for a MODEL.")
@click.option("--precision", metavar="NAME", help="As for npuc compile.")
@click.option(
    "-o", "--output", "bundle", type=FILE,
    help="Write a small file that shows the fault: python FILE runs it.",
)  # fmt: skip
@click.option(
    "--randomize", is_flag=True, help="Draw the file's weights anew, where the fault survives that."
)
@click.option("--against", default="", metavar="MODEL", help="What an artifact was compiled from.")
@click.option(
    "--environment", "pythons", multiple=True, metavar="PYTHON",
    help="Compile MODEL with this Python's npuc; give several, oldest first.",
)  # fmt: skip
@click.option("--logs", type=FILE, help="Where to keep their logs.  [default: npuc-blame-logs]")
@click.option(
    "--reference", type=FILE, metavar="FILE",
    help="Hold artifacts of several versions to the answers in this file.",
)  # fmt: skip
@dim_option
@source_options
@click.option("--calibration", type=FILE, help="Inputs to quantize with.")
@samples_option
@quantization_options
@opset_option
@click.option("--cpu", default="native", metavar="LEVEL", help="As for npuc compile.")
@click.option("--fallback", type=click.Choice(["ort"]), default=None, help="As for npuc compile.")
@min_sqnr
@as_json_option
@quiet_option
def blame_verb(
    sources: tuple[str, ...], target: str, bundle: Path | None, randomize: bool, against: str,
    pythons: tuple[str, ...], logs: Path | None, reference: Path | None, dims: tuple[str, ...],
    min_sqnr: float, as_json: bool, quiet: bool, **options: Any,
) -> int:  # fmt: skip
    """Find the step, the operator and the tensor that make an answer wrong.

    SOURCE is the report of a compile (npuc compile --json), an artifact, or a MODEL with the
    options it was compiled with. Several artifacts of one model, oldest first, are bisected to
    the first that is wrong; so is a MODEL over several --environment.

    Exit code 6: something is to blame. 0: nothing is, or compile undoes it by itself.
    """
    from npuc import blame, outputs
    from npuc.blame import sources as found_from
    from npuc.blame import versions
    from npuc.policy import Policy

    if bundle is not None:
        outputs.probe(bundle)
    policy = Policy(sqnr_db=min_sqnr)
    kinds = {found_from.kind_of(source) for source in sources}
    if len(sources) > 1:
        if kinds != {"artifact"}:
            raise UsageError("several sources are bisected: that takes artifacts, oldest first")
        boundary = versions.artifacts([Path(s) for s in sources], reference, policy)
        json_out(boundary.to_json()) if as_json else out(boundary.text())
        return boundary.exit_code
    source, kind = next(iter(sources)), kinds.pop()
    if kind == "model" and not target:
        raise UsageError("which target is it compiled for?", hint=f"npuc blame {source} -t TARGET")
    if pythons:
        told = _told(options)
        kept = logs or Path("npuc-blame-logs")
        boundary = versions.environments(pythons, source, target, told, logs=kept)
        json_out(boundary.to_json()) if as_json else out(boundary.text())
        return boundary.exit_code
    with progress(quiet) as shown:
        more: dict[str, Any] = {"bundle": bundle, "randomize": randomize, "progress": shown}
        if kind == "report":
            blamed = found_from.from_report(Path(source), target, **more)
        elif kind == "artifact":
            blamed = found_from.from_artifact(Path(source), against, policy, **more)
        else:
            given = {**options, "fallback": options["fallback"] or ""}
            given |= {"dims": sizes(dims), "policy": policy, **more}
            blamed = blame.find(source, target=target, **given)
    json_out(blamed.to_json()) if as_json else out(blamed.text())
    return blamed.exit_code


def _told(options: dict[str, Any]) -> list[str]:
    """Return the options that every npuc's compile has had, as it takes them."""
    told = []
    for name in ("precision", "calibration", "samples", "model", "model_path", "observer"):
        if options.get(name):
            told += [f"--{name.replace('_', '-')}", str(options[name])]
    return told
