import logging

import numpy as np
import pytest

from labelleak.lab.datasets import cache


class Builder:
    """Counts how often it had to build."""

    def __init__(self):
        self.built = 0

    def __call__(self):
        self.built += 1
        return {"numbers": np.arange(6).reshape(2, 3), "names": np.array(["a", "ä"])}


def test_the_second_time_it_is_read(monkeypatch, tmp_path):
    monkeypatch.setenv("LABELLEAK_CACHE", str(tmp_path / "new" / "folder"))
    build = Builder()
    for _ in range(2):
        arrays = cache.remembered("thing", ["a", 1], build)
        assert arrays["numbers"].tolist() == [[0, 1, 2], [3, 4, 5]]
        assert arrays["names"].tolist() == ["a", "ä"]
    assert build.built == 1
    (file,) = (tmp_path / "new" / "folder").iterdir()
    assert file.name.startswith("thing-")


@pytest.mark.parametrize("other", [["a", 2], ["b", 1], ["a"], ["a", 1, None], ["a1"]])
def test_another_fingerprint_is_another_thing(other):
    build = Builder()
    cache.remembered("thing", ["a", 1], build)
    cache.remembered("thing", other, build)
    assert build.built == 2


def test_names_that_are_no_text_are_no_problem():
    build = Builder()
    for _ in range(2):
        cache.remembered("thing", ["broken \udcff name"], build)
    assert build.built == 1


def test_a_cache_that_cannot_be_written_is_a_warning(monkeypatch, tmp_path, caplog):
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("LABELLEAK_CACHE", str(tmp_path / "file" / "cache"))
    build = Builder()
    with caplog.at_level(logging.WARNING):
        assert cache.remembered("thing", [], build)["numbers"].sum() == 15
        cache.remembered("thing", [], build)
    assert build.built == 2
    assert "going on without it" in caplog.text


def test_no_home_folder_is_a_warning(monkeypatch, caplog):
    def no_home():
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("LABELLEAK_CACHE")
    monkeypatch.setattr(cache.Path, "home", no_home)
    with caplog.at_level(logging.WARNING):
        assert cache.remembered("thing", [], Builder())["numbers"].sum() == 15
    assert "home directory" in caplog.text


def test_the_default_is_below_the_home_folder(monkeypatch, tmp_path):
    monkeypatch.delenv("LABELLEAK_CACHE")
    monkeypatch.setattr(cache.Path, "home", lambda: tmp_path)
    assert cache.cache_folder() == tmp_path / ".cache" / "labelleak"


@pytest.mark.parametrize("content", [b"", b"garbage", None])
def test_a_damaged_cache_file_is_made_again(monkeypatch, tmp_path, caplog, content):
    monkeypatch.setenv("LABELLEAK_CACHE", str(tmp_path))
    build = Builder()
    cache.remembered("thing", [], build)
    (file,) = tmp_path.iterdir()
    whole = file.read_bytes()
    file.write_bytes(whole[:-40] if content is None else content)
    with caplog.at_level(logging.WARNING):
        assert cache.remembered("thing", [], build)["numbers"].sum() == 15
    assert "cannot read the cache" in caplog.text
    assert file.read_bytes() == whole
    assert build.built == 2


def test_pickled_objects_are_not_read_from_the_cache(monkeypatch, tmp_path):
    monkeypatch.setenv("LABELLEAK_CACHE", str(tmp_path))
    build = Builder()
    cache.remembered("thing", [], build)
    (file,) = tmp_path.iterdir()
    with file.open("wb") as stream:
        np.savez(stream, numbers=np.array([{}], dtype=object))
    assert cache.remembered("thing", [], build)["numbers"].sum() == 15
    assert build.built == 2


def test_a_failed_write_leaves_nothing_behind(monkeypatch, tmp_path, caplog):
    def full(*_, **__):
        raise OSError("No space left on device")

    monkeypatch.setenv("LABELLEAK_CACHE", str(tmp_path))
    monkeypatch.setattr(cache.np, "savez", full)
    with caplog.at_level(logging.WARNING):
        cache.remembered("thing", [], Builder())
    assert "No space left" in caplog.text
    assert list(tmp_path.iterdir()) == []
