import zlib
from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch

from labelleak.attacks.published.ilrg import ilrg
from labelleak.observation import Head, HeadGradient, Observation
from labelleak.projection import project_to_counts
from labelleak.training import LocalTraining
from synthetic import one_embedding, rng, separated, told, untrained

EPSILON = np.finfo(np.float64).eps


def plain_ilrg(observation, present=None):
    """Algorithm 1 as the paper states it: class by class, and a pseudo-inverse at the end.

    A zero in the bias gradient is replaced by the smallest normal number, and quotients are cut at
    ten orders of magnitude.
    """
    weight, bias, weight_gradient, bias_gradient = (
        tensor.double().numpy()
        for tensor in (
            observation.head.weight,
            observation.head.bias,
            observation.gradient.weight,
            observation.gradient.bias,
        )
    )
    total = observation.num_instances
    chosen = range(len(weight)) if present is None else present
    predictions = {}
    for i in chosen:
        divisor = bias_gradient[i] if bias_gradient[i] != 0 else np.finfo(np.float64).tiny
        with np.errstate(over="ignore"):
            embedding = np.clip(weight_gradient[i] / divisor, -1e10, 1e10)
        logits = weight @ embedding + bias
        exponentials = np.exp(logits - logits.max())
        predictions[i] = exponentials / exponentials.sum()
    matrix, right = [[1.0] * len(chosen)], [total]
    for i in chosen:
        matrix.append([predictions[j][i] - (i == j) for j in chosen])
        right.append(total * bias_gradient[i])
    inverse = np.linalg.pinv(np.array(matrix), rcond=EPSILON * len(matrix))
    raw = np.zeros(len(weight))
    raw[list(chosen)] = inverse @ np.array(right)
    return raw, np.rint(np.clip(raw, 0, total)).astype(int)


