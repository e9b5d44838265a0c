import os
from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError
from torch import nn

from labelleak.errors import DataNotFound, LabelLeakError, UnreadableFile
from labelleak.lab import pretraining as module
from labelleak.lab.datasets import Dataset, load
from labelleak.lab.definition import Network, Training
from labelleak.lab.pretraining import (
    initial_network,
    is_trained,
    load_network,
    snapshot_path,
    train,
    training_samples,
)
from labelleak.lab.schedule import Schedule

FCN = Network(name="fcn-2")


@pytest.fixture(scope="module")
def digits():
    return load("mnist-sample")


def stage(steps, total=16, unit="iterations", **fields):
    given = {"batch_size": 16, "samples_per_class": 10, **fields}
    return Training(unit=unit, steps=steps, total=total, **given)


def weights(network, training, dataset):
    return load_network(network, training, dataset).state_dict()


def same(one, other):
    return all(torch.equal(one[name], other[name]) for name in one)


def kept():
    return sorted((Path(os.environ["LABELLEAK_CACHE"]) / "models").iterdir())


@pytest.mark.parametrize(("unit", "per_step"), [("iterations", 1), ("epochs", 6)])
def test_agrees_with_a_loop_of_pytorch_alone(digits, unit, per_step):
    """Optimizer and schedule by torch.optim; 100 samples make 6 batches of 16, 4 are left out."""
    steps = 8
    last = stage(steps, total=8, unit=unit, learning_rate=0.05)
    train(FCN, [last], digits)

    model = initial_network(FCN, digits)
    optimizer = torch.optim.SGD(
        model.parameters(), lr=0.05, momentum=0.9, nesterov=True, weight_decay=5e-4
    )
    drops = torch.optim.lr_scheduler.MultiStepLR(optimizer, [3, 5, 7], gamma=0.1)
    schedule = Schedule(last, training_samples(last, digits))
    batches = [part for epoch in range(steps) for part in schedule.order(epoch).split(16)[:6]]
    for iteration in range(steps * per_step):
        inputs, labels = digits.batch(batches[iteration])
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(inputs), labels).backward()
        optimizer.step()
        if (iteration + 1) % per_step == 0:
            drops.step()
    found = weights(FCN, last, digits)
    for name, value in model.state_dict().items():
        torch.testing.assert_close(found[name], value, rtol=1e-4, atol=1e-6)


def test_the_learning_rate_of_the_paper():
    """1000 iterations: 0.1, and a tenth from iterations 375, 625 and 875 on each."""
    full = Training(unit="iterations", steps=1000, total=1000)
    schedule = Schedule(full, torch.arange(60_000))
    for iteration, rate in ((0, 0.1), (374, 0.1), (375, 1e-2), (625, 1e-3), (875, 1e-4)):
        assert schedule.learning_rate(iteration) == pytest.approx(rate)
    epochs = Schedule(Training(unit="epochs", steps=100, total=100), torch.arange(50_000))
    assert epochs.per_epoch == 390
    assert epochs.learning_rate(37 * 390 - 1) == pytest.approx(0.1)
    assert epochs.learning_rate(37 * 390) == pytest.approx(0.01)


def test_every_epoch_has_every_sample_once_in_another_order(digits):
    last = stage(1)
    schedule = Schedule(last, training_samples(last, digits))
    first, second = schedule.order(0), schedule.order(1)
    assert first.sort().values.tolist() == training_samples(last, digits).tolist()
    assert first.tolist() != second.tolist()
    assert first.sort().values.equal(second.sort().values)


def test_samples_per_class(digits):
    some = training_samples(stage(1), digits)
    assert torch.bincount(digits.labels[some]).tolist() == [10] * 10
    assert torch.equal(some, training_samples(stage(9), digits))
    assert not torch.equal(some, training_samples(stage(1, seed=3), digits))
    for training in (None, stage(1, samples_per_class=None), stage(1, samples_per_class=10**6)):
        assert torch.equal(training_samples(training, digits), torch.arange(len(digits)))


def test_stages_are_those_of_one_run(digits):
    stages = [stage(s) for s in (0, 4, 8, 16)]
    train(FCN, stages, digits)
    together = [weights(FCN, s, digits) for s in stages]
    assert same(together[0], initial_network(FCN, digits).state_dict())
    assert len(kept()) == 3
    for path in kept():
        path.unlink()
    for s, expected in zip(stages, together, strict=True):
        train(FCN, [s], digits)  # each goes on from the one before
        assert same(weights(FCN, s, digits), expected)


def test_a_stage_before_others_does_not_disturb_them(digits):
    train(FCN, [stage(16)], digits)
    last = weights(FCN, stage(16), digits)
    train(FCN, [stage(4), stage(16)], digits)
    train(FCN, [stage(8)], digits)
    first = weights(FCN, stage(8), digits)
    for path in kept():
        path.unlink()
    train(FCN, [stage(8), stage(16)], digits)
    assert same(weights(FCN, stage(16), digits), last)
    assert same(weights(FCN, stage(8), digits), first)


