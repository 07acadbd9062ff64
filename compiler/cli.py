"""The command line: each verb reads its options, calls one function and prints what it returns.

Results go to stdout, progress and errors to stderr. Only click is imported at the start; a verb
imports what it needs when it runs.
"""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from npuc.console import complain, guarded, json_out, out, progress
from npuc.errors import NpucError
from npuc.options import (
    FILE,
    as_json_option,
    dim_option,
    min_sqnr,
    opset_option,
    quantization_options,
    quiet_option,
    samples_option,
    seconds,
    sizes,
    source_options,
    split,
    target_names,
    targets_option,
)

_EPILOG = """\b
Exit codes: 0 passed · 2 usage · 3 load or export · 4 pass or unsupported operator ·
5 toolchain · 6 parity · 7 damaged artifact · 8 output not written · 130 interrupted"""


class _InOrder(click.Group):
    """Lists verbs in the order of this file, which is the order of use."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self.commands)


@click.group(cls=_InOrder, epilog=_EPILOG, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="npuc", message="npuc %(version)s")
def cli() -> None:
    """Compile a trained model for any NPU, and prove that it still answers like the original."""


@cli.command("compile", short_help="Compile a model and compare every step.")
@click.argument("model_file", metavar="MODEL")
@targets_option
@click.option(
    "-o",
    "--output",
    type=FILE,
    help="Artifact, or a folder for them.  [default: MODEL.TARGET.npuc]",
)
@click.option(
    "--precision",
    metavar="NAME",
    help="As npuc targets lists them; auto keeps in float what --min-sqnr needs.  "
    "[default: the target's own]",
)
@click.option(
    "--budget", metavar="TIME", help="How long auto may search: 30s, 5m or 1h.  [default: 5m]"
)
@dim_option
@source_options
@click.option(
    "--calibration", type=FILE, help="Inputs to quantize with: an .npz file, or a folder of them."
)
@samples_option
@quantization_options
@opset_option
@click.option(
    "--cpu",
    default="native",
    show_default=True,
    metavar="LEVEL",
    help="CPU that host code is for: native, x86-64-v3, x86-64-v4 or aarch64.",
)
@click.option(
    "--fallback", type=click.Choice(["ort"]), help="Run what cannot be lowered in ONNX Runtime."
)
@click.option(
    "--no-fallback",
    "host",
    flag_value=False,
    default=True,
    help="Fail where an operator would stay on the host.",
)
@click.option(
    "--on-target",
    multiple=True,
    metavar="KINDS=all",
    help="Fail unless all these run on the device: Conv,MatMul=all.",
)
@click.option(
    "--require-vendor",
    "vendor",
    flag_value="require",
    help="Fail where the vendor's compiler is not here, instead of a hand-over kit.",
)
@click.option(
    "--no-vendor", "vendor", flag_value="skip", help="Make the kit, do not run the compiler."
)
@min_sqnr
@click.option("--dump", type=FILE, metavar="FOLDER", help="Write the program after every pass.")
@click.option(
    "--timeout",
    type=click.FloatRange(min=0, min_open=True),
    default=3600.0,
    show_default=True,
    metavar="SECONDS",
    help="Limit for each external tool.",
)
@click.option("--layers", is_flag=True, help="Show what each layer loses, and where most is born.")
@click.option(
    "--html",
    type=FILE,
    help="Write a page to this file: of one target with its layers, or of several side by side.",
)
@as_json_option
@quiet_option
def compile_verb(
    model_file: str, targets: tuple[str, ...], output: Path | None, dims: tuple[str, ...],
    fallback: str | None, vendor: Any, min_sqnr: float, html: Path | None, as_json: bool,
    quiet: bool, budget: str | None, layers: bool, **options: Any,
) -> int:  # fmt: skip
    """Compile MODEL (a file, or zoo:NAME) and compare every step with the original."""
    from npuc import outputs, pipeline
    from npuc.policy import Policy

    names = target_names(targets)
    for path in (*outputs.artifact_paths(model_file, names, output), *([html] if html else ())):
        outputs.probe(path)
    failures: dict[str, NpucError] = {}
    failed = failures.__setitem__ if len(names) > 1 else None
    with progress(quiet) as shown:
        done = pipeline.compile(
            model_file, target=names, output=output, dims=sizes(dims), fallback=fallback or "",
            vendor=vendor or "use", policy=Policy(sqnr_db=min_sqnr), progress=shown,
            failed=failed, budget=None if budget is None else seconds(budget),
            layers=layers or (html is not None and len(names) == 1), **options,
        )  # fmt: skip
    if html:
        from npuc.pages import page

        reports = [c.report for c in done]
        outputs.text(html, page.fitting(reports, {n: e.message for n, e in failures.items()}))
    if as_json:
        data = [{"artifact": str(c.artifact_path), **c.report.to_json()} for c in done]
        errors = {name: {"exit_code": e.exit_code, "error": str(e)} for name, e in failures.items()}
        json_out({"compiled": data} | ({"failed": errors} if errors else {}))
    else:
        from npuc.layers import text as layers_text

        texts = [f"{c.report.table()}\n→ {c.artifact_path}" for c in done]
        found = [f"\n\n{layers_text.table(c.report.layers)}" if layers else "" for c in done]
        out("\n\n".join(map("".join, zip(texts, found, strict=True))))
    for name, error in failures.items():
        complain(f"target {name}: {error}")
    codes = [*(c.report.exit_code for c in done), *(e.exit_code for e in failures.values())]
    return max(codes, default=0)


@cli.command("check", short_help="Say what a target would not run, without compiling.")
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


@cli.command("estimate", short_help="Bound the time of a call from public peaks.")
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


@cli.command("record", short_help="Write a model with its own answers.")
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


@cli.command()
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


@cli.command(short_help="Check an artifact and compare it again.")
@click.argument("artifact", type=FILE)
@samples_option
@click.option("--against", type=FILE, metavar="MODEL", help="Compare with this model instead.")
@min_sqnr
@as_json_option
def verify(
    artifact: Path, samples: Path | None, against: Path | None, min_sqnr: float, as_json: bool
) -> int:
    """Check ARTIFACT's hashes, run it, and compare it again with the stored original answers."""
    from npuc import pipeline
    from npuc.policy import Policy

    policy = Policy(sqnr_db=min_sqnr)
    report = pipeline.verify(artifact, samples=samples, against=against, policy=policy)
    json_out(report.to_json()) if as_json else out(report.table())
    return int(report.exit_code)


