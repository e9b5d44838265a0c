import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from labelleak.lab.datasets import draw, samplers

LABELS = torch.arange(20).repeat_interleave(30)[torch.randperm(600)]
ALL = sorted(samplers.SAMPLERS)
SEEDS = st.integers(0, 2**40)


def counts_of(indices, labels=LABELS, classes=20):
    return torch.bincount(labels[indices], minlength=classes)


@pytest.mark.parametrize("name", ALL)
@given(seed=SEEDS, batch_size=st.integers(3, 20))
def test_a_batch_has_k_distinct_valid_indices_and_its_seed_repeats_it(name, seed, batch_size):
    indices = draw(name, LABELS, batch_size, seed)
    assert indices.dtype == torch.int64
    assert indices.shape == (batch_size,)
    assert 0 <= indices.min() <= indices.max() < len(LABELS)
    assert len(indices.unique()) == batch_size
    assert torch.equal(indices, draw(name, LABELS, batch_size, seed))


@pytest.mark.parametrize("name", ALL)
def test_a_generator_goes_on_and_starts_like_its_seed(name):
    generator = torch.Generator().manual_seed(3)
    first, second = (draw(name, LABELS, 12, generator) for _ in range(2))
    assert torch.equal(first, draw(name, LABELS, 12, 3))
    assert not torch.equal(first, second)


@pytest.mark.parametrize("name", ALL)
def test_the_global_generator_is_neither_used_nor_changed(name):
    torch.manual_seed(0)
    before = torch.get_rng_state()
    one = draw(name, LABELS, 12, 3)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(1)
    assert torch.equal(one, draw(name, LABELS, 12, 3))


@given(seed=SEEDS, batch_size=st.integers(1, 600))
def test_balanced_counts_differ_by_one_at_most(seed, batch_size):
    counts = counts_of(samplers.balanced(LABELS, batch_size, seed))
    assert counts.sum() == batch_size
    assert counts.max() - counts.min() <= 1


def test_balanced_draws_which_classes_have_one_more():
    seen = sum(counts_of(samplers.balanced(LABELS, 21, seed)) == 2 for seed in range(100))
    assert seen.sum() == 100
    assert seen.max() < 20


@given(seed=SEEDS, batch_size=st.integers(1, 20))
def test_unique_has_each_class_once(seed, batch_size):
    counts = counts_of(samplers.unique(LABELS, batch_size, seed))
    assert counts.max() == 1
    assert counts.sum() == batch_size


@given(seed=SEEDS, batch_size=st.integers(1, 30))
def test_single_class_has_one_class(seed, batch_size):
    assert sorted(counts_of(samplers.single_class(LABELS, batch_size, seed)))[-1] == batch_size


def test_single_class_is_drawn_from_those_that_are_large_enough():
    labels = torch.tensor([0] * 5 + [1] * 2 + [2] * 5)
    drawn = {int(labels[samplers.single_class(labels, 5, seed)][0]) for seed in range(40)}
    assert drawn == {0, 2}
    repeated = {
        int(labels[samplers.single_class(labels, 5, seed, replacement=True)][0])
        for seed in range(40)
    }
    assert repeated == {0, 1, 2}


@given(seed=SEEDS, batch_size=st.integers(1, 90), number=st.integers(3, 20))
def test_random_classes_stay_within_the_number_of_classes(seed, batch_size, number):
    indices = samplers.random_classes(LABELS, batch_size, seed, num_classes=number)
    assert (counts_of(indices) > 0).sum() <= number


