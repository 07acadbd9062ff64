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
from npuc.errors import NpucError, UsageError

_EPILOG = """\b
Exit codes: 0 passed · 2 usage · 3 load or export · 4 pass or unsupported operator ·
5 toolchain · 6 parity · 7 damaged artifact · 8 output not written · 130 interrupted"""

_FILE = click.Path(path_type=Path)
_json = click.option("--json", "as_json", is_flag=True, help="Print JSON instead of text.")
_quiet = click.option("-q", "--quiet", is_flag=True, help="No progress on stderr.")
_min_sqnr = click.option(
    "--min-sqnr", type=float, default=20.0, show_default=True, metavar="DB",
    help="What quantization and rounding may cost: the least SQNR to pass.",
)  # fmt: skip
_samples = click.option(
    "--samples", type=_FILE, help="Inputs to compare on: an .npz file, or a folder of them."
)
_targets = click.option(
    "-t", "--target", "targets", multiple=True, required=True, metavar="NAME[,NAME]",
    help="The targets (npuc targets lists them), or all.",
)  # fmt: skip
_dim = click.option(
    "--dim", "dims", multiple=True, metavar="NAME=SIZE",
    help="Give a dynamic dimension its size: batch=1.",
)  # fmt: skip
_opset = click.option(
    "--opset", type=int, default=20, show_default=True, help="ONNX opset to export to."
)
_source = (
    click.option("--input", "inputs", multiple=True, metavar="SPEC",
                 help="An input, where the file does not say: name:1x3x224x224:float32."),
    click.option("--model", default="", metavar="MODULE:FACTORY",
                 help="The model that a file of weights belongs to."),
    click.option("--model-path", default="", metavar="FOLDER", help="Where to import it from."),
    click.option("--trust-pickle", is_flag=True,
                 help="Load pickled modules and TorchScript, which runs code from the file."),
    click.option("--eval", "eval_mode", is_flag=True, help="Switch the model to eval mode."),
)  # fmt: skip


def _source_options(function: Any) -> Any:
    for option in reversed(_source):
        function = option(function)
    return function


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
@_targets
@click.option(
    "-o",
    "--output",
    type=_FILE,
    help="Artifact, or a folder for them.  [default: MODEL.TARGET.npuc]",
)
@click.option("--precision", metavar="NAME", help="[default: the target's own]")
@_dim
@_source_options
@click.option(
    "--calibration", type=_FILE, help="Inputs to quantize with: an .npz file, or a folder of them."
)
@_samples
@click.option(
    "--observer",
    metavar="NAME",
    help="How ranges are found: min-max, percentile, entropy or mse.  [default: the target's own]",
)
@_opset
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
@_min_sqnr
@click.option("--skip", multiple=True, metavar="NODE", help="Leave this node in float.")
@click.option("--dump", type=_FILE, metavar="FOLDER", help="Write the program after every pass.")
@click.option(
    "--timeout",
    type=click.FloatRange(min=0, min_open=True),
    default=3600.0,
    show_default=True,
    metavar="SECONDS",
    help="Limit for each external tool.",
)
@click.option("--html", type=_FILE, help="Write one page on all targets to this file.")
@_json
@_quiet
def compile_verb(
    model_file: str, targets: tuple[str, ...], output: Path | None, dims: tuple[str, ...],
    fallback: str | None, vendor: Any, min_sqnr: float, html: Path | None, as_json: bool,
    quiet: bool, **options: Any,
) -> int:  # fmt: skip
    """Compile MODEL (a file, or zoo:NAME) and compare every step with the original."""
    from npuc import outputs, pipeline
    from npuc.policy import Policy

    names = _named(targets)
    for path in (*outputs.artifact_paths(model_file, names, output), *([html] if html else ())):
        outputs.probe(path)
    failures: dict[str, NpucError] = {}
    failed = failures.__setitem__ if len(names) > 1 else None
    with progress(quiet) as shown:
        done = pipeline.compile(
            model_file, target=names, output=output, dims=_dims(dims), fallback=fallback or "",
            vendor=vendor or "use", policy=Policy(sqnr_db=min_sqnr), progress=shown,
            failed=failed, **options,
        )  # fmt: skip
    if html:
        from npuc import matrix

        outputs.text(
            html, matrix.page([c.report for c in done], {n: e.message for n, e in failures.items()})
        )
    if as_json:
        data = [{"artifact": str(c.artifact_path), **c.report.to_json()} for c in done]
        errors = {name: {"exit_code": e.exit_code, "error": str(e)} for name, e in failures.items()}
        json_out({"compiled": data} | ({"failed": errors} if errors else {}))
    else:
        out("\n\n".join(f"{c.report.table()}\n→ {c.artifact_path}" for c in done))
    for name, error in failures.items():
        complain(f"target {name}: {error}")
    codes = [*(c.report.exit_code for c in done), *(e.exit_code for e in failures.values())]
    return max(codes, default=0)


@cli.command("check", short_help="Say what a target would not run, without compiling.")
@click.argument("model_file", metavar="MODEL")
@_targets
@_dim
@_source_options
@_opset
@_json
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

    found = check(model_file, target=_split(targets), dims=_dims(dims), **options)
    if as_json:
        json_out(check_text.to_json(model_file, found))
    else:
        out(check_text.text(model_file, found))
    return 0 if all(outcome.passed for outcome in found) else 4