@cli.command(short_help="Say what a file is and what was done to it.")
@click.argument("file")
@as_json_option
def inspect(file: str, as_json: bool) -> None:
    """Say what FILE is; for an artifact, what was done to it, and why not more."""
    from npuc import look

    seen = look.look(file)
    json_out(seen) if as_json else out(look.text(seen))


@cli.command()
@as_json_option
def targets(as_json: bool) -> None:
    """List the installed targets and whether their tools are here."""
    from npuc import listing

    json_out(listing.targets()) if as_json else out(listing.targets_text())


@cli.group(cls=_InOrder, short_help="Install vendors' compilers in environments of their own.")
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


@cli.command()
@as_json_option
def passes(as_json: bool) -> None:
    """List the passes with what they do and when they refuse."""
    from npuc import listing

    json_out(listing.passes()) if as_json else out(listing.passes_text())


@cli.command("doctor", short_help="Check this machine.")
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


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code (see `npuc.errors`)."""
    return guarded(lambda: _run(argv))


def _run(argv: Sequence[str] | None) -> int:
    # Not click's own main, which handles Ctrl-C and closed pipes in its way.
    words = sys.argv[1:] if argv is None else list(argv)
    try:
        with cli.make_context("npuc", words) as context:
            return cli.invoke(context) or 0
    except click.exceptions.Exit as done:  # after --help and --version
        return done.exit_code
    except click.ClickException as error:
        error.show()
        return error.exit_code
