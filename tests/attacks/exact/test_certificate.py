"""What is certified, and above all what is not."""

from dataclasses import replace
from functools import partial

import pytest
import torch
from exact_batches import (
    DENSE,
    FEW_CLASSES,
    FLOAT,
    endless,
    extended,
    restored,
    trained,
)

from labelleak import defenses
from labelleak.attacks.exact.certificate import (
    determined_by_zeros,
    fits_other_label,
    judge,
    no_competitor,
)
from labelleak.attacks.exact.clock import Clock
from labelleak.attacks.exact.head_factors import factorize
from labelleak.attacks.exact.samples import Samples
from labelleak.errors import MissingKnowledge
from synthetic import Batch, rng, untrained

# Few samples, so that a search that finds nothing ends by itself, whatever the machine.
SMALL = trained(20, 24, 3)


def assert_not_certified(seen):
    """With all the time that it takes: a search that was cut short proves nothing anyway."""
    try:
        found = restored(seen)
    except MissingKnowledge:
        return
    assert not found.certified
    assert found.counts is None or int(found.counts.sum()) == seen.batch_size


def samples(made, labels=None):
    size = len(made.labels)
    inverse = torch.full((size,), float(size), dtype=FLOAT)
    return Samples(extended(made), made.labels if labels is None else labels, inverse)


def test_a_head_that_is_not_the_clients_is_never_certified():
    """The client had a bias that the server does not know of."""
    found = restored(SMALL.observe(bias=False))
    assert not found.certified


@pytest.mark.parametrize("made", [SMALL, FEW_CLASSES], ids=["dense", "few classes"])
@pytest.mark.parametrize("strength", [1e-5, 1e-3, 1e-1])
def test_noise_is_never_certified(made, strength):
    seen = made.observe(dtype=torch.float32)
    size = float(seen.gradient.weight.square().mean().sqrt())
    noise = partial(defenses.gaussian_noise, std=strength * size, generator=rng())
    assert_not_certified(defenses.defend(seen, noise))


@pytest.mark.parametrize("made", [SMALL, FEW_CLASSES], ids=["dense", "few classes"])
@pytest.mark.parametrize(
    "defense",
    [
        defenses.sign,
        partial(defenses.sparsify, percent=20.0),
        lambda update: defenses.quantize(update, bits=8, generator=rng()),
        partial(defenses.clip_norm, max_norm=0.01),
    ],
    ids=["sign", "sparsify", "quantize", "clip"],
)
def test_a_defended_gradient_is_not_certified(made, defense):
    assert_not_certified(defenses.defend(made.observe(dtype=torch.float32), defense))


def test_a_wrong_batch_size_is_not_certified():
    found = restored(DENSE.observe(batch_size=9))
    assert not found.certified


@pytest.mark.parametrize("made", [DENSE, FEW_CLASSES], ids=["dense", "few classes"])
def test_a_wrong_label_is_judged_wrong(made):
    seen = made.observe()
    factors = factorize(seen, 8, rng())
    right = judge(factors, samples(made), 8.0, seen.gradient.rounding, endless())
    assert right.rebuilt
    assert right.seen.all()
    assert determined_by_zeros(factors, right.samples) == (made is FEW_CLASSES)
    if made is FEW_CLASSES:
        assert no_competitor(factors, right, 8.0, endless())
    for k in range(8):
        labels = made.labels.clone()
        labels[k] = (labels[k] + 1) % len(made.weight)
        wrong = judge(factors, samples(made, labels), 8.0, seen.gradient.rounding, endless())
        assert not (wrong.rebuilt and bool(wrong.seen.all()))


def test_a_label_is_not_proven_where_there_is_no_time_to_try_the_others():
    made = untrained(12, 200, 8, spread=1.0)
    factors = factorize(made.observe(), 8, rng())
    judged = judge(factors, samples(made), 8.0, 1e-12, endless())
    assert no_competitor(factors, judged, 8.0, endless())
    assert not no_competitor(factors, judged, 8.0, Clock(0.0))


def test_other_labels_that_there_is_no_time_to_try_are_not_excluded():
    factors = factorize(SMALL.observe(), 3, rng())
    assert not fits_other_label(factors, samples(SMALL), 3.0, endless()).any()
    assert fits_other_label(factors, samples(SMALL), 3.0, Clock(0.0)).all()
    # Time that runs out while they are tried proves as little.
    readings = iter([0.0, 0.0, 9.0, 9.0, 9.0, 9.0])
    short = Clock(1.0, lambda: next(readings))
    assert fits_other_label(factors, samples(SMALL), 3.0, short).all()


def test_nothing_is_certified_where_other_labels_rebuild_the_same_gradient():
    # The network takes x1 for 0, x2 for 1 and x3 for 3, beyond doubt. So it takes x2 + x3 - x1 for
    # 2, and batches of labels 2, 0, 0 and 0, 2, 2 differ by rounding only.
    generator = rng(1)

    def single(*shape):
        return torch.randn(*shape, generator=generator, dtype=FLOAT).float().double()

    weight, logits = single(8, 16), 3.0 * single(4, 8)[:3]
    for row, (label, size) in enumerate([(0, 6.0), (1, 9.0), (3, 9.0)]):
        logits[row] = single(8)
        logits[row, label] = size
        if not row:
            logits[row, 2] = -30.0
    embeddings = torch.linalg.lstsq(weight, 10.0 * logits.T).solution.T.float().double()
    made = Batch(weight, torch.zeros(8, dtype=FLOAT), embeddings, torch.tensor([2, 0, 0]))
    other = torch.stack([embeddings[1] + embeddings[2] - embeddings[0], *embeddings[1:]])
    other = replace(made, embeddings=other, labels=torch.tensor([0, 2, 2]))
    assert torch.allclose(made.gradient().weight, other.gradient().weight, rtol=0.0, atol=1e-6)
    for batch_made in (made, other):
        seen = batch_made.observe(dtype=torch.float32)
        factors = factorize(seen, 3, rng())
        true = samples(batch_made)
        # It rebuilds the gradient, with equations to spare, and is not the only one that does.
        assert judge(factors, true, 3.0, seen.gradient.rounding, endless()).rebuilt
        assert factors.spare_equations > 0
        assert fits_other_label(factors, true, 3.0, endless()).any()
        found = restored(seen)
        assert not found.certified
        # Nor are the labels certain that may be exchanged.
        assert (found.certain <= torch.minimum(made.counts, other.counts)).all()
        assert found.invisible
