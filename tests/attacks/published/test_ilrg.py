import zlib
from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
from torch.nn.functional import one_hot

from labelleak.attacks import restore
from labelleak.attacks.published.ilrg import _System, ilrg
from labelleak.errors import MissingKnowledge
from labelleak.loss import Loss
from labelleak.observation import Head, HeadGradient, Observation
from labelleak.projection import project_to_counts
from labelleak.restoration import Flag
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
    """200 heads: 2 to 1000 classes, evenly on a logarithmic scale but for the largest."""
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


@pytest.mark.parametrize("case", CASES, ids=str)
def test_counts_equal_those_of_a_plain_pseudo_inverse(case):
    observation = case.observation()
    found = ilrg(observation)
    raw, rounded = plain_ilrg(observation)
    assert np.abs(found.raw.numpy() - raw).max() <= 1e-5 * max(1.0, np.abs(raw).max())
    assert found.rounded.tolist() == rounded.tolist()
    assert int(found.counts.sum()) == case.size
    assert torch.equal(found.present, found.counts > 0)


# Wide enough for the gradient's small rank to be made use of.
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_wide_head_and_a_small_batch_give_the_same(kind, dtype):
    case = Case(160, 200, 4, kind, dtype)
    found = ilrg(case.observation())
    raw, rounded = plain_ilrg(case.observation())
    assert np.abs(found.raw.numpy() - raw).max() <= 1e-5 * max(1.0, np.abs(raw).max())
    assert found.rounded.tolist() == rounded.tolist()


@pytest.mark.parametrize("case", CASES[20:180:5], ids=str)
def test_known_classes_give_what_a_plain_pseudo_inverse_gives(case):
    observation = case.observation()
    generator = rng(case.classes)
    number = int(torch.randint(1, min(case.classes, case.size) + 1, (1,), generator=generator))
    known = torch.randperm(case.classes, generator=generator)[:number]
    found = ilrg(replace(observation, present_classes=known))
    raw, rounded = plain_ilrg(observation, known.tolist())
    assert np.abs(found.raw.numpy() - raw).max() <= 1e-5 * max(1.0, np.abs(raw).max())
    assert found.rounded.tolist() == rounded.tolist()
    others = torch.ones(case.classes, dtype=torch.bool).index_fill(0, known, False)
    assert not found.raw[others].any()


def test_counts_of_known_classes_go_to_no_other_class():
    """Their solution misses the total where the assumptions fail; it is made up among them."""
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
    assert spilt, "made up among all classes, none of these would have come out wrong"


OPTIONS = [
    {"reduction": reduction, "label_smoothing": smoothing, "weighted": weighted}
    for reduction in ("mean", "sum")
    for smoothing in (0.0, 0.1)
    for weighted in (False, True)
]


def loss(reduction, label_smoothing, weighted, classes):
    weight = 0.2 + torch.rand(classes, generator=rng(5), dtype=torch.float64) * 3
    return {
        "reduction": reduction,
        "label_smoothing": label_smoothing,
        "weight": weight if weighted else None,
    }


def knowledge(loss):
    return {
        "reduction": loss["reduction"],
        "label_smoothing": loss["label_smoothing"],
        "class_weights": loss["weight"],
    }


def test_the_closed_form_of_the_synthetic_batches_is_autograd():
    batch = untrained(7, 11, 24)
    torch.testing.assert_close(batch.gradient().weight, batch.autograd().weight)
    torch.testing.assert_close(batch.gradient().bias, batch.autograd().bias)


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize(("classes", "size"), [(2, 5), (10, 24), (60, 100)])
def test_counts_are_exact_where_all_embeddings_are_the_same(options, classes, size):
    asked = loss(**options, classes=classes)
    batch = one_embedding(classes, 30, size, seed=classes)
    found = ilrg(batch.observe(batch.autograd(**asked), **knowledge(asked)))
    torch.testing.assert_close(found.raw, batch.counts.double(), rtol=0, atol=1e-8)
    assert torch.equal(found.counts, batch.counts)
    assert torch.equal(found.rounded, batch.counts)
    assert found.flags == ()


