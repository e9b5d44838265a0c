import pytest


@pytest.fixture(autouse=True)
def _isolated(tmp_path_factory, monkeypatch):
    """No test sees this machine's data, or leaves anything in its cache."""
    monkeypatch.delenv("LABELLEAK_DATA", raising=False)
    monkeypatch.setenv("LABELLEAK_CACHE", str(tmp_path_factory.mktemp("cache")))
