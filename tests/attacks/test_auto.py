"""What auto chooses, on observations of which it is known what is right."""

import importlib
import math
from dataclasses import replace
from functools import partial

import pytest
import torch

from labelleak import defenses
from labelleak.attacks import estimates, restore
from labelleak.attacks.auto import affordable, automatic
from labelleak.attacks.registry import run_attack
from labelleak.errors import MissingKnowledge
from labelleak.restoration import Flag, Restoration
from labelleak.training import LocalTraining
from synthetic import Batch, one_embedding, rng, untrained

auto = importlib.import_module("labelleak.attacks.auto")

SMALL = untrained(20, 40, 6)
# More samples than features: no attack by rank.
LARGE = untrained(10, 8, 64, spread=0.3)
EVEN = one_embedding(10, 30, 24)


def trained(classes=10, size=64, seed=0):
    """Samples that the head is sure of, mostly rightly, so that no mean embedding explains them."""
    batch = untrained(classes, 40, size, seed)
    own = 4.0 * torch.randn(classes, 40, generator=rng(seed)).double() / 40**0.5
    noise = torch.randn(size, 40, generator=rng(seed + 1)).double()
    return replace(batch, weight=own * 2.0, embeddings=own[batch.labels] * 1.5 + 1.5 * noise)


def accuracy(found, batch):
    return int(torch.minimum(found.counts, batch.counts).sum()) / len(batch.labels)


def test_a_certificate_ends_it():
    found = restore(SMALL.observe())
    assert (found.attack, found.certified) == ("exact", True)
    assert torch.equal(found.counts, SMALL.counts)
    assert found.flags == ()


def test_samples_that_are_all_found_tell_the_batch_size_too():
    found = restore(SMALL.observe(batch_size=None))
    assert found.attack == "exact"
    assert not found.certified
    assert torch.equal(found.counts, SMALL.counts)


def test_where_there_can_be_none_the_most_precise_estimate_speaks():
    found = restore(EVEN.observe())
    assert found.attack == "pooled"
    assert torch.equal(found.counts, EVEN.counts)
    assert found.flags == ()


def test_a_network_that_has_learned_is_left_to_the_bias_gradient():
    """The others' mean prediction is far from even there, and their counts are worse."""
    better, doubted = 0, 0
    for seed in range(6):
        batch = trained(seed=seed)
        found = restore(batch.observe(), time_limit=0.5)
        assert found.attack == "mbi"
        doubted += Flag.ATTACKS_DISAGREE in found.flags
        better += accuracy(found, batch) > accuracy(restore(batch.observe(), "ilrg"), batch)
    assert better == 6
    assert doubted == 6


@pytest.mark.parametrize("share", [0.5, 0.1])
def test_clipping_is_seen_and_undone(share):
    norm = float(EVEN.gradient().weight.norm())
    clip = partial(defenses.clip_norm, max_norm=share * norm)
    clipped = defenses.defend(EVEN.observe(), clip)
    found = restore(clipped)
    assert Flag.DEFENCE_SUSPECTED in found.flags
    assert torch.equal(found.counts, EVEN.counts)
    # What iLRG makes of the gradient as it came contradicts nothing.
    assert Flag.ATTACKS_DISAGREE not in found.flags
    assert not torch.equal(restore(clipped, "pooled").counts, EVEN.counts)


def test_no_count_is_below_what_is_certain():
    """The search leaves samples that are certain, whatever the estimate says of their class."""
    batch = EVEN
    certain = batch.counts.clone()
    certain[certain > 0] -= 1

    def run(observation, name, **_):
        if name == "exact":
            return Restoration(
                attack="exact",
                present=certain > 0,
                certain=certain,
                embeddings=batch.embeddings[:1],
                embedding_labels=batch.labels[:1],
                invisible=0,
                flags=(Flag.INCOMPLETE,),
            )
        if name == "mbi":
            wrong = batch.counts.roll(3)
            return Restoration(wrong > 0, wrong, attack="mbi")
        raise MissingKnowledge("not this one")

    # A gradient of 25 samples or more of ten classes would have no room for a search.
    seen = batch.observe(batch_size=None)
    object.__setattr__(seen, "training", LocalTraining(batch_size=24, steps=1))
    monkey = pytest.MonkeyPatch()
    monkey.setattr(auto, "_search", lambda *_: run(None, "exact"))
    monkey.setattr(auto, "run_attack", run)
    found = automatic(seen)
    monkey.undo()
    assert found.attack == "mbi"
    assert bool((found.counts >= certain).all())
    assert int(found.counts.sum()) == 24
    assert Flag.INCOMPLETE in found.flags
    assert torch.equal(found.certain, certain)


def test_classes_that_are_certain_are_there_without_a_batch_size_too():
    """The search found a sample of class 3, of which the shares show nothing."""
    batch = one_embedding(10, 30, 24)
    batch.labels %= 2
    seen = batch.observe(batch_size=None)
    estimate = restore(seen, "ilrg")
    certain = torch.zeros(10, dtype=torch.int64).index_fill(0, torch.tensor([3]), 1)
    partial = replace(estimate, certain=certain, embeddings=batch.embeddings[:1])
    found = auto._with_found(seen, estimate, partial, clear=False)
    assert found.present.nonzero()[:, 0].tolist() == [0, 1, 3]