class _Killed(BaseException):
    pass


def test_interrupted_it_goes_on_from_its_last_checkpoint(digits):
    train(FCN, [stage(16)], digits)
    expected = weights(FCN, stage(16), digits)
    kept()[0].unlink()

    def kill(done, total):
        if done == 11:
            raise _Killed

    with pytest.raises(_Killed):
        train(FCN, [stage(16)], digits, progress=kill, checkpoint_seconds=0.0)
    assert not is_trained(FCN, stage(16), digits)
    seen = []
    train(FCN, [stage(16)], digits, progress=lambda done, total: seen.append((done, total)))
    assert seen == [(done, 16) for done in range(11, 17)]
    assert same(weights(FCN, stage(16), digits), expected)
    assert [path.name for path in kept()] == [snapshot_path(FCN, stage(16), digits).name]


def test_dropout_draws_the_same_after_an_interruption(digits, monkeypatch):
    def with_dropout(network, dataset):
        torch.manual_seed(0)
        return nn.Sequential(nn.Flatten(), nn.Dropout(), nn.Linear(784, 10))

    monkeypatch.setattr(module, "initial_network", with_dropout)
    train(FCN, [stage(8)], digits)
    expected = weights(FCN, stage(8), digits)
    kept()[0].unlink()
    for s in (3, 8):
        train(FCN, [stage(s)], digits)
    assert same(weights(FCN, stage(8), digits), expected)


def test_the_callers_randomness_and_threads_stay(digits):
    torch.manual_seed(5)
    before, threads = torch.get_rng_state(), torch.get_num_threads()
    train(FCN, [stage(2)], digits)
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.get_num_threads() == threads


def test_what_was_trained_is_not_trained_again(digits):
    train(FCN, [stage(2)], digits)
    stamp = kept()[0].stat().st_mtime_ns
    train(FCN, [stage(2), stage(0)], digits, progress=lambda done, total: pytest.fail("trained"))
    assert kept()[0].stat().st_mtime_ns == stamp


def test_files_are_told_apart_by_all_that_the_weights_depend_on(digits):
    other = Dataset(
        digits.name, digits.images, digits.labels.flip(0), digits.classes, None, digits.mean,
        digits.std,
    )  # fmt: skip
    paths = {
        snapshot_path(FCN, stage(2), digits),
        snapshot_path(FCN, stage(3), digits),
        snapshot_path(FCN, stage(2, total=17), digits),
        snapshot_path(FCN, stage(2, seed=1), digits),
        snapshot_path(FCN, stage(2, learning_rate=1.0), digits),
        snapshot_path(Network(name="fcn-2", seed=1), stage(2), digits),
        snapshot_path(FCN, stage(2), load("mnist-sample", split="test")),
        snapshot_path(FCN, stage(2), other),
    }
    assert len(paths) == 8


def test_a_stage_that_was_not_trained_is_named(digits):
    with pytest.raises(DataNotFound, match="fcn-2 after 2 iterations on mnist-sample is not at"):
        load_network(FCN, stage(2), digits)


def test_a_broken_snapshot_is_named(digits):
    path = snapshot_path(FCN, stage(2), digits)
    path.parent.mkdir(parents=True)
    path.write_bytes(b"no tensors")
    with pytest.raises(UnreadableFile, match="is not a snapshot of a network: delete it"):
        load_network(FCN, stage(2), digits)
    with pytest.raises(UnreadableFile, match="is not a snapshot of a network: delete it"):
        train(FCN, [stage(4)], digits)


def test_a_snapshot_of_another_network_is_named(digits):
    train(FCN, [stage(2)], digits)
    kept()[0].rename(snapshot_path(Network(name="fcn-3"), stage(2), digits))
    with pytest.raises(UnreadableFile, match="holds another network"):
        load_network(Network(name="fcn-3"), stage(2), digits)


def test_a_run_that_diverges_says_so(digits):
    with pytest.raises(LabelLeakError, match="training fcn-2 diverged: the loss is"):
        train(FCN, [stage(16, learning_rate=1e20)], digits)
    assert not is_trained(FCN, stage(16, learning_rate=1e20), digits)


def test_stages_of_different_runs_are_refused(digits):
    with pytest.raises(ValueError, match="stages of one run"):
        train(FCN, [stage(2), stage(3, total=17)], digits)


def test_a_cache_that_cannot_be_written(digits, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("LABELLEAK_CACHE", str(tmp_path / "file"))
    with pytest.raises(UnreadableFile, match="cannot be made: Not a directory"):
        train(FCN, [stage(1)], digits)


def test_a_snapshot_that_cannot_be_written(digits, monkeypatch):
    def fill(tensors, path, metadata):
        path.write_text("half")
        raise SafetensorError("I/O error: No space left on device")

    monkeypatch.setattr(module, "save_file", fill)
    with pytest.raises(UnreadableFile, match=r"cannot be written: .*No space left"):
        train(FCN, [stage(1)], digits)
    assert kept() == []
