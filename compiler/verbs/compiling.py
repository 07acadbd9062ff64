"""`npuc compile`."""

from pathlib import Path
from typing import Any, Literal

import click

from npuc.console import complain, json_out, out, progress
from npuc.errors import NpucError, worst
from npuc.options import (
    FILE,
    as_json_option,
    dim_option,
    min_sqnr,
    opset_option,
    outlet_options,
    quantization_options,
    quiet_option,
    reference_option,
    samples_option,
    seconds,
    sizes,
    source_options,
    strict_option,
    target_names,
    targets_option,
)


@click.command("compile", short_help="Compile a model and compare every step.")
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
@reference_option
@strict_option
@quantization_options
@opset_option
@click.option(
    "--cpu",
    default="native",
    show_default=True,
    metavar="LEVEL",
    help="CPU that host code is for: native, x86-64-v3, x86-64-v4, aarch64 or aarch64:NAME; "
    "what it has beside that after a plus sign (x86-64-v4+avx512vnni+avx512bf16, "
    "x86-64-v3+avxvnni, aarch64+dotprod, aarch64+i8mm).",
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
@click.option("--no-cache", is_flag=True, help="Compile everything, and keep nothing.")
@outlet_options
@as_json_option
@quiet_option
def compile_verb(
    model_file: str, targets: tuple[str, ...], output: Path | None, dims: tuple[str, ...],
    fallback: str | None, vendor: Any, min_sqnr: float, as_json: bool, quiet: bool,
    budget: str | None, layers: bool, no_cache: bool, **options: Any,
) -> int:  # fmt: skip
    """Compile MODEL (a file, or zoo:NAME) and compare every step with the original.

    What did not change since the last time is not compiled again.
    """
    from npuc import outputs, waits
    from npuc.cache import whole
    from npuc.gate.cache import Cache
    from npuc.outlets.writing import Files
    from npuc.policy import Policy

    names = target_names(targets)
    for path in outputs.artifact_paths(model_file, names, output):
        outputs.probe(path)
    files = Files.taken(options)
    failures: dict[str, NpucError] = {}
    failed = failures.__setitem__ if len(names) > 1 else None
    looked: bool | Literal["failed"] = layers or (len(names) == 1 and files.html is not None)
    if files.paths and not looked:
        looked = "failed"  # so that they name the user's line
    try:
        with progress(quiet) as shown, waits.brief():
            given = {
                "dims": sizes(dims), "fallback": fallback or "", "vendor": vendor or "use",
                "budget": None if budget is None else seconds(budget), "layers": looked, **options,
            }  # fmt: skip
            request = whole.Request(
                model_file, names, output, Policy(sqnr_db=min_sqnr), shown, given,
                {"failed": failed},
            )  # fmt: skip
            done = whole.compile(request, None if no_cache else Cache.own())
    except NpucError as stopped:
        files.write_reports([], dict.fromkeys(names, stopped), model_file)
        raise
    files.write_reports([c.report for c in done], failures, model_file)
    if as_json:
        from npuc.outlets import schema

        data = [{"artifact": str(c.artifact_path), **c.report.to_json()} for c in done]
        errors = {name: {"exit_code": e.exit_code, "error": str(e)} for name, e in failures.items()}
        head = {"schema": schema.COMPILED, "compiled": data}
        json_out(head | ({"failed": errors} if errors else {}))
    else:
        from npuc.layers import text as layers_text

        texts = [f"{c.report.table()}\n→ {c.artifact_path}" for c in done]
        found = [f"\n\n{layers_text.table(c.report.layers)}" if layers else "" for c in done]
        out("\n\n".join(map("".join, zip(texts, found, strict=True))))
    for name, error in failures.items():
        complain(f"target {name}: {error}")
    codes = [*(c.report.exit_code for c in done), *(e.exit_code for e in failures.values())]
    return worst(codes)
