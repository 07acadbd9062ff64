"""`npuc gate`."""

from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

import click

from npuc.console import json_out, out, progress
from npuc.errors import UsageError, worst
from npuc.options import as_json_option, outlet_options, quiet_option, split

if TYPE_CHECKING:
    from npuc.gate.outcome import Outcome
    from npuc.gate.pairs import Spec


@click.command("gate", short_help="Check all that parity.toml names; the exit code is the verdict.")
@click.argument("files", nargs=-1, metavar="[parity.toml | MODEL...]")
@click.option(
    "-t", "--target", "targets", multiple=True, metavar="NAME[,NAME]",
    help="Only these targets; without a parity.toml, those to check MODEL on, or all.",
)  # fmt: skip
@click.option("--model", "models", multiple=True, metavar="NAME[,NAME]", help="Only these models.")
@click.option("--strict", is_flag=True, help="Refuse references that are in doubt.")
@outlet_options
@click.option("--no-cache", is_flag=True, help="Compile everything, and keep nothing.")
@click.option(
    "--today", type=click.DateTime(["%Y-%m-%d"]), hidden=True, help="The day for waivers to expire."
)
@as_json_option
@quiet_option
def gate(
    files: tuple[str, ...], targets: tuple[str, ...], models: tuple[str, ...], strict: bool,
    no_cache: bool, today: datetime | None, as_json: bool, quiet: bool, **asked: Path | None,
) -> int:  # fmt: skip
    """Hold every model of parity.toml to its original, on each of its targets.

    What did not change is not compiled again. Exit code 6 where an answer differs by more than is
    allowed, 9 where there are too few samples to say, 0 where all holds or what does not is waived.
    """
    from contextlib import ExitStack
    from dataclasses import replace
    from tempfile import TemporaryDirectory

    from npuc.gate import run
    from npuc.gate.cache import Cache
    from npuc.gate.entries import entries
    from npuc.outlets.writing import Files

    spec = _spec(files, split(targets), split(models))
    spec = replace(spec, strict=spec.strict or strict)
    files_asked = Files.taken(asked)
    with ExitStack() as stack:
        folder = stack.enter_context(TemporaryDirectory(prefix="npuc-")) if no_cache else None
        cache = Cache.own() if folder is None else Cache(Path(folder))
        with progress(quiet) as shown:
            day = None if today is None else today.date()
            found = run.check_all(spec, cache=cache, today=day, progress=shown)
        files_asked.write(entries(found))
        _print(found, as_json)
    return worst(outcome.exit_code for outcome in found)


def _spec(files: tuple[str, ...], targets: tuple[str, ...], models: tuple[str, ...]) -> "Spec":
    """Read the file, or make a gate of models; raises `UsageError`."""
    from npuc import plugins
    from npuc.gate import spec

    named = [name for name in files or (spec.FILE,) if name.endswith(".toml")]
    if named and len(files) > 1:
        raise UsageError(
            f"{named[0]} is a gate of its own, and {len(files) - 1} more are named",
            hint="npuc gate parity.toml, or npuc gate MODEL... --target NAME",
        )
    if named:
        return spec.read(Path(named[0])).only(models, targets)
    if not targets:
        raise UsageError(
            f"no target for {', '.join(files)}",
            hint=f"npuc gate {' '.join(files)} --target NAME[,NAME]",
        )
    return spec.single(files, plugins.names() if targets == ("all",) else targets).only(models)


def _print(found: "tuple[Outcome, ...]", as_json: bool) -> None:
    if as_json:
        from npuc.gate.entries import entries
        from npuc.outlets import data

        json_out(data.gate(entries(found)))
    else:
        from npuc.gate import summary

        out(summary.text(found))
