"""One test for each target of parity.toml; npuc's pytest plugin compiles, compares and judges."""

from typing import Any

import pytest


@pytest.mark.parity
def test_the_compiled_model_answers_like_the_original(parity: Any) -> None:
    parity.check()


@pytest.mark.parity(target="atom")
def test_no_layer_leaves_the_device(parity: Any) -> None:
    """An assertion of one's own; the rest of parity.toml is held to as well."""
    assert "host" not in parity.report.placement.values()