def test_among_shares_a_set_that_is_sure_speaks_first():
    seen = EVEN.observe(batch_size=None)
    sure, pooled = restore(seen, "ilrg"), restore(seen, "pooled")
    assert Flag.SET_NOT_SURE not in sure.flags
    shares = replace(pooled, counts=None, raw=pooled.proportions)
    unsure = replace(shares, flags=(Flag.SET_NOT_SURE,))
    ranks = [estimates.judged(seen, one).distance for one in (shares, sure, unsure)]
    assert ranks == sorted(set(ranks))


@pytest.mark.parametrize("size", [1, 8, 40])
def test_an_audit_without_a_batch_size_is_right_or_says_that_it_is_not_sure(size):
    """Heads without any other layer: few and many samples, of few and of many classes."""
    unflagged, right = 0, 0
    for seed in range(12):
        batch = untrained((2, 3, 10, 30)[seed % 4], 40, size, seed, spread=0.2)
        batch.labels %= (1, 2, 30)[seed % 3]
        found = restore(batch.observe(batch_size=None), time_limit=0.5)
        if not found.unreliable:
            unflagged += 1
            right += torch.equal(found.present, batch.present)
    assert unflagged >= 3
    assert right >= unflagged - 1


def test_counts_near_zero_everywhere_are_not_taken_for_whole():
    """A head without a bias, far more classes than samples: an estimate says nothing there."""
    generator = rng(1)
    weight = torch.randn(600, 64, generator=generator).double() / 16.0
    embeddings = torch.randn(32, 64, generator=generator).double()
    labels = torch.randint(600, (32,), generator=generator)
    batch = Batch(weight, torch.zeros(600).double(), embeddings, labels)
    seen = batch.observe(bias=False)
    pooled = restore(seen, "pooled")
    assert accuracy(pooled, batch) < 0.5
    assert estimates.judged(seen, pooled).error == math.inf
    found = restore(seen, time_limit=0.1)
    assert found.attack in ("rlg", "exact")
    assert torch.equal(found.present, batch.present)


def test_equations_between_all_classes_are_left_out_where_they_take_too_long():
    seen = untrained(300, 8, 4).observe()
    assert auto.dense(seen, 10.0)
    assert not auto.dense(seen, 1e-4)


def test_without_counts_there_is_a_set():
    seen = SMALL.observe(bias=False, batch_size=None)
    found = restore(seen, time_limit=0.5)
    assert found.attack in ("exact", "rlg")
    assert torch.equal(found.present, SMALL.present)
    unscaled = LARGE.observe(reduction="sum", batch_size=None)
    assert restore(unscaled, time_limit=0.5).attack in ("rlg", "gradinversion")


@pytest.mark.parametrize(("classes", "size"), [(10, 24), (10, 9)])
def test_a_set_of_all_classes_that_any_batch_would_have_is_no_answer(classes, size):
    batch = untrained(classes, 300, size, seed=1, spread=1.0)
    batch.labels %= 5
    assert restore(batch.observe(bias=False), time_limit=0.5).attack != "rlg"


def test_many_classes_are_left_to_pooled(monkeypatch):
    asked = []

    def run(observation, name, **hyper_parameters):
        asked.append(name)
        return run_attack(observation, name, **hyper_parameters)

    monkeypatch.setattr(auto, "run_attack", run)
    many = one_embedding(17_000, 4, 24)
    # No room for a certificate: more samples than features.
    assert automatic(many.observe()).attack == "pooled"
    assert asked == ["pooled"]


@pytest.mark.parametrize(("batch_size", "attack"), [(3, "likelihood"), (None, "rlu")])
def test_several_steps_with_auxiliary_data_are_left_to_what_models_them(batch_size, attack):
    batch = untrained(4, 12, 6)
    seen = batch.observe(
        batch_size=batch_size,
        local_steps=2,
        learning_rates=(0.01, 0.01),
        model=batch.model(),
        auxiliary=batch.auxiliary(),
        after=batch.after(0.02),
    )
    found = restore(seen)
    assert found.attack == attack
    assert Flag.SEVERAL_STEPS not in found.flags


def test_dummies_go_through_small_models_only():
    seen = replace(SMALL.observe(), model=SMALL.model(), input_shape=(40,))
    assert affordable(seen, 10.0)
    # 800 multiplications for each of 6000 inputs.
    assert not affordable(seen, 800 * 6000 / 2e10)
    assert not affordable(SMALL.observe(), 10.0)
    assert not affordable(replace(seen, input_shape=(41,)), 10.0)


@pytest.mark.parametrize("classes", [2, 10, 100, 1000])
def test_fractions_without_meaning_are_seldom_taken_for_counts(classes):
    """Uniform fractions of counts that are far from zero: less than one in fifty is let pass."""
    bound = estimates._by_chance(classes)
    fractions = torch.rand(2000, classes, generator=rng()).double()
    distances = (fractions - fractions.round()).square().mean(dim=1).sqrt()
    assert float((distances < bound).double().mean()) < 0.02


def test_an_estimate_far_from_what_it_claims_is_not_believed():
    found = restore(EVEN.observe(), "pooled")
    assert estimates.judged(EVEN.observe(), found).error < 0.05
    shifted = replace(found, raw=found.raw + torch.linspace(-0.5, 0.5, 10).double())
    assert estimates.judged(EVEN.observe(label_smoothing=1e-9), shifted).error == math.inf
