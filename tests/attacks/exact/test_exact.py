"""Exact restoration: what it finds, what it proves, and what it refuses to prove."""

import sys
from dataclasses import replace
from functools import partial

import pytest
import torch

from labelleak import defenses
from labelleak.attacks import restore
from labelleak.attacks.exact import Search, exact
from labelleak.attacks.exact.atoms import Atoms, accepted, descend, misfit, off_label
from labelleak.attacks.exact.certificate import (
    determined_by_zeros,
    judge,
    no_competitor,
    other_label,
)
from labelleak.attacks.exact.clock import Clock
from labelleak.attacks.exact.factors import deflate, errors, factorise
from labelleak.attacks.exact.findings import Findings, concluded
from labelleak.attacks.exact.joint import fit
from labelleak.attacks.exact.sparsity import sparse_directions
from labelleak.attacks.exact.together import _normal_equations, _residuals, settle
from labelleak.errors import MissingKnowledge
from labelleak.restoration import Flag
from synthetic import Batch, rng, untrained

FLOAT = torch.float64


def batch(classes, features, size, seed=0, *, relu=False, scale=2.0):
    """A head as after training, whose embeddings differ; dense, or with zeros as after a ReLU."""
    generator = rng(seed)
    weight = scale * torch.randn(classes, features, generator=generator, dtype=FLOAT)
    embeddings = torch.randn(size, features, generator=generator, dtype=FLOAT)
    embeddings = embeddings.relu() if relu else embeddings + 0.5
    labels = torch.randint(classes, (size,), generator=generator)
    weight = (weight / features**0.5).float().double()
    bias = 0.1 * torch.randn(classes, generator=generator, dtype=FLOAT).float().double()
    return Batch(weight, bias, embeddings.float().double(), labels)


DENSE = batch(30, 40, 8)
FEW_CLASSES = batch(10, 60, 8, relu=True)


def extended(made):
    ones = made.embeddings.new_ones(len(made.labels), 1)
    return torch.cat([made.embeddings, ones], dim=1)


def assert_all_found(found, made, tolerance=1e-6):
    assert torch.equal(found.counts, made.counts)
    assert torch.equal(found.certain, made.counts)
    assert found.invisible == 0
    distances = torch.cdist(found.embeddings, made.embeddings)
    same = found.embedding_labels[:, None] == made.labels
    nearest = torch.where(same, distances, torch.inf).amin(dim=0)
    assert (nearest < tolerance * made.embeddings.norm(dim=1)).all()


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize(
    ("classes", "features", "size", "relu"),
    [(30, 40, 1, False), (30, 40, 8, False), (60, 50, 20, False), (10, 60, 8, True)],
)
def test_counts_and_embeddings_are_exact_and_certified(classes, features, size, relu, seed):
    made = batch(classes, features, size, seed, relu=relu)
    found = restore(made.observe(), "exact")
    assert found.certified
    assert_all_found(found, made)
    assert found.flags == ()
    assert float(found.proportions.sum()) == pytest.approx(1.0)


@pytest.mark.parametrize("made", [DENSE, FEW_CLASSES], ids=["dense", "few classes"])
def test_single_precision_is_enough(made):
    found = restore(made.observe(dtype=torch.float32), "exact")
    assert found.certified
    assert_all_found(found, made, tolerance=1e-2)


def test_the_batch_size_is_read_from_the_gradient():
    found = restore(DENSE.observe(batch_size=None), "exact")
    assert_all_found(found, DENSE)
    assert torch.equal(found.certain, found.counts)
    # Every sample twice would give the same.
    assert not found.certified
    assert found.flags == (Flag.UNKNOWN_BATCH_SIZE,)


@pytest.mark.parametrize("relu", [False, True])
def test_a_bias_is_not_needed(relu):
    made = batch(30, 40, 8, relu=relu)
    without = replace(made, bias=torch.zeros_like(made.bias))
    found = restore(without.observe(bias=False), "exact")
    assert_all_found(found, without)
    assert found.certified
    assert found.flags == (Flag.NO_BIAS,)


