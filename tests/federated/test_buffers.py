import pytest
import torch

from labelleak.federated.buffers import integers_in, read_buffers

COUNTER = "norm.num_batches_tracked"


def state(**tensors):
    named = {name.replace("__", "."): torch.as_tensor(value) for name, value in tensors.items()}
    return {"fc.weight": torch.zeros(2, 2), **named}


def read(before, after):
    return read_buffers(integers_in(before), after)


def test_what_batchnorm_counted():
    before = state(a__num_batches_tracked=3, b__num_batches_tracked=3, c__num_batches_tracked=0)
    after = state(a__num_batches_tracked=8, b__num_batches_tracked=8, c__num_batches_tracked=0)
    found = read(before, after)
    assert (found.steps, found.problem, found.notes) == (5, None, ())
    assert [(leak.what, leak.where) for leak in found.leaks] == [
        ("number of local steps", "a.num_batches_tracked")
    ]


def test_layers_that_do_not_agree():
    before = state(a__num_batches_tracked=0, b__num_batches_tracked=0)
    found = read(before, state(a__num_batches_tracked=5, b__num_batches_tracked=10))
    assert (found.steps, found.problem) == (None, None)
    assert found.notes == ("BatchNorm layers counted 5 to 10 local steps: none is used",)


@pytest.mark.parametrize("after", [3, 2, 0])
def test_a_counter_that_does_not_grow_says_nothing(after):
    found = read(state(**{COUNTER: 3}), state(**{COUNTER: after}))
    assert (found.steps, found.problem, found.leaks) == (None, None, ())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("after", [7.0, 7 + 2 / 3])
def test_the_average_of_counters_has_a_fraction(after, dtype):
    before = state(**{COUNTER: torch.tensor(2 + 2 / 3, dtype=dtype)})
    assert read(before, state(**{COUNTER: torch.tensor(after, dtype=dtype)})).steps == 5


@pytest.mark.parametrize("value", [2**40, -1, 100_004, 1.5, float("nan"), float("inf"), 1j])
def test_what_is_no_count(value):
    found = read(state(**{COUNTER: 3}), state(**{COUNTER: value}))
    assert found.steps is None
    assert found.problem == f"no count of local steps: {COUNTER}"


def test_other_integers_must_stay():
    before = state(ids=[0, 1, 2], mask=[True, False])
    assert read(before, state(ids=[0, 1, 2], mask=[True, False])).problem is None
    assert read(before, state(ids=torch.arange(3.0), mask=[True, False])).problem is None
    found = read(before, state(ids=[0, 1, 3], mask=[True, True]))
    assert found.problem == "integers that are not those received: ids, mask"


@pytest.mark.parametrize("value", [torch.zeros(3).to("meta"), torch.eye(3).to_sparse()[0]])
def test_tensors_that_cannot_be_compared(value):
    found = read(state(ids=[0, 1, 2]), {"ids": value})
    assert found.problem == "integers that are not those received: ids"


def test_what_is_missing_or_of_another_shape_is_told_elsewhere():
    before = state(ids=[0, 1], **{COUNTER: 3})
    assert read(before, {"ids": torch.zeros(3), COUNTER: None}).problem is None


def test_copies_are_kept_of_integers_alone():
    before = state(ids=[0, 1], **{COUNTER: 3})
    kept = integers_in(before)
    assert set(kept) == {"ids", COUNTER}
    before["ids"] += 1
    assert kept["ids"].tolist() == [0, 1]
