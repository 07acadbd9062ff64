"""Let torch's threads wait for each other briefly."""

import os
from collections.abc import Iterator
from contextlib import contextmanager

TURNS = "10000"
"""About 0.1 ms, as long as a small operator takes. OpenMP's own number is 300000: a thread that
waits so long for one that has no core keeps it from getting one. Beside other
processes on two cores, eight answers of ResNet-50 in float64 took 31 s with it, and 8 s so."""


@contextmanager
def brief() -> Iterator[None]:
    """Have an OpenMP that is loaded within wait `TURNS` turns, unless the user says otherwise.

    It reads the variable once, when torch is loaded; processes begun within do the same.
    """
    if os.environ.keys() & {"GOMP_SPINCOUNT", "OMP_WAIT_POLICY"}:
        yield
        return
    os.environ["GOMP_SPINCOUNT"] = TURNS
    try:
        yield
    finally:
        os.environ.pop("GOMP_SPINCOUNT", None)