def test_a_head_that_is_not_the_clients_is_never_certified():
    """The client had a bias that the server does not know of."""
    found = restore(DENSE.observe(bias=False), "exact", time_limit=1.0)
    assert not found.certified


def test_a_bias_without_its_gradient_will_do():
    gradient = replace(DENSE.gradient(), bias=None)
    found = restore(DENSE.observe(gradient), "exact")
    assert_all_found(found, DENSE)
    assert found.certified


def test_a_sample_may_be_in_the_batch_twice():
    made = batch(30, 40, 6)
    made.embeddings[1], made.labels[1] = made.embeddings[0], made.labels[0]
    found = restore(made.observe(), "exact")
    assert found.certified
    assert torch.equal(found.counts, made.counts)
    assert len(found.embeddings) == 5


@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("weighted", [False, True])
def test_other_losses(reduction, weighted):
    weights = torch.linspace(0.5, 2.0, 30, dtype=FLOAT) if weighted else None
    gradient = DENSE.autograd(reduction=reduction, weight=weights)
    seen = DENSE.observe(gradient, reduction=reduction, class_weights=weights)
    found = restore(seen, "exact")
    assert found.certified
    assert_all_found(found, DENSE)


def test_a_batch_of_one_image_alone_is_not_certified_for_the_smallest_number_of_them():
    made = batch(10, 20, 3)
    made = Batch(made.weight, made.bias, made.embeddings[:1].expand(3, -1), made.labels * 0 + 4)
    assert not restore(made.observe(batch_size=None), "exact").certified
    told = restore(made.observe(), "exact")
    assert told.certified
    assert torch.equal(told.counts, made.counts)


def test_a_sum_of_unknown_size_is_never_certified():
    """Nothing in it says how many samples leave no trace."""
    gradient = DENSE.autograd(reduction="sum")
    found = restore(DENSE.observe(gradient, reduction="sum", batch_size=None), "exact")
    assert torch.equal(found.counts, DENSE.counts)
    assert not found.certified


def test_an_invisible_sample_is_counted_and_prevents_the_certificate():
    made = batch(30, 40, 8)
    # Hundreds above all other logits: what it leaves is far below the gradient's precision.
    made.embeddings[3] = 400.0 * made.weight[5] / made.weight[5].norm()
    made.labels[3] = 5
    found = restore(made.observe(dtype=torch.float32), "exact")
    assert not found.certified
    assert found.invisible == 1
    assert Flag.INVISIBLE_SAMPLES in found.flags
    assert int(found.counts.sum()) == 8
    others = made.counts - torch.nn.functional.one_hot(torch.tensor(5), 30)
    assert torch.equal(found.certain, others)


@pytest.mark.parametrize("made", [DENSE, FEW_CLASSES], ids=["dense", "few classes"])
@pytest.mark.parametrize("strength", [1e-5, 1e-3, 1e-1])
def test_noise_is_never_certified(made, strength):
    seen = made.observe(dtype=torch.float32)
    size = float(seen.gradient.weight.square().mean().sqrt())
    noise = partial(defenses.gaussian_noise, std=strength * size, generator=rng())
    _assert_not_certified(defenses.defend(seen, noise))


@pytest.mark.parametrize("made", [DENSE, FEW_CLASSES], ids=["dense", "few classes"])
@pytest.mark.parametrize(
    "defense",
    [
        defenses.sign,
        partial(defenses.sparsify, percent=20.0),
        partial(defenses.quantize, bits=8, generator=rng()),
        partial(defenses.clip_norm, max_norm=0.01),
    ],
    ids=["sign", "sparsify", "quantize", "clip"],
)
def test_a_defended_gradient_is_not_certified(made, defense):
    _assert_not_certified(defenses.defend(made.observe(dtype=torch.float32), defense))


def _assert_not_certified(seen):
    try:
        found = restore(seen, "exact", time_limit=1.0)
    except MissingKnowledge:
        return
    assert not found.certified
    assert found.counts is None or int(found.counts.sum()) == seen.batch_size


def test_a_wrong_batch_size_is_not_certified():
    found = restore(DENSE.observe(batch_size=9), "exact", time_limit=2.0)
    assert not found.certified


