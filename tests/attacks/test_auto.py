"""What auto chooses, on observations of which it is known what is right.

No clock decides: the search for single samples ends by itself, or is left out of the table.
"""

import itertools
import math
from dataclasses import replace
from functools import partial

import pytest
import torch

from labelleak import defenses
from labelleak.attacks import estimates, list_attacks, registry, restore
from labelleak.attacks.auto import _contradicted, _with_samples, automatic
from labelleak.attacks.diagnosis import diagnose
from labelleak.attacks.estimates import Estimate
from labelleak.errors import MissingKnowledge
from labelleak.restoration import Flag, Restoration
from synthetic import Batch, one_embedding, rng, untrained


def absent(observation, **hyper_parameters):
    raise MissingKnowledge("not this one")


@pytest.fixture
def table(monkeypatch):
    """Puts other rules in the places of attacks, for one test."""

    def put(**rules):
        for name, rule in rules.items():
            entry = replace(list_attacks()[name], needs=(), rule=rule)
            monkeypatch.setitem(registry._ATTACKS, name, entry)

    return put


@pytest.fixture
def unhurried(table):
    """The search for single samples ends by itself."""
    rule = list_attacks()["exact"].rule
    table(exact=lambda observation, *, time_limit: rule(observation, time_limit=1e9))


@pytest.fixture
def no_search(table):
    """Nobody searches for single samples."""
    table(exact=absent)


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


@pytest.mark.usefixtures("unhurried")
def test_a_certificate_ends_it():
    found = restore(SMALL.observe())
    assert (found.attack, found.certified) == ("exact", True)
    assert torch.equal(found.counts, SMALL.counts)
    assert found.flags == ()


@pytest.mark.usefixtures("unhurried")
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


def test_a_network_that_has_learned_is_left_to_a_damped_mean_prediction():
    """That of the others is far from even there, and their counts are worse."""
    better, doubted = 0, 0
    for seed in range(6):
        batch = trained(seed=seed)
        found = restore(batch.observe())
        assert found.attack == "damped"
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
    assert Flag.DEFENSE_SUSPECTED in found.flags
    assert torch.equal(found.counts, EVEN.counts)
    # What iLRG makes of the gradient as it came contradicts nothing.
    assert Flag.ATTACKS_DISAGREE not in found.flags
    assert not torch.equal(restore(clipped, "pooled").counts, EVEN.counts)


def test_no_count_is_below_what_is_certain(table):
    """The search leaves samples that are certain, whatever the estimate says of their class."""
    batch = one_embedding(10, 30, 8)
    batch.labels = torch.tensor([0, 0, 1, 1, 2, 3, 4, 5])
    certain = batch.counts.clone()
    certain[certain > 0] -= 1
    wrong = batch.counts.roll(3)
    assert (wrong < certain).any()
    partly = Restoration(
        attack="exact",
        present=certain > 0,
        certain=certain,
        embeddings=batch.embeddings[:1],
        embedding_labels=batch.labels[:1],
        invisible=0,
        flags=(Flag.INCOMPLETE,),
    )
    table(
        exact=lambda observation, *, time_limit: partly,
        damped=lambda observation: Restoration(wrong > 0, wrong, attack="damped"),
        pooled=absent,
        ilrg=absent,
    )
    found = restore(batch.observe())
    assert found.attack == "damped"
    assert bool((found.counts >= certain).all())
    assert int(found.counts.sum()) == 8
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
    found = _with_samples(seen, estimate, partial, trusted=False)
    assert found.present.nonzero()[:, 0].tolist() == [0, 1, 3]


def test_a_set_without_a_class_that_is_certain_is_not_to_be_relied_on():
    """Both claim to be sure; RLG's set without a bias gradient raises no other doubt."""
    batch = one_embedding(10, 30, 24)
    seen = batch.observe()
    classes = torch.arange(10)
    told = Restoration(present=classes < 2, flags=(Flag.NO_BIAS, Flag.SET_ONLY), attack="rlg")
    certain = (classes == 3).long()
    partial = replace(restore(seen, "ilrg"), certain=certain)
    found = _with_samples(seen, told, partial, trusted=False)
    assert found.unreliable
    assert found.certain is None
    inside = _with_samples(
        seen, told, replace(partial, certain=(classes == 1).long()), trusted=True
    )
    assert not inside.unreliable


def test_an_estimate_of_fewer_samples_than_are_certain_stands_alone():
    """Where nobody told the batch size, the total is the estimate's own."""
    batch = one_embedding(10, 30, 24)
    seen = batch.observe(batch_size=None)
    estimate = replace(restore(batch.observe(), "ilrg"), certain=None)
    certain = estimate.counts.clone()
    certain[0] += 1
    partial = replace(estimate, certain=certain)
    assert _with_samples(seen, estimate, partial, trusted=False) is estimate


def test_among_shares_a_set_that_is_sure_speaks_first():
    seen = EVEN.observe(batch_size=None)
    sure, pooled = restore(seen, "ilrg"), restore(seen, "pooled")
    assert Flag.SET_NOT_SURE not in sure.flags
    shares = replace(pooled, counts=None, raw=pooled.proportions)
    unsure = replace(shares, flags=(Flag.SET_NOT_SURE,))
    ranks = [estimates.judged(seen, one).distance for one in (shares, sure, unsure)]
    assert ranks == sorted(set(ranks))


