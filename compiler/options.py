"""Options that several verbs share, and how their texts are read. Only click is imported."""

import math
from pathlib import Path
from typing import Any

import click

from npuc.errors import UsageError

FILE = click.Path(path_type=Path)
as_json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON instead of text.")
quiet_option = click.option("-q", "--quiet", is_flag=True, help="No progress on stderr.")
min_sqnr = click.option(
    "--min-sqnr", type=float, default=20.0, show_default=True, metavar="DB",
    help="What quantization and rounding may cost: the least SQNR to pass.",
)  # fmt: skip
samples_option = click.option(
    "--samples", type=FILE, help="Inputs to compare on: an .npz file, or a folder of them."
)
reference_option = click.option(
    "--reference", type=FILE, metavar="FILE",
    help="Take the original's answers from this file (npuc record --reference).",
)  # fmt: skip
strict_option = click.option(
    "--strict", is_flag=True, help="Refuse a reference that cannot be trusted, with the reasons."
)
targets_option = click.option(
    "-t", "--target", "targets", multiple=True, required=True, metavar="NAME[,NAME]",
    help="The targets (npuc targets lists them), or all.",
)  # fmt: skip
dim_option = click.option(
    "--dim", "dims", multiple=True, metavar="NAME=SIZE",
    help="Give a dynamic dimension its size: batch=1.",
)  # fmt: skip
opset_option = click.option(
    "--opset", type=int, default=20, show_default=True, help="ONNX opset to export to."
)
_SOURCE = (
    click.option("--input", "inputs", multiple=True, metavar="SPEC",
                 help="An input, where the file does not say: name:1x3x224x224:float32."),
    click.option("--model", default="", metavar="MODULE:FACTORY",
                 help="The model that a file of weights belongs to."),
    click.option("--model-path", default="", metavar="FOLDER", help="Where to import it from."),
    click.option("--trust-pickle", is_flag=True,
                 help="Load pickled modules and TorchScript, which runs code from the file."),
    click.option("--eval", "eval_mode", is_flag=True, help="Switch the model to eval mode."),
)  # fmt: skip

_QUANTIZATION = (
    click.option("--observer", metavar="NAME",
                 help="How ranges are found: min-max, percentile, entropy, mse or output.  "
                 "[default: the target's own]"),
    click.option("--calibration-table", type=FILE,
                 help="Ranges to use, to review or to edit; written where there is no such file "
                 "yet."),
    click.option("--rounding", metavar="NAME",
                 help="How weights become codes: nearest, or learned on the calibration data by "
                 "gptq or adaround (slow).  [default: nearest]"),
    click.option("--skip", multiple=True, metavar="NODE", help="Leave this node in float."),
    click.option("--no-equalize", "equalize", flag_value=False, default=True,
                 help="Quantize the channels as they are, without evening out their ranges first."),
    click.option("--no-correct-bias", "correct_bias", flag_value=False, default=True,
                 help="Leave the biases as they are: those of a model fine-tuned with "
                 "npuc.simulate fit."),
)  # fmt: skip


_OUTLETS = (
    click.option("--html", type=FILE, metavar="FILE", help="Write a page to this file."),
    click.option("--junit", type=FILE, metavar="FILE", help="Write JUnit XML to this file."),
    click.option("--sarif", type=FILE, metavar="FILE", help="Write SARIF to this file."),
    click.option("--markdown", type=FILE, metavar="FILE",
                 help="Write Markdown for a pull request to this file."),
)  # fmt: skip


class InOrder(click.Group):
    """Lists verbs in the order of this file, which is the order of use."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self.commands)


def quantization_options(function: Any) -> Any:
    """Add the options that say how a model is quantized."""
    for option in reversed(_QUANTIZATION):
        function = option(function)
    return function


def source_options(function: Any) -> Any:
    """Add the options that say what a model file is."""
    for option in reversed(_SOURCE):
        function = option(function)
    return function


def outlet_options(function: Any) -> Any:
    """Add the files that the result is written to as well (`npuc.outlets.writing`)."""
    for option in reversed(_OUTLETS):
        function = option(function)
    return function


def seconds(text: str) -> float:
    """Read a time: ``30s``, ``5m``, ``1h``, or a number of seconds; raises `UsageError`."""
    units = {"s": 1.0, "m": 60.0, "h": 3600.0}
    number, unit = (text[:-1], units[text[-1]]) if text[-1:] in units else (text, 1.0)
    try:
        found = float(number) * unit
    except ValueError:
        found = math.nan
    if not 0 < found < math.inf:
        raise UsageError(f"{text!r} is no time", hint="30s, 5m and 1h are")
    return found


def target_names(targets: tuple[str, ...]) -> tuple[str, ...]:
    """Split target names; ``all`` stands for every installed one."""
    from npuc import plugins

    names = split(targets)
    return plugins.names() if names == ("all",) else names


def split(names: tuple[str, ...]) -> tuple[str, ...]:
    """Split comma-separated names; each counts once, in the order given."""
    parts = [part.strip() for name in names for part in name.split(",")]
    if names and not all(parts):
        raise UsageError(f"--target {','.join(names)!r}: an empty name")
    return tuple(dict.fromkeys(parts))


def sizes(texts: tuple[str, ...]) -> dict[str, int]:
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