def test_more_than_the_batch_size_explains_is_refused_at_once():
    """The rank shows more samples than were said to be there, or noise."""
    with pytest.raises(MissingKnowledge, match="without noise, and the right batch size: 7"):
        restore(DENSE.observe(batch_size=7), "exact")
    seen = DENSE.observe(dtype=torch.float32)
    size = float(seen.gradient.weight.square().mean().sqrt())
    noise = partial(defenses.gaussian_noise, std=1e-2 * size, generator=rng())
    with pytest.raises(MissingKnowledge, match="without noise"):
        restore(defenses.defend(seen, noise), "exact")


def test_a_repeated_sample_is_told_from_rounding_that_looks_like_one_more():
    """The client's own errors reach above the noise of the rest, as one more rank."""
    made = batch(60, 80, 8)
    made.embeddings[1], made.labels[1] = made.embeddings[0], made.labels[0]
    exact_gradient = made.gradient()
    generator = rng(3)
    slip = torch.randn(60, 1, generator=generator, dtype=FLOAT)
    slip = 3e-8 * (slip - slip.mean()) @ torch.randn(1, 81, generator=generator, dtype=FLOAT)
    gradient = replace(
        exact_gradient,
        weight=exact_gradient.weight + slip[:, :-1],
        bias=exact_gradient.bias + slip[:, -1],
        rounding=1e-7,
    )
    seen = made.observe(gradient)
    assert factorise(seen, 8).rank == 8
    found = restore(seen, "exact")
    assert torch.equal(found.counts, made.counts)
    assert len(found.embeddings) == 7
    assert Flag.INCOMPLETE not in found.flags


def test_the_time_limit_holds_and_is_reported():
    made = batch(100, 80, 50)
    found = restore(made.observe(dtype=torch.float32), "exact", time_limit=1e-3)
    assert Flag.TIME_LIMIT in found.flags
    assert Flag.INCOMPLETE in found.flags
    assert not found.certified
    assert int(found.counts.sum()) == 50


def test_the_same_seed_gives_the_same_result():
    first, second = (restore(DENSE.observe(), "exact", seed=3) for _ in range(2))
    assert torch.equal(first.embeddings, second.embeddings)


@pytest.mark.parametrize(
    ("knowledge", "message"),
    [({"local_steps": 2}, "one local step"), ({"label_smoothing": 0.1}, "without smoothing")],
)
def test_what_it_cannot_do_is_refused(knowledge, message):
    with pytest.raises(MissingKnowledge, match=message):
        restore(DENSE.observe(**knowledge), "exact")


def test_a_batch_as_large_as_the_classes_is_refused():
    made = batch(10, 60, 12)
    with pytest.raises(MissingKnowledge, match="at most 9 samples"):
        restore(made.observe(), "exact")


@pytest.mark.parametrize("limit", [0.0, -1.0, float("nan")])
def test_a_time_limit_is_positive(limit):
    with pytest.raises(ValueError, match="positive number of seconds"):
        exact(DENSE.observe(), time_limit=limit)


def test_taking_a_sample_out_lowers_the_rank_and_nothing_else_does():
    """The inverse weight against the definition: the rank of what is left."""
    factors = factorise(DENSE.observe(), 8)
    points = extended(DENSE) @ factors.right
    inverse = factors.inverse_weights(points, DENSE.labels)
    assert torch.allclose(inverse, torch.full_like(inverse, 8.0), rtol=1e-6)
    for k in range(8):
        q = errors(
            DENSE.embeddings[k : k + 1] @ DENSE.weight.T + DENSE.bias,
            DENSE.labels[k : k + 1],
            factors.weights,
        )
        left = factors.matrix - q.T @ extended(DENSE)[k : k + 1] / 8.0
        assert int(torch.linalg.matrix_rank(left, rtol=1e-10)) == 7
    mixed = 0.5 * (points[:1] + points[1:2])
    assert abs(float(factors.inverse_weights(mixed, DENSE.labels[:1])) - 8.0) > 0.1


