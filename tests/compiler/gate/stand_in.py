"""Run in a process of its own: a gate whose compiles copy what was compiled before.

Usage: stand_in.py PARITY CACHE ARTIFACT VERDICT LOG SECONDS. Every compile adds a line to LOG,
then takes SECONDS; the outcomes' states are printed.
"""

import json
import shutil
import sys
import time
from pathlib import Path
from typing import Any

from npuc import pipeline
from npuc.gate import run, spec
from npuc.gate.cache import Cache
from npuc.outlets import reading
from npuc.report import Compiled


def main(parity: str, cache: str, artifact: str, verdict: str, log: str, seconds: str) -> None:
    """Check all pairs."""
    report = reading.report(json.loads(Path(verdict).read_text())["body"]["report"])

    def compile(source: str, *, target: Any, output: Path, **_: Any) -> list[Compiled]:
        with open(log, "a") as file:
            file.write(f"{source} for {','.join(target)}\n")
        (output / "half").write_text("written")
        time.sleep(float(seconds))
        path = output / "made.npuc"
        shutil.copy(artifact, path)
        return [Compiled(path, report)]

    pipeline.compile = compile  # type: ignore[assignment]
    found = run.check_all(spec.read(Path(parity)), cache=Cache(Path(cache)))
    print(*(f"{outcome.state}{' cached' * outcome.cached}" for outcome in found), sep="\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
