"""Run in a process of its own: a compile that is slow, and copies its source.

Usage: slow_compile.py SOURCE OUTPUT CACHE LOG SECONDS. Every compile adds a line to LOG, then takes
SECONDS; the artifact's content is printed.
"""

import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from npuc import pipeline
from npuc.cache import whole
from npuc.gate.cache import Cache
from npuc.policy import Policy
from npuc.progress import Silent
from npuc.report import Compiled, Report


def main(source: str, output: str, cache: str, log: str, seconds: str) -> None:
    """Compile once, through the cache."""

    def compile(source: str, *, target: Sequence[str], output: Path, **_: Any) -> list[Compiled]:
        with open(log, "a") as file:
            file.write(f"{source}\n")
        (output / "half").write_text("written")
        time.sleep(float(seconds))
        (output / "made.npuc").write_bytes(Path(source).read_bytes())
        report = Report(source, target[0], "float", "device", "", "", ())
        return [Compiled(output / "made.npuc", report)]

    pipeline.compile = compile  # type: ignore[assignment]
    request = whole.Request(source, ("cpu",), Path(output), Policy(), Silent(), {}, {})
    (done,) = whole.compile(request, Cache(Path(cache)))
    print(done.artifact_path.read_text())


if __name__ == "__main__":
    main(*sys.argv[1:])
