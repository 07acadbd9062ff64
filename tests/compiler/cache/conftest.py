"""The code under test is the same while a test runs, whoever edits it."""

from collections.abc import Iterator

import pytest

from npuc.gate import machine


@pytest.fixture(scope="module", autouse=True)
def same_code() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(machine, "now", lambda _: "npuc")
        yield
