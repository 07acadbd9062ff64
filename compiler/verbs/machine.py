"""What this machine has: `npuc targets`, `toolchain`, `passes` and `doctor`."""

import click

from npuc.console import json_out, out, progress
from npuc.options import (
    InOrder,
    as_json_option,
    quiet_option,
    split,
)


@click.command()
@as_json_option
def targets(as_json: bool) -> None:
    """List the installed targets and whether their tools are here."""
    from npuc import listing

    json_out(listing.targets()) if as_json else out(listing.targets_text())


@click.group(cls=InOrder, short_help="Install vendors' compilers in environments of their own.")
def toolchain() -> None:
    """List, install and remove the environments in which vendors' compilers run."""


@toolchain.command("list")
@as_json_option
def toolchain_list(as_json: bool) -> None:
    """List the environments: what each is for, whether it is here, and its licence."""
    from npuc import toolchains

    json_out(toolchains.listing()) if as_json else out(toolchains.listing_text())


@toolchain.command("install")
@click.argument("name")
@quiet_option
def toolchain_install(name: str, quiet: bool) -> None:
    """Install environment NAME (or that of target NAME) from its profile's pinned packages."""
    from npuc import toolchains

    with progress(quiet) as shown:
        item = toolchains.install(name, shown.stage)
    out(f"{item.environment.name} → {item.environment.path}")


@toolchain.command("remove")
@click.argument("name")
@quiet_option
def toolchain_remove(name: str, quiet: bool) -> None:
    """Delete environment NAME."""
    from npuc import toolchains

    with progress(quiet) as shown:
        item = toolchains.remove(name, shown.stage)
    out(f"removed {item.environment.path}")


@click.command()
@as_json_option
def passes(as_json: bool) -> None:
    """List the passes with what they do and when they refuse."""
    from npuc import listing

    json_out(listing.passes()) if as_json else out(listing.passes_text())


@click.command("doctor", short_help="Check this machine.")
@click.option(
    "-t",
    "--target",
    "targets",
    multiple=True,
    metavar="NAME[,NAME]",
    help="Require this target's vendor tools as well.",
)
@as_json_option
@quiet_option
def doctor_verb(targets: tuple[str, ...], as_json: bool, quiet: bool) -> int:
    """Check this machine and say what is missing and how to get it."""
    from npuc import doctor, listing

    with progress(quiet) as shown:
        checks = doctor.examine(shown, split(targets))
    json_out(listing.checks(checks)) if as_json else out(listing.checks_text(checks))
    return 5 if any(check.status == "missing" for check in checks) else 0
