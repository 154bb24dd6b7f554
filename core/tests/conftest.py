"""Shared by core's tests: a cache of their own, so that nothing this user trained decides a test."""

import hypothesis
import pytest

hypothesis.settings.register_profile("defend", deadline=None)  # a busy machine is not a failure
hypothesis.settings.load_profile("defend")


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("DEFEND_CACHE_DIR", str(tmp_path / "own-cache"))
    monkeypatch.delenv("DEFEND_DATA_DIR", raising=False)
