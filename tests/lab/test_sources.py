import pytest

from labelleak.errors import DataNotFound, UnreadableFile
from labelleak.lab import sources
from labelleak.lab.sources import Source, find_sources


@pytest.fixture
def no_hub(monkeypatch, tmp_path):
    monkeypatch.setenv("LABELLEAK_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("LABELLEAK_DATA", raising=False)


def test_data_sets_are_found_or_replaced(no_hub, tmp_path):
    assert find_sources(tmp_path) == {
        "mnist": Source("mnist-sample"),
        "cifar100": None,
        "imagenet": None,
    }
    photographs = tmp_path / "imagenet" / "val"
    for number in range(1000):
        folder = photographs / f"n{number:08}"
        folder.mkdir(parents=True)
        (folder / "0.JPEG").touch()
    assert find_sources(tmp_path)["imagenet"] == Source("imagenet", "test", replacement=True)
    photographs.rename(tmp_path / "imagenet" / "train")
    assert find_sources(tmp_path)["imagenet"] == Source("imagenet")


def test_a_broken_data_set_is_not_replaced(no_hub, tmp_path):
    (tmp_path / "mnist").mkdir()
    (tmp_path / "mnist" / "train-images-idx3-ubyte").write_bytes(b"\0\0")
    (tmp_path / "mnist" / "train-labels-idx1-ubyte").write_bytes(b"\0\0")
    with pytest.raises(UnreadableFile):
        find_sources(tmp_path)


def test_imagenet_is_never_looked_for_on_the_hub(no_hub, monkeypatch):
    asked = []

    def load(name, *, split, data_dir):
        asked.append((name, data_dir))
        raise DataNotFound(name)

    monkeypatch.setattr(sources, "load", load)
    assert set(find_sources(None).values()) == {None}
    assert {name for name, _ in asked} == {
        "mnist", "mnist-sample", "cifar100", "tiny-imagenet-100"
    }  # fmt: skip
    monkeypatch.setenv("LABELLEAK_DATA", "/photos")
    asked.clear()
    find_sources(None)
    assert ("imagenet", "/photos") in asked
    assert ("cifar100", None) in asked
