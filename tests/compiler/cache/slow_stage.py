"""Run in a process of its own: a stage that is slow.

Usage: slow_stage.py CACHE LOG SECONDS. Computing adds a line to LOG, then takes SECONDS; the
result is printed.
"""

import sys
import time
from pathlib import Path

import numpy as np

from npuc.cache.stages import Stages
from npuc.gate.cache import Cache
from npuc.kept import Arrays
from npuc.progress import Silent


def main(cache: str, log: str, seconds: str) -> None:
    """Ask for one stage, through the cache."""

    def make() -> Arrays:
        with open(log, "a") as file:
            file.write("computed\n")
        time.sleep(float(seconds))
        return {"x": np.array([1.5])}

    stages = Stages(Cache(Path(cache)), lambda: "npuc", Silent())
    print(stages.arrays("channels", ["one"], make)["x"])


if __name__ == "__main__":
    main(*sys.argv[1:])
