"""Several state dicts in one file, one of which bears the usual name."""

import numpy as np
import pytest
import torch
from update_files import save

from labelleak.errors import AmbiguousHead, InvalidObservation
from labelleak.training import LocalTraining
from labelleak.updates import observe_update, open_tensors
from labelleak.updates.reading import read_observation

KEYS = ("model", "state_dict", "net")


def tensors(seed):
    generator = torch.Generator().manual_seed(seed)
    shapes = {"body.weight": (8, 6), "body.bias": (8,), "fc.weight": (5, 8), "fc.bias": (5,)}
    return {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}


def read(*paths, **told):
    training = LocalTraining(learning_rate=0.1, batch_size=4, steps=1)
    return read_observation(*paths, kind="weights", training=training, **told)


def written(tmp_path, before, after):
    return [save(before, tmp_path / "before.pt"), save(after, tmp_path / "after.pt")]


def expected(old, new):
    return observe_update(None, tensors(old), tensors(new), learning_rate=0.1).gradient.weight


@pytest.mark.parametrize("key", KEYS)
@pytest.mark.parametrize("other", ["model_ema", "ema", "student", "online"])
def test_the_other_one_is_read_where_only_it_moved(tmp_path, key, other):
    paths = written(
        tmp_path, {key: tensors(0), other: tensors(1)}, {key: tensors(0), other: tensors(2)}
    )
    seen = read(*paths)
    assert seen.head.name == f"{other}.fc"
    assert torch.equal(seen.gradient.weight, expected(1, 2))


@pytest.mark.parametrize("key", KEYS)
def test_the_usual_one_is_read_where_both_moved_or_only_it(tmp_path, key):
    for ema in (1, 3):
        paths = written(
            tmp_path,
            {"model_ema": tensors(1), key: tensors(0)},
            {"model_ema": tensors(ema), key: tensors(2)},
        )
        seen = read(*paths)
        assert seen.head.name == f"{key}.fc"
        assert torch.equal(seen.gradient.weight, expected(0, 2))


def test_a_named_one_is_read_though_the_usual_one_moved(tmp_path):
    paths = written(
        tmp_path,
        {"model": tensors(0), "model_ema": tensors(1)},
        {"model": tensors(2), "model_ema": tensors(3)},
    )
    seen = read(*paths, head="model_ema.fc")
    assert seen.head.name == "model_ema.fc"
    assert torch.equal(seen.gradient.weight, expected(1, 3))
    assert torch.equal(read(*paths, head="model.fc").gradient.weight, expected(0, 2))
    with pytest.raises(AmbiguousHead, match=r"'absent\.fc' is not among the tensors"):
        read(*paths, head="absent.fc")


def test_others_of_which_two_moved_are_listed(tmp_path):
    before = {"model": tensors(0), "a": tensors(1), "b": tensors(2)}
    paths = written(tmp_path, before, {**before, "a": tensors(3), "b": tensors(4)})
    with pytest.raises(AmbiguousHead, match=r"2 copies of it changed, .*a\.fc .*, b\.fc"):
        read(*paths)


def test_none_that_moved_is_said_of_the_usual_one(tmp_path):
    before = {"model": tensors(0), "model_ema": tensors(1)}
    with pytest.raises(InvalidObservation, match="zero everywhere"):
        read(*written(tmp_path, before, before))


def test_one_file_may_have_only_one(tmp_path):
    several = {"model": tensors(2), "model_ema": tensors(3)}
    paths = written(tmp_path, tensors(0), several)
    assert torch.equal(read(*paths).gradient.weight, expected(0, 2))
    several["model"] = tensors(0)
    seen = read(*written(tmp_path, tensors(0), several))
    assert torch.equal(seen.gradient.weight, expected(0, 3))
    assert "model_ema" in seen.head.name


def test_arrays_in_order_are_those_of_the_usual_one(tmp_path):
    save({"model": tensors(0), "model_ema": tensors(1)}, tmp_path / "before.pt")
    np.savez(tmp_path / "after.npz", *(value.numpy() for value in tensors(2).values()))
    seen = read(tmp_path / "before.pt", tmp_path / "after.npz")
    assert torch.equal(seen.gradient.weight, expected(0, 2))


def test_a_file_alone_is_the_usual_one(tmp_path):
    path = save({"model_ema": tensors(1), "model": tensors(0)}, tmp_path / "before.pt")
    assert set(open_tensors(path).shapes) == {f"model.{name}" for name in tensors(0)}