@cli.command("estimate", short_help="Bound the time of a call from public peaks.")
@click.argument("model_file", metavar="MODEL")
@_targets
@click.option("--precision", metavar="NAME", help="[default: the target's own]")
@_dim
@_source_options
@_opset
@_json
def estimate_verb(
    model_file: str, targets: tuple[str, ...], dims: tuple[str, ...], as_json: bool, **options: Any
) -> None:
    """Bound from below how long one call of MODEL takes: a roofline per layer.

    Operations and bytes against the peaks and bandwidth that are public of each target. It is a
    bound and no prediction: the output names every assumption, and what is not public.
    """
    from npuc import estimate
    from npuc.estimates import estimates

    found = estimates(model_file, target=_split(targets), dims=_dims(dims), **options)
    if as_json:
        json_out({"estimates": [item.to_json() for item in found]})
    else:
        out("\n\n".join(map(estimate.text, found)))


@cli.command("record", short_help="Write a model with its own answers.")
@click.argument("model_file", metavar="MODEL")
@_source_options
@click.option(
    "--inputs",
    "npz",
    type=_FILE,
    required=True,
    help="The calls to record, as an .npz file: names to arrays, samples along axis 0.",
)
@click.option("-o", "--output", type=_FILE, required=True, help="The recorded model (.pt).")
def record_verb(model_file: str, npz: Path, output: Path, **options: Any) -> None:
    """Run MODEL here and write it with its inputs, answers and noise floor, as npuc.save does."""
    from npuc import outputs, record
    from npuc.load import load

    outputs.probe(output)
    reference = record.record(load(model_file, **options), npz, output)
    out(f"recorded {len(reference.samples)} calls → {output}")


@cli.command()
@click.argument("artifact", type=_FILE)
@click.option("--inputs", "npz", type=_FILE, help="An .npz file.  [default: the stored sample]")
@click.option("-o", "--output", type=_FILE, help="Write the outputs to this .npz file.")
@_json
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
@click.argument("artifact", type=_FILE)
@_samples
@click.option("--against", type=_FILE, metavar="MODEL", help="Compare with this model instead.")
@_min_sqnr
@_json
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
@_json
def inspect(file: str, as_json: bool) -> None:
    """Say what FILE is; for an artifact, what was done to it, and why not more."""
    from npuc import look

    seen = look.look(file)
    json_out(seen) if as_json else out(look.text(seen))


@cli.command()
@_json
def targets(as_json: bool) -> None:
    """List the installed targets and whether their tools are here."""
    from npuc import listing

    json_out(listing.targets()) if as_json else out(listing.targets_text())


@cli.group(cls=_InOrder, short_help="Install vendors' compilers in environments of their own.")
def toolchain() -> None:
    """List, install and remove the environments in which vendors' compilers run."""


@toolchain.command("list")
@_json
def toolchain_list(as_json: bool) -> None:
    """List the environments: what each is for, whether it is here, and its licence."""
    from npuc import toolchains

    json_out(toolchains.listing()) if as_json else out(toolchains.listing_text())


@toolchain.command("install")
@click.argument("name")
@_quiet
def toolchain_install(name: str, quiet: bool) -> None:
    """Install environment NAME (or that of target NAME) from its profile's pinned packages."""
    from npuc import toolchains

    with progress(quiet) as shown:
        item = toolchains.install(name, shown.stage)
    out(f"{item.environment.name} → {item.environment.path}")


@toolchain.command("remove")
@click.argument("name")
@_quiet
def toolchain_remove(name: str, quiet: bool) -> None:
    """Delete environment NAME."""
    from npuc import toolchains

    with progress(quiet) as shown:
        item = toolchains.remove(name, shown.stage)
    out(f"removed {item.environment.path}")


@cli.command()
@_json
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
@_json
@_quiet
def doctor_verb(targets: tuple[str, ...], as_json: bool, quiet: bool) -> int:
    """Check this machine and say what is missing and how to get it."""
    from npuc import doctor, listing

    with progress(quiet) as shown:
        checks = doctor.examine(shown, _split(targets))
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


def _named(targets: tuple[str, ...]) -> tuple[str, ...]:
    """Split target names; ``all`` stands for every installed one."""
    from npuc import plugins

    names = _split(targets)
    return plugins.names() if names == ("all",) else names


def _split(names: tuple[str, ...]) -> tuple[str, ...]:
    """Split comma-separated names; each counts once, in the order given."""
    parts = [part.strip() for name in names for part in name.split(",")]
    if names and not all(parts):
        raise UsageError(f"--target {','.join(names)!r}: an empty name")
    return tuple(dict.fromkeys(parts))


def _dims(texts: tuple[str, ...]) -> dict[str, int]:
    """Read ``NAME=SIZE`` options; raises `UsageError` listing every bad one."""
    dims: dict[str, int] = {}
    faults = []
    for text in texts:
        name, _, size = text.partition("=")
        if not name or not size.isdecimal() or int(size) == 0:
            faults.append(f"--dim {text!r} is not of the form batch=1")
        elif dims.setdefault(name, int(size)) != int(size):
            faults.append(f"--dim {name} is given twice: {dims[name]} and {size}")
    if faults:
        raise UsageError("\n".join(faults), hint="--dim NAME=SIZE for each dynamic dimension")
    return dims