@pytest.mark.usefixtures("unhurried")
@pytest.mark.parametrize("size", [1, 8, 40])
def test_an_audit_without_a_batch_size_is_right_or_says_that_it_is_not_sure(size):
    """Heads without any other layer: few and many samples, of few and of many classes."""
    unflagged, right = 0, 0
    for seed in range(12):
        batch = untrained((2, 3, 10, 30)[seed % 4], 40, size, seed, spread=0.2)
        batch.labels %= (1, 2, 30)[seed % 3]
        found = restore(batch.observe(batch_size=None))
        if not found.unreliable:
            unflagged += 1
            right += torch.equal(found.present, batch.present)
    assert unflagged >= 3
    assert right >= unflagged - 1


@pytest.mark.parametrize(
    ("batch", "takes", "limit"),
    [
        # The counts are clear: two seconds for a certificate.
        (one_embedding(10, 30, 6), 0.0, 2.0),
        # Nothing is clear: four fifths of what is left, or a fifth of all where little is left.
        (untrained(10, 30, 6, scale=8.0, spread=3.0), 0.0, 8.0),
        (untrained(10, 30, 6, scale=8.0, spread=3.0), 5.0, 4.0),
        (untrained(10, 30, 6, scale=8.0, spread=3.0), 9.0, 2.0),
    ],
)
def test_the_search_gets_a_share_of_the_time_that_is_left(table, batch, takes, limit):
    limits = []

    def search(observation, *, time_limit):
        limits.append(time_limit)
        raise MissingKnowledge("not this one")

    table(exact=search)
    times = itertools.chain([100.0], itertools.repeat(100.0 + takes))
    seen = batch.observe()
    automatic(seen, diagnose(seen), 10.0, lambda: next(times))
    assert limits == [pytest.approx(limit)]


def test_nothing_that_was_added_to_a_gradient_is_searched(table):
    table(exact=lambda observation, *, time_limit: pytest.fail("it was searched"))
    noise = partial(defenses.gaussian_noise, std=1e-3, generator=rng())
    assert restore(defenses.defend(SMALL.observe(), noise)).attack != "exact"


@pytest.mark.usefixtures("no_search")
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
    found = restore(seen)
    assert found.attack == "rlg"
    assert torch.equal(found.present, batch.present)


@pytest.mark.usefixtures("no_search")
def test_without_counts_there_is_a_set():
    seen = SMALL.observe(bias=False, batch_size=None)
    found = restore(seen)
    assert found.attack == "rlg"
    assert torch.equal(found.present, SMALL.present)
    unscaled = LARGE.observe(reduction="sum", batch_size=None)
    assert restore(unscaled).attack in ("rlg", "gradinversion")


@pytest.mark.usefixtures("no_search")
@pytest.mark.parametrize(("classes", "size"), [(10, 24), (10, 9)])
def test_a_set_of_all_classes_that_any_batch_would_have_is_no_answer(classes, size):
    batch = untrained(classes, 300, size, seed=1, spread=1.0)
    batch.labels %= 5
    assert restore(batch.observe(bias=False)).attack != "rlg"


def test_many_classes_are_left_to_pooled(table):
    asked = []

    def noted(name, rule):
        def run(observation, **hyper_parameters):
            asked.append(name)
            return rule(observation, **hyper_parameters)

        return run

    table(**{name: noted(name, entry.rule) for name, entry in list_attacks().items()})
    # No room for a certificate: more samples than features.
    assert restore(one_embedding(17_000, 4, 24).observe()).attack == "pooled"
    assert asked == ["pooled"]


@pytest.mark.parametrize(
    ("bias", "batch_size", "attack"),
    [(True, 24, "llbg"), (False, 24, "gradinversion"), (True, None, "gradinversion")],
)
def test_more_classes_than_can_be_pooled_in_time_are_left_to_what_passes_over_them_once(
    bias, batch_size, attack
):
    seen = one_embedding(17_000, 4, 24).observe(bias=bias, batch_size=batch_size)
    found = restore(seen, time_limit=0.03)
    assert found.attack == attack
    assert Flag.TIME_LIMIT in found.flags
    assert Flag.TIME_LIMIT not in restore(seen, time_limit=30.0).flags


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


@pytest.mark.parametrize(("distance", "contradicted"), [(0.5, True), (50.0, False)])
def test_virtual_batches_contradict_where_the_mean_prediction_is_uneven(distance, contradicted):
    """Counts that are whole by chance, against errors that their own estimate does not refute."""
    counts = torch.tensor([8, 1, 6, 1])
    whole = Restoration(present=counts > 0, counts=counts, raw=counts.double(), attack="ilrg")
    raw = torch.tensor([1.7, 4.2, 5.8, 4.3]).double()
    other = Restoration(
        present=raw > 0,
        counts=torch.tensor([2, 4, 6, 4]),
        raw=raw,
        standard_errors=torch.tensor([1.5, 1.6, 2.0, 2.0]).double(),
        attack="virtual-batches",
    )
    best = Estimate(whole, error=0.01, distance=0.01)
    uneven = Estimate(other, error=math.inf, distance=distance, evenness=0.7)
    assert _contradicted(best, [best, uneven]) is contradicted
    # Where its own errors explain the difference, there is no contradiction.
    wide = replace(whole, standard_errors=torch.full((4,), 6.0).double())
    assert not _contradicted(replace(best, found=wide), [uneven])