def test_errors_are_the_derivative_of_the_loss():
    logits = torch.randn(5, 7, generator=rng(), dtype=FLOAT).requires_grad_()
    labels = torch.tensor([0, 3, 6, 3, 2])
    weights = torch.linspace(1.0, 2.0, 7, dtype=FLOAT)
    torch.nn.functional.cross_entropy(logits, labels, weight=weights, reduction="sum").backward()
    assert torch.allclose(errors(logits.detach(), labels, weights), logits.grad)


def test_the_direction_of_a_confident_sample_is_regular():
    logits = torch.tensor([[800.0, 1.0, 0.0]], dtype=FLOAT)
    direction = off_label(logits, torch.tensor([0]))
    share = float(torch.sigmoid(torch.tensor(1.0, dtype=FLOAT)))
    assert direction.tolist() == [pytest.approx([-1.0, share, 1.0 - share])]


def test_descent_returns_to_the_samples():
    factors = factorise(DENSE.observe(), 8)
    points = extended(DENSE) @ factors.right
    assert (misfit(factors, points, DENSE.labels) < 1e-9).all()
    moved = points + 0.2 * torch.randn(8, 7, generator=rng(), dtype=FLOAT) @ factors.directions.T
    reached, left = descend(factors, moved, DENSE.labels, enough=1e-10, clock=Clock(60.0))
    assert (left < 1e-9).all()
    assert torch.allclose(reached, points, atol=1e-6)


def test_deflation_leaves_the_gradient_of_the_other_samples():
    seen = DENSE.observe()
    factors = factorise(seen, 8)
    rows = extended(DENSE)
    q = errors(DENSE.embeddings @ DENSE.weight.T + DENSE.bias, DENSE.labels, factors.weights)
    rest = deflate(factors, rows[:5], q[:5] / 8.0)
    assert rest.rank == 3
    assert torch.allclose(rest.matrix, q[5:].T @ rows[5:] / 8.0, atol=1e-12)
    assert torch.allclose(rows[5:] @ rest.right @ rest.right.T, rows[5:], atol=1e-6)


def test_sparse_directions_are_the_samples():
    made = batch(30, 100, 6, relu=True)
    factors = factorise(made.observe(), 6)
    found = sparse_directions(
        factors.right[:-1], factors.noise / factors.values, torch.eye(6, dtype=FLOAT), rng()
    )
    images = torch.nn.functional.normalize(found @ factors.right[:-1].T, dim=1)
    truth = torch.nn.functional.normalize(made.embeddings, dim=1)
    hits = (images @ truth.T).abs() > 1 - 1e-9
    assert hits.any(dim=0).all()


def _fitted(made, labels, steps=60):
    factors = factorise(made.observe(), len(labels))
    points = extended(made) @ factors.right
    shares = torch.full((1, len(labels)), 1.0 / len(labels), dtype=FLOAT)
    start = points + 0.01 * torch.randn(points.shape, generator=rng(), dtype=FLOAT) @ (
        factors.directions @ factors.directions.T
    )
    return factors, *fit(factors, start[None], labels[None], shares, steps=steps)


@pytest.mark.parametrize("made", [DENSE, FEW_CLASSES], ids=["dense", "few classes"])
def test_the_joint_fit_tells_true_labels_from_wrong_ones(made):
    factors, points, cost = _fitted(made, made.labels)
    assert float(cost) < 1e-18
    # The cost against its definition.
    q = errors(factors.logits(points[0]), made.labels, factors.weights) / 8.0
    rebuilt = q.T @ (points[0] / factors.values)
    assert float((rebuilt - factors.left).square().sum()) < 1e-16
    for k in range(8):
        labels = made.labels.clone()
        labels[k] = (labels[k] + 1) % len(made.weight)
        _, _, wrong = _fitted(made, labels)
        assert float(wrong) > 1e-3