# With label smoothing a row is made of all samples, and its quotient is no class's embedding.
@pytest.mark.parametrize(
    "options",
    [{"reduction": r, "weighted": w} for r in ("mean", "sum") for w in (False, True)],
    ids=str,
)
@pytest.mark.parametrize(("classes", "size"), [(6, 20), (10, 24), (40, 100)])
def test_counts_are_exact_where_classes_differ_and_the_assumption_holds(options, classes, size):
    """Embeddings and predictions of the classes are restored, too."""
    asked = loss(**options, label_smoothing=0.0, classes=classes)
    batch = separated(classes, 2 * classes, size)
    found = ilrg(batch.observe(batch.autograd(**asked), **knowledge(asked)))
    torch.testing.assert_close(found.raw, batch.counts.double(), rtol=0, atol=1e-7)
    assert torch.equal(found.counts, batch.counts)
    for index in batch.labels.unique():
        embedding = batch.embeddings[batch.labels == index][0]
        torch.testing.assert_close(found.class_embeddings[index], embedding)
        probabilities = (batch.weight @ embedding + batch.bias).softmax(0)
        torch.testing.assert_close(found.class_probabilities[index], probabilities)


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("seed", range(4))
def test_the_equations_hold_for_any_predictions(options, seed):
    """With the true prediction of every class, the true counts solve all equations."""
    classes, size = 8, 30
    asked = loss(**options, classes=classes)
    labels = torch.randint(classes, (size,), generator=rng(seed))
    logits = 2 * torch.randn(classes, classes, generator=rng(seed + 1), dtype=torch.float64)
    bias = torch.zeros(classes, dtype=torch.float64, requires_grad=True)
    torch.nn.CrossEntropyLoss(**asked)(logits[labels] + bias, labels).backward()
    # On a summed loss the attack divides the gradient by the batch size first.
    gradient = bias.grad / (size if asked["reduction"] == "sum" else 1)
    observation = Observation(
        Head(torch.ones(classes, 1)),
        HeadGradient(torch.ones(classes, 1)),
        **told(batch_size=size, **knowledge(asked)),
    )
    counts = one_hot(labels, classes).sum(0).double()
    system = _System.of(observation, logits.softmax(1))
    unknowns = counts * system.weights
    if asked["reduction"] == "mean":
        unknowns *= size / unknowns.sum()
    torch.testing.assert_close(system.matrix @ unknowns, size * gradient)
    assert float(system.total_row @ unknowns) == pytest.approx(size)
    torch.testing.assert_close(
        system.matrix.sum(0), torch.zeros(classes, dtype=torch.float64), rtol=0, atol=1e-12
    )


@pytest.mark.parametrize("smoothing", [0.1, 0.3])
def test_smoothing_that_nobody_told_the_attack_spoils_the_counts(smoothing):
    """So the exact counts above are due to the equations, not to an easy batch."""
    batch = one_embedding(10, 30, 200)
    gradient = batch.autograd(label_smoothing=smoothing)
    told, untold = (ilrg(batch.observe(gradient, label_smoothing=a)) for a in (smoothing, 0.0))
    assert torch.equal(told.rounded, batch.counts)
    assert not torch.equal(untold.rounded, batch.counts)


