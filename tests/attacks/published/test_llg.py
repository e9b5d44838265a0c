import pytest
import torch

from labelleak.attacks import restore
from labelleak.errors import MissingKnowledge
from labelleak.observation import Auxiliary, HeadGradient
from labelleak.restoration import Flag
from synthetic import Batch, emitted_by_hand, one_embedding, rng, untrained


def rows(batch):
    return batch.gradient().weight.sum(dim=1).tolist()


def dummy_row_sums(batch, inputs, label, size):
    """Row sums of a batch of the given inputs, all labeled alike, by autograd."""
    labels = torch.full((len(inputs),), label)
    made_up = Batch(batch.weight, batch.bias, inputs.double(), labels)
    return made_up.autograd().weight.sum(dim=1).tolist()


def with_dummies(batch, inputs_of):
    """LLG* and LLG+ as published, class by class."""
    classes, size = len(batch.weight), len(batch.labels)
    impact, offsets = 0.0, [0.0] * classes
    for label in range(classes):
        sums = dummy_row_sums(batch, inputs_of(label), label, size)
        impact += sums[label] / classes / size
        for other in range(classes):
            if other != label:
                offsets[other] += sums[other] / (classes - 1)
    impact *= 1 + 1 / classes
    return emitted_by_hand(rows(batch), [impact] * classes, size, offsets)


def observed(batch, **knowledge):
    return batch.observe(model=batch.model(), **knowledge)


@pytest.mark.parametrize("seed", range(10))
def test_llg_is_the_published_algorithm(seed):
    batch = untrained(12, 20, 30, seed, spread=0.5)
    sums = rows(batch)
    impact = (1 + 1 / 12) / 30 * sum(value for value in sums if value < 0)
    found = restore(batch.observe(), "llg")
    assert found.counts.tolist() == emitted_by_hand(sums, [impact] * 12, 30, [0.0] * 12)


@pytest.mark.parametrize("inputs", ["random", "zeros", "ones"])
@pytest.mark.parametrize("seed", range(4))
def test_llg_star_is_the_published_algorithm(seed, inputs):
    batch = untrained(12, 20, 30, seed, spread=0.5)
    made = {
        "random": torch.randn(16, 20, generator=rng()),
        "zeros": torch.zeros(3, 20),
        "ones": torch.ones(3, 20),
    }
    found = restore(observed(batch, input_shape=(20,)), "llg-star", inputs=inputs, samples=16)
    assert found.counts.tolist() == with_dummies(batch, lambda label: made[inputs])


@pytest.mark.parametrize("seed", range(4))
def test_llg_plus_is_the_published_algorithm(seed):
    batch = untrained(12, 20, 30, seed, spread=0.5)
    auxiliary = batch.auxiliary(per_class=4)
    found = restore(observed(batch, auxiliary=auxiliary), "llg-plus")
    expected = with_dummies(batch, lambda c: auxiliary.inputs[auxiliary.labels == c])
    assert found.counts.tolist() == expected


def test_llg_by_hand():
    """Row sums (-3, -1, 2, 2): the impact is (1 + 1/4) / 5 * -4 = -1, so it emits 0, 1, 0, 0, 0."""
    gradient = HeadGradient(torch.tensor([[-3.0], [-1.0], [2.0], [2.0]], dtype=torch.float64))
    batch = untrained(4, 1, 5)
    found = restore(batch.observe(gradient, bias=False), "llg")
    assert found.counts.tolist() == [4, 1, 0, 0]


def test_one_embedding_for_all_is_restored_by_auxiliary_data():
    """The impact is exact but for the factor 1 + 1/C."""
    batch = one_embedding(20, 30, 40)
    inputs = batch.embeddings[:1].expand(20, -1)
    auxiliary = Auxiliary(inputs, torch.arange(20))
    found = restore(observed(batch, auxiliary=auxiliary), "llg-plus")
    assert int((found.counts - batch.counts).abs().sum()) <= 4


ATTACKS = ("llg", "llg-star", "llg-plus", "e2egi", "llbg", "llbg-aux", "ebi")


def everything(batch, **knowledge):
    return observed(batch, auxiliary=batch.auxiliary(), **knowledge)


@pytest.mark.parametrize("attack", ATTACKS)
def test_several_steps_are_one_batch_of_all_their_samples(attack):
    batch = untrained(9, 10, 24, 3, spread=0.5)
    one = restore(everything(batch), attack)
    six = restore(everything(batch, batch_size=4, local_steps=6), attack)
    twice = restore(everything(batch, batch_size=8, local_steps=6, local_epochs=2), attack)
    assert torch.equal(one.counts, six.counts)
    assert torch.equal(one.counts, twice.counts)


@pytest.mark.parametrize("attack", ATTACKS)
@pytest.mark.parametrize(
    "loss", [{"label_smoothing": 0.1}, {"class_weights": torch.ones(9)}], ids=str
)
def test_other_losses_are_refused(attack, loss):
    batch = untrained(9, 10, 24)
    with pytest.raises(MissingKnowledge, match="plain cross-entropy loss"):
        restore(everything(batch, **loss), attack)


@pytest.mark.parametrize("attack", ["llg-plus", "llbg-aux"])
def test_every_class_must_be_in_the_auxiliary_data(attack):
    batch = untrained(5, 10, 8)
    auxiliary = Auxiliary(torch.ones(3, 10), torch.tensor([0, 2, 3]))
    message = r"no sample of 2 classes \(1, 4\): it needs at least one of every class"
    with pytest.raises(MissingKnowledge, match=message):
        restore(observed(batch, auxiliary=auxiliary), attack)


def test_more_negative_rows_than_samples_are_flagged():
    gradient = HeadGradient(torch.tensor([[-3.0], [-1.0], [-2.0], [6.0]], dtype=torch.float64))
    found = restore(untrained(4, 1, 2).observe(gradient, bias=False), "llg")
    assert found.counts.tolist() == [1, 0, 1, 0]
    assert Flag.TOTAL_DOES_NOT_FIT in found.flags


@pytest.mark.parametrize("attack", ["llg-star", "zlg"])
@pytest.mark.parametrize(
    ("wrong", "message"),
    [({"inputs": "noise"}, "dummies 'noise'"), ({"samples": 0}, "0 dummy inputs")],
)
def test_dummies_that_there_are_not(attack, wrong, message, unchecked):
    batch = untrained(5, 10, 8)
    with pytest.raises(ValueError, match=message):
        restore(observed(batch, input_shape=(10,)), attack, **wrong)


def test_many_labels_are_emitted_fast():
    """4096 labels of 1000 classes: a heap takes milliseconds, an argmin per label seconds."""
    batch = untrained(1000, 8, 4096)
    assert int(restore(batch.observe(), "llg").counts.sum()) == 4096