@pytest.mark.parametrize("num_classes", [1, 3, 7])
def test_balanced_over_some_classes_draws_which(num_classes):
    drawn = set()
    for seed in range(40):
        counts = counts_of(samplers.balanced(LABELS, 21, seed, num_classes=num_classes))
        assert sorted(counts[counts > 0].tolist()) == [21 // num_classes] * num_classes
        drawn |= set(counts.nonzero().flatten().tolist())
    assert num_classes < len(drawn) <= len(LABELS.unique())
    with pytest.raises(ValueError, match="different classes"):
        samplers.balanced(LABELS, 21, 0, num_classes=0)


@given(seed=SEEDS, batch_size=st.integers(4, 32))
def test_imbalanced_has_one_and_the_rest_and_one(seed, batch_size):
    counts = sorted(counts_of(samplers.imbalanced(LABELS, batch_size, seed)).tolist())
    assert counts[-3:] == [1, 1, batch_size - 2]
    assert sum(counts) == batch_size


def test_imbalanced_puts_the_rest_in_the_middle_one_of_given_classes():
    counts = counts_of(samplers.imbalanced(LABELS, 24, 0, classes=(0, 18, 9)))
    assert counts[[0, 18, 9]].tolist() == [1, 22, 1]


@pytest.mark.parametrize("classes", [(0, 0, 1), (0, 1), (0, 1, 20), (-1, 0, 1)])
def test_imbalanced_refuses_impossible_classes(classes):
    with pytest.raises(ValueError, match="classes"):
        samplers.imbalanced(LABELS, 24, 0, classes=classes)


def test_dirichlet_goes_from_one_class_to_equal_shares():
    extreme = [counts_of(samplers.dirichlet(LABELS, 30, seed, alpha=1e-6)) for seed in range(30)]
    assert all(int(counts.max()) == 30 for counts in extreme)
    assert len({int(counts.argmax()) for counts in extreme}) > 5
    labels = torch.arange(20).repeat_interleave(2000)
    equal = torch.stack(
        [
            counts_of(samplers.dirichlet(labels, 4000, seed, alpha=1e6), labels).double()
            for seed in range(30)
        ]
    )
    # multinomial with shares 1/20: mean 200, variance 190
    assert (equal.mean(0) - 200).abs().max() < 4 * (190 / 30) ** 0.5
    assert 130 < equal.var() < 260


def test_dirichlet_variance_is_that_of_the_distribution():
    labels, alpha, size = torch.arange(4).repeat_interleave(100), 2.0, 100
    draws = torch.stack(
        [
            counts_of(samplers.dirichlet(labels, size, seed, alpha=alpha), labels, 4).double()
            for seed in range(800)
        ]
    )
    # Dirichlet-multinomial: K p (1 - p) (K + C alpha) / (1 + C alpha)
    expected = size * 0.25 * 0.75 * (size + 4 * alpha) / (1 + 4 * alpha)
    assert draws.mean(0).numpy() == pytest.approx(25, rel=0.1)
    assert draws.var(0).mean() == pytest.approx(expected, rel=0.1)


@pytest.mark.parametrize("alpha", [0.0, -1.0, float("nan"), float("inf")])
def test_dirichlet_refuses_an_impossible_alpha(alpha):
    with pytest.raises(ValueError, match="alpha"):
        samplers.dirichlet(LABELS, 10, 0, alpha=alpha)


def test_random_follows_the_distribution_of_the_data():
    labels = torch.tensor([0] * 900 + [1] * 100)
    share = torch.stack([labels[samplers.random(labels, 50, seed)] for seed in range(200)])
    assert share.double().mean() == pytest.approx(0.1, abs=0.015)


@pytest.mark.parametrize(
    ("name", "batch_size", "options"),
    [
        ("random", 601, {}),
        ("balanced", 601, {}),
        ("single_class", 31, {}),
        ("random_classes", 61, {"num_classes": 2}),
        ("imbalanced", 33, {}),
        ("dirichlet", 200, {"alpha": 1e-6}),
    ],
)
def test_too_few_samples_need_replacement(name, batch_size, options):
    with pytest.raises(ValueError, match="replacement=True"):
        draw(name, LABELS, batch_size, 0, **options)
    indices = draw(name, LABELS, batch_size, 0, replacement=True, **options)
    assert indices.shape == (batch_size,)
    assert len(indices.unique()) < batch_size
    if name in {"balanced", "imbalanced", "single_class", "dirichlet"}:
        # no sample is used a third time before all of its class are used twice, and so on
        used = torch.bincount(indices, minlength=len(LABELS))
        for label in LABELS[indices].unique():
            of_class = used[label == LABELS]
            assert of_class.max() - of_class.min() <= 1


def test_replacement_draws_classes_independently_when_each_has_one_sample():
    labels = torch.arange(10)
    batches = [samplers.random(labels, 10, seed, replacement=True) for seed in range(300)]
    distinct = sum(len(batch.unique()) for batch in batches) / 300
    assert distinct == pytest.approx(10 * (1 - 0.9**10), rel=0.03)


def test_classes_without_samples_are_never_drawn():
    labels = torch.tensor([0, 2, 2, 5, 5, 5, 0])
    for name in ALL:
        options = {"num_classes": 2} if name == "random_classes" else {}
        drawn = draw(name, labels, 3, 1, replacement=True, **options)
        assert set(labels[drawn].tolist()) <= {0, 2, 5}
    assert counts_of(samplers.balanced(labels, 6, 0), labels, 6).tolist() == [2, 0, 2, 0, 0, 2]


@pytest.mark.parametrize("name", [name for name in ALL if name != "single_class"])
def test_order_gives_no_class_away(name):
    batches = [LABELS[draw(name, LABELS, 12, seed, replacement=True)] for seed in range(20)]
    assert any(not torch.equal(batch, batch.sort().values) for batch in batches)


@pytest.mark.parametrize(
    ("name", "batch_size", "options", "message"),
    [
        ("random", 0, {}, "batch_size"),
        ("unique", 21, {}, "21 different classes"),
        ("imbalanced", 2, {}, "at least 3"),
        ("random_classes", 4, {"num_classes": 21}, "21 different classes"),
        ("random_classes", 4, {"num_classes": 0}, "0 different classes"),
        ("uniform", 4, {}, "balanced, dirichlet"),
    ],
)
def test_wrong_arguments_are_named(name, batch_size, options, message):
    with pytest.raises(ValueError, match=message):
        draw(name, LABELS, batch_size, 0, **options)


def test_no_samples_at_all_is_an_error():
    with pytest.raises(ValueError, match="no samples"):
        draw("random", torch.zeros(0, dtype=torch.int64), 4, 0)
