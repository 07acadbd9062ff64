"""The command line: each verb reads its options, calls one function and prints what it returns.

Results go to stdout, progress and errors to stderr. Only click is imported at the start; a verb
imports what it needs when it runs.
"""

import gc
import sys
from collections.abc import Sequence
from typing import NoReturn

import click

from npuc.console import ended, guarded
from npuc.lean import lean
from npuc.options import InOrder
from npuc.verbs import blaming, checking, compiling, gating, looking, machine, measuring, recording

_EPILOG = """\b
Exit codes: 0 passed · 2 usage · 3 load or export · 4 pass or unsupported operator ·
5 toolchain · 6 parity · 7 damaged artifact · 8 output not written · 9 undecided ·
130 interrupted"""

_RARELY = (200_000, 20, 20)
"""New objects, then searches of the youngest and of the younger ones, until garbage in cycles is
searched for. torch, sympy and tvm are a million objects that stay: Python's own numbers visit them
all again and again, for 2 s of a compile of ResNet-50, and find next to nothing."""


@click.group(cls=InOrder, epilog=_EPILOG, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="npuc", message="npuc %(version)s")
def cli() -> None:
    """Compile a trained model for any NPU, and prove that it still answers like the original."""


for _verb in (
    compiling.compile_verb,
    gating.gate,
    blaming.blame_verb,
    looking.check_verb,
    looking.estimate_verb,
    recording.record_verb,
    checking.run,
    checking.verify,
    checking.inspect,
    measuring.bench_verb,
    machine.targets,
    machine.toolchain,
    machine.passes,
    machine.doctor_verb,
):
    cli.add_command(_verb)


def program() -> NoReturn:
    """Run the command line as a process of its own, and end the process."""
    ended(main())


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code (see `npuc.errors`)."""
    before = gc.get_threshold()
    gc.set_threshold(*_RARELY)
    try:
        with lean():
            return guarded(lambda: _run(argv))
    finally:
        gc.set_threshold(*before)


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
