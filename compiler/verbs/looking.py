"""What can be said of a model without compiling it: `npuc check` and `npuc estimate`."""

from typing import Any

import click

from npuc.console import json_out, out
from npuc.options import (
    as_json_option,
    dim_option,
    opset_option,
    sizes,
    source_options,
    split,
    targets_option,
)


@click.command("check", short_help="Say what a target would not run, without compiling.")
@click.argument("model_file", metavar="MODEL")
@targets_option
@dim_option
@source_options
@opset_option
@as_json_option
def check_verb(
    model_file: str, targets: tuple[str, ...], dims: tuple[str, ...], as_json: bool, **options: Any
) -> int:
    """Hold MODEL against what is public of each target: operators, limits, shapes, memory.

    Shows what npuc's own passes mend, what would run on the host, and what to change. Exit code 4
    where a part would run on the host, or the model cannot be compiled as it is; 0 where all runs
    on the target, as far as is public.
    """
    from npuc import check_text
    from npuc.check import check

    found = check(model_file, target=split(targets), dims=sizes(dims), **options)
    if as_json:
        json_out(check_text.to_json(model_file, found))
    else:
        out(check_text.text(model_file, found))
    return 0 if all(outcome.passed for outcome in found) else 4


@click.command("estimate", short_help="Bound the time of a call from public peaks.")
@click.argument("model_file", metavar="MODEL")
@targets_option
@click.option("--precision", metavar="NAME", help="[default: the target's own]")
@dim_option
@source_options
@opset_option
@as_json_option
def estimate_verb(
    model_file: str, targets: tuple[str, ...], dims: tuple[str, ...], as_json: bool, **options: Any
) -> None:
    """Bound from below how long one call of MODEL takes: a roofline per layer.

    Operations and bytes against the peaks and bandwidth that are public of each target. It is a
    bound and no prediction: the output names every assumption, and what is not public.
    """
    from npuc import estimate
    from npuc.estimates import estimates

    found = estimates(model_file, target=split(targets), dims=sizes(dims), **options)
    if as_json:
        json_out({"estimates": [item.to_json() for item in found]})
    else:
        out("\n\n".join(map(estimate.text, found)))
