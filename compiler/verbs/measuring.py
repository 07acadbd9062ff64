"""How fast an artifact runs here: `npuc bench`."""

from pathlib import Path

import click

from npuc.console import out, progress
from npuc.options import FILE, quiet_option


@click.command("bench", short_help="Time an artifact beside other runtimes.")
@click.argument("artifact", type=FILE)
@click.option(
    "--against", multiple=True, metavar="NAME[,NAME]", default=("onnxruntime",),
    show_default=True,
    help="Peers: onnxruntime, torch, openvino, or an .onnx file for ONNX Runtime; none for the "
    "artifact alone.",
)  # fmt: skip
@click.option("--threads", type=int, metavar="N", help="[default: one for each CPU]")
@click.option(
    "--seconds", type=float, default=2.0, show_default=True, metavar="S",
    help="How long each side is timed altogether.",
)  # fmt: skip
@click.option("--inputs", type=FILE, help="An .npz file.  [default: the stored sample]")
@click.option("--json", "json_file", type=FILE, metavar="FILE", help="Write all of it to FILE.")
@click.option("--html", "html_file", type=FILE, metavar="FILE", help="Write a page with plots.")
@quiet_option
def bench_verb(
    artifact: Path,
    against: tuple[str, ...],
    threads: int | None,
    seconds: float,
    inputs: Path | None,
    json_file: Path | None,
    html_file: Path | None,
    quiet: bool,
) -> None:
    """Time ARTIFACT beside other runtimes, by turns in one process, and profile its kernels.

    Peers run the artifact's own program at its precision (torch: the original module, in float32).
    A peer that is not installed or cannot run it says so in its row. Slower is no failure: the
    exit code is 0 wherever the artifact ran.
    """
    from npuc import outputs
    from npuc.bench import text
    from npuc.bench.run import bench
    from npuc.jsonable import canonical
    from npuc.pages.bench import page

    for path in filter(None, (json_file, html_file)):
        outputs.probe(path)
    names = dict.fromkeys(name.strip() for words in against for name in words.split(","))
    peers = [] if list(names) == ["none"] else list(names)
    with progress(quiet) as show:
        found = bench(
            artifact, against=peers, threads=threads, seconds=seconds, inputs=inputs,
            progress=show.stage,
        )  # fmt: skip
    if json_file is not None:
        outputs.text(json_file, canonical(found.to_json()).decode())
    if html_file is not None:
        outputs.text(html_file, page(found))
    out(text.text(found))