def test_class_weights_that_nobody_told_the_attack_spoil_the_counts():
    batch = one_embedding(10, 30, 200)
    weights = torch.linspace(0.5, 3, 10, dtype=torch.float64)
    gradient = batch.autograd(weight=weights)
    assert torch.equal(ilrg(batch.observe(gradient, class_weights=weights)).rounded, batch.counts)
    assert not torch.equal(ilrg(batch.observe(gradient)).rounded, batch.counts)


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


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("kind", ["exact", "noisy"])
def test_renaming_the_classes_renames_the_counts(kind, seed):
    observation = Case(30, 20 + seed, 64, kind).observation()
    order = torch.randperm(30, generator=rng(seed))
    head, gradient = observation.head, observation.gradient
    renamed = replace(
        observation,
        head=Head(head.weight[order], head.bias[order]),
        gradient=HeadGradient(gradient.weight[order], gradient.bias[order]),
    )
    before, after = ilrg(observation), ilrg(renamed)
    torch.testing.assert_close(after.raw, before.raw[order], rtol=1e-7, atol=1e-7)
    assert torch.equal(after.counts, before.counts[order])
    torch.testing.assert_close(after.class_embeddings, before.class_embeddings[order])


@pytest.mark.parametrize("kind", ["exact", "noisy", "zero rows"])
def test_a_sum_is_a_mean_times_the_batch_size(kind):
    mean = Case(12, 20, 32, kind).observation()
    summed = replace(
        mean,
        gradient=HeadGradient(32 * mean.gradient.weight, 32 * mean.gradient.bias),
        loss=Loss(reduction="sum"),
    )
    torch.testing.assert_close(ilrg(summed).raw, ilrg(mean).raw, rtol=1e-9, atol=1e-9)
    assert torch.equal(ilrg(summed).counts, ilrg(mean).counts)


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


@pytest.mark.parametrize(
    "dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64], ids=str
)
def test_any_floating_point_format_is_computed_in_double_precision(dtype):
    batch = untrained(20, 200, 12, dtype=dtype)
    found = ilrg(batch.observe(dtype=dtype))
    assert torch.equal(found.counts, batch.counts)
    for real in (
        found.raw,
        found.proportions,
        found.class_embeddings,
        found.class_probabilities,
    ):
        assert real.dtype == torch.float64
    assert found.counts.dtype == found.rounded.dtype == torch.int64
    torch.testing.assert_close(
        found.class_probabilities.sum(1), torch.ones(20, dtype=torch.float64)
    )


def test_quotients_over_zero_are_bounded_and_zero_over_zero_is_zero():
    weight = torch.tensor([[2.0, -3.0, 0.0], [1.0, 2.0, 3.0], [0.0, 0.0, 0.0], [-3.0, 1.0, -3.0]])
    bias = torch.tensor([0.0, 0.5, 0.0, -0.5])
    found = ilrg(Observation(Head(weight, bias), HeadGradient(weight, bias), **told(batch_size=4)))
    bound = 1e10
    expected = [[bound, -bound, 0.0], [2.0, 4.0, 6.0], [0.0, 0.0, 0.0], [6.0, -2.0, 6.0]]
    assert found.class_embeddings.tolist() == expected


def test_the_inputs_are_left_as_they_were():
    observation = Case(10, 20, 24, "zero bias").observation()
    head, gradient = observation.head, observation.gradient
    tensors = [head.weight, head.bias, gradient.weight, gradient.bias]
    copies = [tensor.clone() for tensor in tensors]
    ilrg(observation)
    assert all(torch.equal(a, b) for a, b in zip(tensors, copies, strict=True))


def test_a_summed_loss_needs_the_batch_size():
    batch = untrained(5, 10, 4)
    with pytest.raises(MissingKnowledge, match="summed loss needs the batch size"):
        ilrg(batch.observe(batch_size=None, reduction="sum"))


def test_nearly_singular_equations_are_flagged():
    """Where every class is predicted with certainty, nothing tells one from another."""
    own = torch.eye(8, 16, dtype=torch.float64)
    gradient = HeadGradient(own, torch.ones(8, dtype=torch.float64))
    flags = {
        scale: ilrg(
            Observation(Head(scale * own, torch.zeros(8).double()), gradient, **told(batch_size=24))
        ).flags
        for scale in (1.0, 20.0, 1e6)
    }
    assert Flag.ILL_CONDITIONED not in flags[1.0]
    assert Flag.ILL_CONDITIONED in flags[20.0]
    assert Flag.ILL_CONDITIONED in flags[1e6]