@pytest.mark.parametrize("made", [DENSE, FEW_CLASSES], ids=["dense", "few classes"])
def test_a_wrong_label_is_judged_wrong(made):
    seen = made.observe()
    factors = factorise(seen, 8)
    inverse = torch.full((8,), 8.0, dtype=FLOAT)
    right = judge(factors, Atoms(extended(made), made.labels, inverse), 8.0, seen.gradient.rounding)
    assert right.rebuilt
    assert right.seen.all()
    assert determined_by_zeros(factors, right.atoms) == (made is FEW_CLASSES)
    if made is FEW_CLASSES:
        assert no_competitor(factors, right, 8.0, Clock(60.0))
    for k in range(8):
        labels = made.labels.clone()
        labels[k] = (labels[k] + 1) % len(made.weight)
        wrong = judge(factors, Atoms(extended(made), labels, inverse), 8.0, seen.gradient.rounding)
        assert not (wrong.rebuilt and bool(wrong.seen.all()))


def test_untrained_heads_with_embeddings_that_are_nearly_the_same():
    made = untrained(20, 40, 6, spread=0.1)
    found = restore(made.observe(), "exact")
    assert found.certified
    assert_all_found(found, made, tolerance=1e-3)


def test_a_search_knows_when_it_is_complete():
    factors = factorise(DENSE.observe(), 8)
    search = Search(factors, 8.0, rng(), Clock(30.0))
    assert not search.is_complete
    search.run()
    assert search.is_complete
    whole = search.contributions().T @ search.found.embeddings
    assert torch.allclose(whole, factors.matrix, atol=1e-5)


@pytest.mark.parametrize("seed", range(3))
def test_a_client_that_computes_in_single_precision_is_certified(seed):
    """Autograd's q carry the rounding of 1 - p, which is large beside a confident sample's."""
    made = batch(10, 60, 6, seed, relu=True)
    # Two samples are predicted with 1 - p of about 1e-4.
    made.labels[:2] = (made.embeddings[:2] @ made.weight.T + made.bias).argmax(dim=1)
    for k in range(2):
        made.embeddings[k] *= 12.0 / (made.embeddings[k] @ made.weight[made.labels[k]])
    single = Batch(*(t.float() for t in (made.weight, made.bias, made.embeddings)), made.labels)
    found = restore(single.observe(single.autograd(), dtype=torch.float32), "exact")
    assert found.certified
    assert torch.equal(found.counts, made.counts)


def test_settling_follows_its_own_derivatives():
    """The normal equations in closed form against differences of the residuals."""
    factors = factorise(DENSE.observe(), 8)
    atoms = Atoms(extended(DENSE)[:5], DENSE.labels[:5], torch.full((5,), 8.0, dtype=FLOAT))
    points = atoms.embeddings @ factors.right + 0.01 * factors.directions.sum(dim=1)
    noise = torch.linspace(0.1, 0.5, 5, dtype=FLOAT)
    weight = torch.rand(5, 5, generator=rng(), dtype=FLOAT)

    def residuals(change):
        moved = points + change.view(5, -1) @ factors.directions.T
        _, outside, coupled = _residuals(factors, atoms, moved, noise, weight)
        return torch.cat([outside.flatten(), coupled.flatten()])

    steps = 1e-6 * torch.eye(5 * factors.directions.shape[1], dtype=FLOAT)
    jacobian = torch.stack([(residuals(s) - residuals(-s)) / 2e-6 for s in steps], dim=1)
    here = residuals(torch.zeros(len(steps), dtype=FLOAT))
    _, outside, coupled = _residuals(factors, atoms, points, noise, weight)
    gram, right = _normal_equations(factors, atoms, points, noise, weight, outside, coupled)
    assert torch.allclose(gram, jacobian.T @ jacobian, rtol=1e-5, atol=1e-6 * float(gram.max()))
    assert torch.allclose(right, jacobian.T @ here, rtol=1e-5, atol=1e-6 * float(right.max()))


def test_settling_makes_atoms_more_exact():
    factors = factorise(DENSE.observe(), 8)
    slips = 1e-3 * torch.randn(5, 7, generator=rng(), dtype=FLOAT) @ factors.directions.T
    slips = slips @ factors.right.T
    inverse = torch.full((5,), 8.0, dtype=FLOAT)
    settled = settle(factors, Atoms(extended(DENSE)[:5] + slips, DENSE.labels[:5], inverse))
    assert torch.allclose(settled.embeddings, extended(DENSE)[:5], atol=1e-9)


