"""No test reads what another, or the user, has compiled: each has a cache of its own."""

import atexit
import os
import shutil
import tempfile

import pytest

os.environ["NPUC_CACHE"] = tempfile.mkdtemp(prefix="npuc-tests-")  # for fixtures of a session
atexit.register(shutil.rmtree, os.environ["NPUC_CACHE"], ignore_errors=True)


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Give the test an empty cache."""
    monkeypatch.setenv("NPUC_CACHE", str(tmp_path_factory.mktemp("cache")))
