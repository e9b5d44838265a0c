from dataclasses import replace

import pytest
import torch

from labelleak.attacks import restore
from labelleak.attacks.inputs import dummies
from labelleak.attacks.probe import probe
from labelleak.attacks.published.zlg import scatter
from labelleak.errors import InvalidObservation, MissingKnowledge
from labelleak.observation import Auxiliary, HeadGradient
from labelleak.restoration import Flag
from synthetic import one_embedding, rng, untrained

ATTACKS = ("zlg", "zlg-plus", "dimitrov")


def by_hand(batch, inputs, weight=None, bias=None):
    """Mean prediction and mean sum of the embeddings, one sample at a time."""
    weight, bias = (
        weight if weight is not None else batch.weight,
        (bias if bias is not None else batch.bias),
    )
    prediction, activity = torch.zeros(len(weight)).double(), 0.0
    for row in inputs.double():
        prediction += torch.softmax(weight @ row + bias, 0) / len(inputs)
        activity += float(row.sum()) / len(inputs)
    return prediction, activity


def counts(batch, prediction, activity):
    size, sums = len(batch.labels), batch.gradient().weight.sum(dim=1)
    return torch.stack([size * (prediction[j] - sums[j] / activity) for j in range(len(sums))])


def observed(batch, **knowledge):
    return batch.observe(
        **{
            "model": batch.model(),
            "auxiliary": batch.auxiliary(),
            "after": batch.after(0.5),
            **knowledge,
        }
    )


@pytest.mark.parametrize("seed", range(3))
def test_zlg_is_the_published_formula(seed):
    batch = untrained(8, 12, 20, seed)
    found = restore(observed(batch, auxiliary=None, input_shape=(12,)), "zlg", inputs="ones")
    torch.testing.assert_close(found.raw, counts(batch, *by_hand(batch, torch.ones(1, 12))))
    noise = torch.randn(32, 12, generator=rng())
    found = restore(observed(batch), "zlg", samples=32)
    torch.testing.assert_close(found.raw, counts(batch, *by_hand(batch, noise)))


@pytest.mark.parametrize("seed", range(3))
def test_zlg_plus_is_the_published_formula(seed):
    batch = untrained(8, 12, 20, seed)
    found = restore(observed(batch), "zlg-plus")
    torch.testing.assert_close(found.raw, counts(batch, *by_hand(batch, batch.auxiliary().inputs)))
    assert int(found.counts.sum()) == 20


@pytest.mark.parametrize("steps", ["all", "first", "last"])
def test_dimitrov_is_the_published_formula(steps):
    batch = untrained(8, 12, 20)
    after = batch.after(0.5)
    ones = torch.ones(2, 12)
    start = by_hand(batch, ones)
    end = by_hand(batch, ones, after["fc.weight"], after["fc.bias"])
    raws = []
    for step in {"all": range(5), "first": [0], "last": [4]}[steps]:
        share = step / 5
        prediction = (1 - share) * start[0] + share * end[0]
        raws.append(counts(batch, prediction, (1 - share) * start[1] + share * end[1]))
    found = restore(
        observed(batch, batch_size=4, local_steps=5), "dimitrov", steps=steps, inputs="ones"
    )
    torch.testing.assert_close(found.raw, sum(raws) / len(raws))


def test_dimitrov_on_one_step_is_zlg():
    batch = untrained(8, 12, 20)
    torch.testing.assert_close(
        restore(observed(batch), "dimitrov").raw, restore(observed(batch), "zlg").raw
    )


def test_a_case_worked_by_hand():
    """A head of zeros predicts 1/2, the embedding is 2: one sample of class 0, three of class 1."""
    batch = untrained(2, 1, 4)
    batch.weight.zero_()
    batch.bias.zero_()
    gradient = HeadGradient(torch.tensor([[0.5], [-0.5]], dtype=torch.float64))
    auxiliary = Auxiliary(torch.tensor([[1.0], [3.0]]), torch.tensor([0, 0]))
    observation = batch.observe(gradient, model=batch.model(), auxiliary=auxiliary, bias=False)
    assert restore(observation, "zlg-plus").counts.tolist() == [1, 3]


