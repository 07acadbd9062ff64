"""Every seeded fault is caught under the default policy; the score of blame is a benchmark.

pytest tests/faults                     # three faults of every step
pytest tests/faults -m "slow or not slow"   # all of them, and blame, which names the step
"""

import sys
from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from catalogue import FAULTS
from detection import attempt, blamed
from seams import Fault

KINDS = {"reference", "export", "pass", "quantization", "numerics", "lowering"}

EACH = 3
"""Faults of one step that every test run seeds: all 83 take ten minutes."""


def _marked() -> list[Any]:
    seen: dict[tuple[str, str], int] = defaultdict(int)
    params = []
    for fault in FAULTS:
        seen[fault.kind, fault.step] += 1
        more = seen[fault.kind, fault.step] > EACH
        params.append(pytest.param(fault, id=fault.name, marks=pytest.mark.slow if more else ()))
    return params


def test_there_are_enough_faults_of_every_kind() -> None:
    assert len(FAULTS) >= 48 and len({fault.name for fault in FAULTS}) == len(FAULTS)
    assert {fault.kind for fault in FAULTS} == KINDS
    assert len({fault.model for fault in FAULTS}) == 10


@pytest.mark.parametrize("fault", _marked())
def test_a_fault_is_caught(fault: Fault, tmp_path: Path) -> None:
    found = attempt(fault, tmp_path)
    assert found.caught, f"{fault.what}: every bar held"


@pytest.mark.slow
@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name)
def test_blame_names_the_step(fault: Fault, tmp_path: Path) -> None:
    named = blamed(fault, tmp_path)
    assert named["step_right"], named["said"]
