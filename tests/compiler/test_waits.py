"""How long torch's threads wait: briefly while npuc compiles, as the user says if they do."""

import os

import pytest

from npuc import waits


def test_waits_are_brief_within_and_as_before_after(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(KeyError), waits.brief():
        assert os.environ["GOMP_SPINCOUNT"] == waits.TURNS
        raise KeyError
    assert "GOMP_SPINCOUNT" not in os.environ


@pytest.mark.parametrize(
    ("name", "value"), [("GOMP_SPINCOUNT", "7"), ("OMP_WAIT_POLICY", "active")]
)
def test_what_the_user_says_stays(monkeypatch: pytest.MonkeyPatch, name: str, value: str) -> None:
    for other in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY"):
        monkeypatch.delenv(other, raising=False)
    monkeypatch.setenv(name, value)
    before = dict(os.environ)
    with waits.brief():
        assert dict(os.environ) == before
    assert dict(os.environ) == before