@pytest.mark.parametrize("seed", range(5))
def test_one_embedding_for_all_is_restored(seed):
    batch = one_embedding(10, 16, 40, seed)
    auxiliary = Auxiliary(batch.embeddings[:1], batch.labels[:1])
    assert torch.equal(
        restore(observed(batch, auxiliary=auxiliary), "zlg-plus").counts, batch.counts
    )


@pytest.mark.parametrize("attack", ATTACKS)
def test_without_a_batch_size_there_are_shares(attack):
    batch = untrained(8, 12, 20)
    known, unknown = observed(batch), observed(batch, batch_size=None)
    found = restore(unknown, attack)
    assert found.counts is None
    torch.testing.assert_close(found.raw * 20, restore(known, attack).raw)
    assert float(found.proportions.sum()) == pytest.approx(1.0)


def test_without_a_batch_size_single_inputs_show_how_far_shares_may_be_off():
    batch = untrained(8, 12, 20, spread=0.01)
    batch.labels %= 2
    alike = Auxiliary(batch.embeddings[:8], torch.arange(8))
    found = restore(observed(batch, batch_size=None, auxiliary=alike), "zlg-plus")
    assert torch.equal(found.present, batch.present)
    assert Flag.SET_NOT_SURE not in found.flags
    lengths = torch.linspace(0.2, 2.0, 8, dtype=torch.float64)[:, None]
    apart = replace(alike, inputs=alike.inputs * lengths)
    found = restore(observed(batch, batch_size=None, auxiliary=apart), "zlg-plus")
    assert Flag.SET_NOT_SURE in found.flags


@pytest.mark.parametrize("attack", ["zlg", "dimitrov"])
def test_inputs_that_are_all_the_same_show_no_error(attack):
    seen = observed(untrained(8, 12, 20), batch_size=None)
    assert Flag.SET_NOT_SURE in restore(seen, attack, inputs="ones").flags
    assert Flag.SET_NOT_SURE in restore(seen, attack, samples=1).flags


def test_the_error_is_that_of_one_input():
    batch = untrained(8, 12, 20)
    seen = observed(batch, batch_size=None)
    inputs = dummies(seen, "random", 64)
    singles = torch.stack([counts(batch, *by_hand(batch, row[None])) / 20 for row in inputs])
    errors = scatter(seen, inputs, probe(seen, inputs))
    torch.testing.assert_close(errors, singles.std(dim=0) * 1.9983405 / 1.9599640)


@pytest.mark.parametrize("attack", ["zlg", "dimitrov"])
def test_inputs_without_a_trace_are_refused(attack):
    batch = untrained(8, 12, 20)
    with pytest.raises(MissingKnowledge, match="leave no trace at the head"):
        restore(observed(batch), attack, inputs="zeros")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda after: after.pop("fc.bias"), "has no fc.bias"),
        (lambda after: after.update({"fc.weight": torch.ones(3, 3)}), "another shape"),
        (lambda after: after["fc.bias"].fill_(torch.nan), "NaN or infinite logits"),
    ],
)
def test_a_client_that_sends_another_model_is_refused(change, message):
    batch = untrained(8, 12, 20)
    after = batch.after(0.5)
    change(after)
    with pytest.raises(InvalidObservation, match=message) as refused:
        restore(observed(batch, after=after), "dimitrov")
    assert "\n" not in str(refused.value)


def test_steps_that_there_are_not(unchecked):
    with pytest.raises(ValueError, match="steps 'middle': use 'all', 'first', 'last'"):
        restore(observed(untrained(8, 12, 20)), "dimitrov", steps="middle")
