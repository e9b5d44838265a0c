import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from experiments import experiment, observations
from labelleak.lab.datasets import load
from labelleak.lab.definition import Batch, Network, Training
from labelleak.lab.materials import dataset_of, network_of, training_of
from labelleak.lab.pretraining import training_samples
from labelleak.lab.ranges import ALL, DEVELOPMENT, EVALUATION, RANGES, range_of
from labelleak.lab.schedule import Schedule
from labelleak.lab.seeds import derive_seed
from labelleak.lab.simulated_client import draw_samples
from labelleak.lab.trial import run_trial

PURPOSES = st.lists(st.integers(0, 2**63) | st.text("abc"), min_size=1, max_size=3)


@given(PURPOSES, PURPOSES)
def test_ranges_share_no_seed_that_a_generator_could_take_for_the_same(one, other):
    """Torch's generator on the CPU takes the last 32 bits of a seed."""
    development, evaluation = DEVELOPMENT.derive(*one), EVALUATION.derive(*other)
    assert development % 2**32 != evaluation % 2**32
    assert range_of(development) is DEVELOPMENT
    assert range_of(evaluation) is EVALUATION
    assert ALL.derive(*one) == derive_seed(*one)


def test_a_seed_outside_its_range_cannot_be_drawn():
    for one in RANGES.values():
        assert range_of(one.numbered(13)) is one
        with pytest.raises(ValueError, match=f"outside the range '{one.name}'"):
            one.numbered(one.seeds.stop - one.seeds.start)
        with pytest.raises(ValueError, match="must be 0 to"):
            one.numbered(-1)


@given(st.lists(st.integers(0, 3), max_size=40))
def test_every_sample_is_in_one_of_the_two_ranges(labels):
    labels = torch.tensor(labels, dtype=torch.int64)
    development, evaluation = DEVELOPMENT.samples(labels), EVALUATION.samples(labels)
    both = torch.cat([development, evaluation]).sort().values
    assert torch.equal(both, torch.arange(len(labels)))
    assert torch.equal(ALL.samples(labels), torch.arange(len(labels)))
    for label in range(4):
        number = int((labels == label).sum())
        assert int((labels[development] == label).sum()) == (number + 1) // 2


STAGE = Training(unit="iterations", steps=2, total=2, batch_size=8, seed=5)


@pytest.mark.parametrize("name", ["development", "evaluation"])
def test_an_experiment_takes_everything_from_its_range(name):
    own = RANGES[name]
    e = experiment(range=name, training=STAGE, auxiliary_per_class=2)
    for split in ("train", "test"):
        data, whole = dataset_of(e, split, None), load("mnist-sample", split=split)
        assert data.name == f"mnist-sample-{name}"
        assert torch.equal(data.images, whole.images[own.samples(whole.labels)])
    assert network_of(e).seed == own.numbered(13)
    training = training_of(e)
    assert training.seed == own.numbered(5)
    samples = training_samples(training, dataset_of(e, "train", None))
    order = Schedule(training, samples).order(0)
    own_order = torch.Generator().manual_seed(own.derive(own.numbered(5), "order", 0))
    assert torch.equal(order, samples[torch.randperm(len(samples), generator=own_order)])


def test_a_trial_of_the_evaluation_range_is_drawn_from_it():
    e = experiment(range="evaluation", network=Network(name="fcn-3", seed="per-trial"))
    assert run_trial(e, 1)["data"]["name"] == "mnist-sample-evaluation"
    assert network_of(e, 7).seed == 7
    (seen,) = observations(e, 1)
    data = dataset_of(e, "train", None)
    drawn = draw_samples(e, data, lambda what: EVALUATION.derive(0, 1, what), "cpu")
    logits = seen.model(drawn.inputs())
    loss = torch.nn.functional.cross_entropy(logits, data.labels[drawn.indices])
    weight = torch.autograd.grad(loss, list(seen.model.parameters())[-2])[0]
    torch.testing.assert_close(seen.gradient.weight, weight)


def test_a_data_set_with_one_sample_of_each_class_has_no_ranges(tmp_path):
    for label in "ab":
        (tmp_path / "train" / label).mkdir(parents=True)
        Image.new("RGB", (40, 40)).save(tmp_path / "train" / label / "0.png")
    e = experiment(data="folder", image_size=32, range="evaluation", batch=Batch(size=1))
    with pytest.raises(ValueError, match="cannot be in two ranges: write range = "):
        dataset_of(e, "train", tmp_path)