def test_a_total_that_does_not_fit_is_flagged():
    batch = one_embedding(10, 30, 24)
    assert Flag.TOTAL_DOES_NOT_FIT not in ilrg(batch.observe()).flags
    gradient = batch.gradient()
    noise = torch.randn(10, generator=rng(), dtype=torch.float64)
    noisy = HeadGradient(gradient.weight, gradient.bias + 0.2 * noise)
    found = ilrg(batch.observe(noisy))
    assert abs(float(found.raw.clamp(0, 24).sum()) - 24) > 1.2
    assert Flag.TOTAL_DOES_NOT_FIT in found.flags
    assert int(found.counts.sum()) == 24


def with_fractions(fraction, classes=10, features=30, size=24, absent=0):
    """An observation of which the restored counts are off by the given share of a sample.

    Half of the present classes have that much too many, half too few, so that all else fits.
    """
    batch = one_embedding(classes, features, size)
    batch.labels = torch.arange(size) % (classes - absent)
    gradient = batch.gradient()
    change = torch.zeros(classes, dtype=torch.float64)
    change[0 : classes - absent : 2], change[1 : classes - absent : 2] = fraction, -fraction
    bias = gradient.bias - change / size
    # As from one mean embedding: the quotients stay what they were.
    weight = bias[:, None] * batch.embeddings[0]
    return batch.observe(HeadGradient(weight, bias))


@pytest.mark.parametrize(("fraction", "flagged"), [(0.0, 0), (0.1, 0), (0.2, 1), (0.45, 1)])
@pytest.mark.parametrize("absent", [0, 4])
def test_counts_far_from_integers_are_flagged(fraction, flagged, absent):
    observation = with_fractions(fraction, absent=absent)
    found = ilrg(observation)
    assert abs(float((found.raw - found.raw.round()).abs().max()) - fraction) < 1e-6
    assert (Flag.NOT_INTEGRAL in found.flags) == flagged
    assert Flag.TOTAL_DOES_NOT_FIT not in found.flags
    known = replace(observation, present_classes=torch.arange(10 - absent))
    assert (Flag.NOT_INTEGRAL in ilrg(known).flags) == flagged
    assert ilrg(replace(observation, training=LocalTraining())).flags == ()


def test_many_absent_classes_do_not_hide_what_is_wrong_with_the_others():
    observation = with_fractions(0.4, classes=200, size=8, absent=192)
    raw = ilrg(observation).raw
    assert float((raw - raw.round()).abs().mean()) < 0.02
    assert Flag.NOT_INTEGRAL in ilrg(observation).flags


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_fractions_are_of_instances_whatever_the_loss(options):
    """Class weights scale the unknowns of the equations, and not the counts."""
    batch = one_embedding(10, 30, 24)
    loss_options = loss(**options, classes=10)
    observation = batch.observe(batch.autograd(**loss_options), **knowledge(loss_options))
    assert Flag.NOT_INTEGRAL not in ilrg(observation).flags
    bias = observation.gradient.bias
    noise = torch.randn(10, generator=rng(1), dtype=torch.float64)
    bias = bias + 2 / 24 * bias.abs().sum() * (noise - noise.mean())
    spoilt = HeadGradient(bias[:, None] * batch.embeddings[0], bias)
    assert Flag.NOT_INTEGRAL in ilrg(replace(observation, gradient=spoilt)).flags


def test_restore_hands_on_what_the_attack_found():
    batch = separated(10, 30, 24)
    found, direct = restore(batch.observe(), "ilrg"), ilrg(batch.observe())
    for name in ("counts", "rounded", "raw", "proportions", "class_embeddings", "present"):
        assert torch.equal(getattr(found, name), getattr(direct, name))
    assert found.attack == "ilrg"