def test_few_points_at_a_time_reach_the_same(monkeypatch):
    """Where there are many classes, derivatives of all starts do not fit into memory."""
    factors = factorise(DENSE.observe(), 8)
    points = extended(DENSE) @ factors.right
    moved = points + 0.2 * torch.randn(8, 7, generator=rng(), dtype=FLOAT) @ factors.directions.T
    whole = descend(factors, moved, DENSE.labels, enough=1e-10, clock=Clock(60.0))
    kept = accepted(factors, points, DENSE.labels, 8.0)
    monkeypatch.setattr(sys.modules[descend.__module__], "_ENTRIES", 1)
    parts = descend(factors, moved, DENSE.labels, enough=1e-10, clock=Clock(60.0))
    assert torch.allclose(parts[0], whole[0])
    assert torch.equal(accepted(factors, points, DENSE.labels, 8.0).labels, kept.labels)
    assert len(kept) == 8
    late = descend(factors, moved, DENSE.labels, enough=1e-10, clock=Clock(0.0))
    assert torch.isinf(late[1][1:]).all()


def test_a_label_is_not_proven_where_there_is_no_time_to_try_the_others():
    batch = untrained(12, 200, 8, spread=1.0)
    factors = factorise(batch.observe(), 8)
    atoms = Atoms(extended(batch), batch.labels, torch.full((8,), 8.0, dtype=FLOAT))
    judged = judge(factors, atoms, 8.0, 1e-12)
    assert no_competitor(factors, judged, 8.0, Clock(60.0))
    assert not no_competitor(factors, judged, 8.0, Clock(0.0))


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
        factors = factorise(seen, 3)
        rows = extended(batch_made)
        atoms = Atoms(rows, batch_made.labels, torch.full((3,), 3.0, dtype=FLOAT))
        # It rebuilds the gradient, with equations to spare, and is not the only one that does.
        assert judge(factors, atoms, 3.0, seen.gradient.rounding).rebuilt
        assert factors.spare_equations > 0
        assert other_label(factors, atoms, 3.0).any()
        found = restore(seen, "exact", time_limit=5.0)
        assert not found.certified
        # Nor are the labels certain that may be exchanged.
        assert (found.certain <= torch.minimum(made.counts, other.counts)).all()
        assert found.invisible


@pytest.mark.parametrize(
    ("told", "total", "certain"), [(2, 2, 0), (3, 3, 2), (None, None, 2), (None, 2, 2)]
)
def test_nothing_is_certain_of_more_samples_than_there_are(told, total, certain):
    found = concluded(
        DENSE.observe(batch_size=told),
        Findings(
            labels=torch.tensor([4, 7, 4]),
            times=torch.ones(3, dtype=torch.int64),
            sure=torch.tensor([True, False, True]),
            embeddings=DENSE.embeddings[:3],
            is_complete=True,
            rank=3,
            total=total,
        ),
        rest=lambda number: torch.zeros(30, dtype=FLOAT),
        proven=lambda: False,
    )
    assert int(found.certain.sum()) == int(found.certain[4]) == certain
    assert (found.counts is None) == (total != 3)
    assert (found.invisible is None) == (told is None)


@pytest.mark.parametrize("size", [1, 3])
def test_an_embedding_that_is_zero_everywhere_is_no_error(size):
    made = batch(10, 2, size)
    made = Batch(made.weight, made.bias, torch.zeros_like(made.embeddings), made.labels * 0)
    found = restore(made.observe(), "exact")
    assert found.certified
    assert torch.equal(found.counts, made.counts)


def test_a_low_rank_says_nothing_of_more_samples_than_the_head_has_room_for():
    """Embeddings that are nearly alike: at the gradient's precision a few stand for all."""
    made = untrained(30, 20, 300, spread=1e-8)
    with pytest.raises(MissingKnowledge, match="samples here"):
        restore(made.observe(), "exact")
