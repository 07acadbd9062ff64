"""What a report remembers of the call that made it."""

from pathlib import Path
from typing import Any

import numpy as np

from npuc.asked import IN_MEMORY, asked


def work(
    source: object, *, dims: object = None, skip: object = (), samples: object = None,
    deep: bool = False, output: object = None,
) -> dict[str, Any]:  # fmt: skip
    return asked(work, locals(), without="output")


def test_only_what_differs_from_the_defaults_is_kept() -> None:
    assert work("a.pt", dims={}) == {"source": "a.pt"}
    assert work(Path("a.pt"), deep=True, output="b") == {"source": "a.pt", "deep": True}
    assert work("a.pt", dims={"batch": 2}, skip=("x",)) == {
        "source": "a.pt", "dims": {"batch": 2}, "skip": ["x"],
    }  # fmt: skip


def test_what_no_report_can_hold_is_named_as_such() -> None:
    found = work(object(), samples=[{"x": np.zeros(3)}])
    assert found == {"source": IN_MEMORY, "samples": IN_MEMORY}