@dataclass(frozen=True)
class Case:
    classes: int
    features: int
    size: int
    kind: str
    dtype: torch.dtype = torch.float64

    def __str__(self):
        return f"{self.kind}-C{self.classes}-m{self.features}-K{self.size}-{self.dtype}"

    def observation(self):
        seed = zlib.crc32(str(self).encode())
        scale = 4.0 if self.kind == "confident" else 0.5
        batch = untrained(
            self.classes, self.features, self.size, seed, scale=scale, dtype=self.dtype
        )
        gradient = batch.gradient()
        weight, bias = gradient.weight, gradient.bias
        if self.kind == "noisy":
            generator = rng(seed + 1)
            for tensor in (weight, bias):
                noise = torch.randn(tensor.shape, generator=generator, dtype=torch.float64)
                tensor.add_(0.01 * tensor.abs().mean() * noise)
        elif self.kind == "zero rows":
            rows = torch.randperm(self.classes, generator=rng(seed))[: 1 + self.classes // 4]
            weight[rows], bias[rows] = 0.0, 0.0
        elif self.kind == "zero bias":
            bias[torch.randperm(self.classes, generator=rng(seed))[: 1 + self.classes // 4]] = 0.0
        elif self.kind == "sparse":
            for tensor in (weight, bias):
                tensor[tensor.abs() < tensor.abs().quantile(0.5)] = 0.0
        return batch.observe(HeadGradient(weight.to(self.dtype), bias.to(self.dtype)))


KINDS = ("exact", "noisy", "zero rows", "zero bias", "sparse", "confident")


def cases():
    """200 heads of 2 to 1000 classes, spaced evenly in the logarithm but for the largest."""
    sizes = [*np.geomspace(2, 150, 180).round().astype(int).tolist()]
    sizes += [200] * 6 + [300] * 7 + [400] * 4 + [600, 1000, 1000]
    for number, classes in enumerate(sizes):
        yield Case(
            classes,
            features=(20, 64, 150)[number // 6 % 3],
            size=(4, 24, 64)[number // 18 % 3],
            kind=KINDS[number % 6],
            dtype=(torch.float64, torch.float32)[number // 3 % 2],
        )


CASES = list(cases())


def test_there_are_200_different_heads_of_every_kind():
    assert len(CASES) == 200
    assert {case.classes for case in CASES} >= {2, 3, 10, 1000}
    assert {case.kind for case in CASES} == set(KINDS)
    zero = [case for case in CASES if not case.observation().gradient.bias.all()]
    assert {case.kind for case in zero} >= {"zero rows", "zero bias", "sparse"}


def assert_solved_alike(found, raw, rounded):
    """Real numbers are equal up to rounding, and so are integers unless a number is near a half."""
    tolerance = 1e-5 * max(1.0, np.abs(raw).max())
    assert np.abs(found.raw.numpy() - raw).max() <= tolerance
    decided = np.abs(raw - np.floor(raw) - 0.5) > 2 * tolerance
    assert (found.rounded.numpy() == rounded)[decided].all()


@pytest.mark.parametrize("case", CASES, ids=str)
def test_counts_equal_those_of_a_plain_pseudo_inverse(case):
    observation = case.observation()
    found = ilrg(observation)
    raw, rounded = plain_ilrg(observation)
    assert_solved_alike(found, raw, rounded)
    assert int(found.counts.sum()) == case.size
    assert torch.equal(found.present, found.counts > 0)


# Wide enough for the gradient's small rank to be made use of.
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_wide_head_and_a_small_batch_give_the_same(kind, dtype):
    case = Case(160, 200, 4, kind, dtype)
    found = ilrg(case.observation())
    raw, rounded = plain_ilrg(case.observation())
    assert_solved_alike(found, raw, rounded)


@pytest.mark.parametrize("case", CASES[20:180:5], ids=str)
def test_known_classes_give_what_a_plain_pseudo_inverse_gives(case):
    observation = case.observation()
    generator = rng(case.classes)
    number = int(torch.randint(1, min(case.classes, case.size) + 1, (1,), generator=generator))
    known = torch.randperm(case.classes, generator=generator)[:number]
    found = ilrg(replace(observation, present_classes=known))
    raw, rounded = plain_ilrg(observation, known.tolist())
    assert_solved_alike(found, raw, rounded)
    others = torch.ones(case.classes, dtype=torch.bool).index_fill(0, known, False)
    assert not found.raw[others].any()


def test_counts_of_known_classes_go_to_no_other_class():
    """Where the assumptions fail, the counts miss the total: known classes make up for it."""
    spilt = False
    for seed in range(10):
        random = rng(seed)
        weight = 3 * torch.randn(6, 20, generator=random, dtype=torch.float64)
        embeddings = torch.randn(24, 20, generator=random, dtype=torch.float64).relu()
        labels = torch.randint(3, (24,), generator=random)
        error = torch.softmax(embeddings @ weight.T, dim=1)
        error[torch.arange(24), labels] -= 1.0
        gradient = HeadGradient(error.T @ embeddings / 24, error.mean(dim=0))
        head = Head(weight, torch.zeros(6, dtype=torch.float64))
        seen = Observation(
            head,
            gradient,
            present_classes=torch.arange(3, dtype=torch.int32),
            **told(batch_size=24),
        )
        found = ilrg(seen)
        spilt |= bool(project_to_counts(found.raw, 24)[3:].any())
        assert not found.counts[3:].any()
        assert int(found.counts.sum()) == 24
        shares = ilrg(replace(seen, training=LocalTraining())).proportions
        assert not shares[3:].any()
        assert float(shares.sum()) == pytest.approx(1.0)
    assert spilt, "without that restriction, other classes get counts in some of these"


@pytest.mark.parametrize("make", [one_embedding, separated])
def test_without_a_batch_size_the_shares_are_right(make):
    batch = make(10, 30, 24)
    found = ilrg(batch.observe(batch_size=None))
    assert found.counts is None
    assert found.rounded is None
    assert float(found.proportions.sum()) == pytest.approx(1)
    assert float(found.proportions.min()) >= 0
    torch.testing.assert_close(found.proportions, batch.counts / 24.0, check_dtype=False)
    torch.testing.assert_close(found.raw, found.proportions)
    known = ilrg(batch.observe())
    torch.testing.assert_close(known.proportions, found.proportions)


def test_without_a_batch_size_clear_shares_are_present():
    batch = one_embedding(10, 30, 12)
    batch.labels = torch.tensor([0, 0, 3, 3, 3, 5, 5, 5, 5, 8, 8, 8])
    assert ilrg(batch.observe(batch_size=None)).present.nonzero()[:, 0].tolist() == [0, 3, 5, 8]


def test_several_steps_are_one_step_on_all_their_samples():
    batch = one_embedding(10, 30, 24)
    found = ilrg(batch.observe(batch_size=6, local_steps=4))
    assert torch.equal(found.counts, batch.counts)
    assert int(found.counts.sum()) == 24


@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_several_steps_of_either_loss_count_all_samples(reduction):
    batch = one_embedding(10, 30, 24)
    # The mean of four steps' gradients, each of them a mean or a sum over six samples.
    gradient = batch.gradient()
    scale = 6 if reduction == "sum" else 1
    gradient = HeadGradient(scale * gradient.weight, scale * gradient.bias)
    found = ilrg(batch.observe(gradient, batch_size=6, local_steps=4, reduction=reduction))
    assert torch.equal(found.counts, batch.counts)


def test_quotients_over_zero_are_bounded_and_zero_over_zero_is_zero():
    weight = torch.tensor([[2.0, -3.0, 0.0], [1.0, 2.0, 3.0], [0.0, 0.0, 0.0], [-3.0, 1.0, -3.0]])
    bias = torch.tensor([0.0, 0.5, 0.0, -0.5])
    found = ilrg(Observation(Head(weight, bias), HeadGradient(weight, bias), **told(batch_size=4)))
    bound = 1e10
    expected = [[bound, -bound, 0.0], [2.0, 4.0, 6.0], [0.0, 0.0, 0.0], [6.0, -2.0, 6.0]]
    assert found.class_embeddings.tolist() == expected
