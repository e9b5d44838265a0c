import math
from fractions import Fraction
from functools import partial
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from labelleak.defenses import (
    clip_norm,
    defend,
    gaussian_noise,
    quantize,
    sign,
    soteria,
    soteria_mask,
    sparsify,
)
from labelleak.errors import InvalidObservation
from labelleak.observation import Head, HeadGradient, Observation
from synthetic import told, untrained


def rng(seed=0):
    return torch.Generator().manual_seed(seed)


def head_gradients(dtype=torch.float32):
    """Gradients of a head as cross-entropy makes them: they sum to zero over the classes."""
    logits = torch.randn(16, 5, generator=rng(1), dtype=torch.float64)
    labels = torch.randint(5, (16,), generator=rng(2))
    errors = logits.softmax(1) - torch.nn.functional.one_hot(labels, 5)
    embeddings = torch.rand(16, 7, generator=rng(3), dtype=torch.float64)
    return {
        "fc.weight": (errors.T @ embeddings / 16).to(dtype),
        "fc.bias": errors.mean(0).to(dtype),
    }


DEFENSES = {
    "noise": lambda gradients: gaussian_noise(gradients, 0.1, generator=rng()),
    "clip": partial(clip_norm, max_norm=0.01),
    "clip per tensor": partial(clip_norm, max_norm=0.01, per_tensor=True),
    "clip nothing": partial(clip_norm, max_norm=1e6),
    "sparsify": partial(sparsify, percent=60),
    "sparsify globally": partial(sparsify, percent=60, scope="global"),
    "sign": sign,
    "quantize": partial(quantize, bits=4),
    "quantize stochastically": lambda gradients: quantize(gradients, 4, generator=rng()),
    "soteria": partial(soteria, mask=torch.arange(7) > 2, weight_name="fc.weight"),
}
every_defense = pytest.mark.parametrize("defense", DEFENSES.values(), ids=DEFENSES)


@every_defense
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_names_shapes_and_dtypes_are_kept_and_inputs_left_alone(defense, dtype):
    gradients = head_gradients(dtype)
    before = {name: tensor.clone() for name, tensor in gradients.items()}
    defended = defense(gradients)
    assert list(defended) == list(gradients)
    for name, tensor in defended.items():
        assert (tensor.shape, tensor.dtype) == (gradients[name].shape, dtype)
        tensor.add_(1)  # what came out shares no memory with what went in
        assert torch.equal(gradients[name], before[name])


@every_defense
@pytest.mark.parametrize(
    ("gradients", "message"),
    [
        ({}, "no gradients"),
        ({"w": torch.tensor([1])}, "'w' is torch.int64: floating-point"),
        ({"w": torch.ones(2), "b": torch.zeros(0)}, "'b' has no entries"),
        ({"w": torch.tensor([1.0, math.nan])}, "'w' has NaN or infinite"),
        ({"w": torch.tensor([1.0, -math.inf])}, "'w' has NaN or infinite"),
    ],
)
def test_what_is_no_gradient_is_refused(defense, gradients, message):
    with pytest.raises(ValueError, match=message):
        defense(gradients)


@pytest.mark.parametrize(
    ("defense", "message"),
    [
        (partial(gaussian_noise, std=-1.0, generator=rng()), "std -1.0"),
        (partial(gaussian_noise, std=math.nan, generator=rng()), "std nan"),
        (partial(clip_norm, max_norm=0.0), "max_norm 0.0"),
        (partial(clip_norm, max_norm=math.inf), "max_norm inf"),
        (partial(sparsify, percent=-1), "percent -1"),
        (partial(sparsify, percent=100.5), "percent 100.5"),
        (partial(sparsify, percent=math.nan), "percent nan"),
        (partial(sparsify, percent=50, scope="layer"), "scope 'layer': choose"),
        (partial(quantize, bits=1), "1 bits"),
        (partial(quantize, bits=17), "17 bits"),
    ],
)
def test_impossible_strengths_are_refused_in_one_line(unchecked, defense, message):
    with pytest.raises(ValueError, match=message) as caught:
        defense(head_gradients())
    assert "\n" not in str(caught.value)


# Gaussian noise


def test_noise_has_the_asked_for_distribution():
    gradients = {"w": torch.full((200, 200), 3.0), "b": torch.zeros(10_000)}
    noise = gaussian_noise(gradients, 0.5, generator=rng())
    drawn = torch.cat([(noise[name] - gradients[name]).flatten() for name in gradients]).double()
    assert abs(drawn.mean()) < 5 * 0.5 / math.sqrt(drawn.numel())
    assert drawn.std() == pytest.approx(0.5, rel=5 / math.sqrt(2 * drawn.numel()))
    within = (drawn.abs() < 0.5).double().mean()
    assert within == pytest.approx(math.erf(1 / math.sqrt(2)), abs=0.01)
    # The tensors' noises are not the same.
    first, second = noise["w"].flatten()[:10_000] - 3, noise["b"]
    assert abs(torch.corrcoef(torch.stack([first, second]))[0, 1]) < 0.05


def test_noise_is_reproducible_and_none_at_all_at_zero():
    gradients = head_gradients()
    first, again, other = (
        gaussian_noise(gradients, 0.1, generator=rng(seed))["fc.weight"] for seed in (0, 0, 1)
    )
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    silent = gaussian_noise(gradients, 0.0, generator=rng())
    assert torch.equal(silent["fc.weight"], gradients["fc.weight"])


# Clipping


def test_clipping_by_hand():
    gradients = {"w": torch.tensor([[3.0, 0.0]]), "b": torch.tensor([4.0])}  # norm 5
    clipped = clip_norm(gradients, 1.0)
    torch.testing.assert_close(clipped, {"w": torch.tensor([[0.6, 0]]), "b": torch.tensor([0.8])})
    clipped = clip_norm(gradients, 3.5, per_tensor=True)
    torch.testing.assert_close(clipped, {"w": gradients["w"], "b": torch.tensor([3.5])})


@given(st.integers(0, 2**32), st.floats(0.01, 10.0), st.booleans())
def test_clipping_bounds_the_norm_keeps_the_direction_and_spares_small_gradients(
    seed, max_norm, per_tensor
):
    generator = rng(seed)
    gradients = {
        name: torch.randn(size, generator=generator, dtype=torch.float64)
        for name, size in (("w", (3, 4)), ("b", (3,)))
    }
    clipped = clip_norm(gradients, max_norm, per_tensor=per_tensor)
    for names in (["w"], ["b"]) if per_tensor else (["w", "b"],):
        before = np.concatenate([gradients[name].numpy().ravel() for name in names])
        after = np.concatenate([clipped[name].numpy().ravel() for name in names])
        if np.linalg.norm(before) <= max_norm:
            np.testing.assert_array_equal(after, before)
        else:
            np.testing.assert_allclose(np.linalg.norm(after), max_norm, rtol=1e-12)
            cosine = after @ before / np.linalg.norm(after) / np.linalg.norm(before)
            assert cosine == pytest.approx(1.0)


def test_clipping_sees_norms_beyond_half_precision():
    gradients = {"w": torch.full((4,), 60_000.0, dtype=torch.float16)}  # norm 120 000
    assert clip_norm(gradients, 2.0)["w"].tolist() == [1.0] * 4


# Sparsification


def test_sparsification_by_hand():
    gradients = {
        "w": torch.tensor([[0.1, -5.0], [3.0, -0.2]]),  # median magnitude 1.6
        "b": torch.tensor([10.0, 20.0, -30.0]),  # median magnitude 20, which stays
    }
    per_tensor = sparsify(gradients, 50)
    assert per_tensor["w"].tolist() == [[0, -5], [3, 0]]
    assert per_tensor["b"].tolist() == [0, 20, -30]
    together = sparsify(gradients, 50, scope="global")  # median magnitude of all is 5
    assert together["w"].tolist() == [[0, -5], [0, 0]]
    assert together["b"].tolist() == [10, 20, -30]


@pytest.mark.parametrize("percent", [0, 0.1, 10, 20, 33.3, 50, 80, 99.99, 100])
@pytest.mark.parametrize("size", [1, 2, 10, 1234])
def test_sparsification_follows_numpys_percentile(percent, size):
    gradients = {
        name: torch.randn(size, 3, generator=rng(seed), dtype=torch.float64) * scale
        for seed, (name, scale) in enumerate((("w", 1.0), ("b", 5.0)))
    }
    arrays = {name: tensor.numpy() for name, tensor in gradients.items()}
    everything = np.abs(np.concatenate(list(arrays.values())))
    for scope in ("tensor", "global"):
        pruned = sparsify(gradients, percent, scope=scope)
        for name, array in arrays.items():
            of = np.abs(array) if scope == "tensor" else everything
            threshold = np.percentile(of, percent, method="linear")
            expected = np.where(np.abs(array) < threshold, 0.0, array)
            np.testing.assert_array_equal(pruned[name].numpy(), expected)


@given(st.lists(st.integers(-4, 4), min_size=1, max_size=12), st.integers(0, 100))
def test_sparsification_follows_the_exact_percentile_where_magnitudes_tie(values, percent):
    ordered = sorted(abs(value) for value in values)
    place = Fraction(percent * (len(values) - 1), 100)
    below = math.floor(place)
    above = min(below + 1, len(values) - 1)
    threshold = ordered[below] + (place - below) * (ordered[above] - ordered[below])
    expected = [value if abs(value) >= threshold else 0 for value in values]
    assert sparsify({"w": torch.tensor(values).float()}, percent)["w"].tolist() == expected


@pytest.mark.parametrize("scope", ["tensor", "global"])
def test_a_higher_percentile_keeps_a_subset(scope):
    gradients = head_gradients()
    kept = [
        torch.cat([tensor.flatten() for tensor in sparsify(gradients, p, scope=scope).values()])
        for p in range(0, 101, 5)
    ]
    for more, fewer in pairwise(kept):
        assert torch.equal(fewer, torch.where(fewer != 0, more, 0))
    assert torch.equal(kept[0], torch.cat([tensor.flatten() for tensor in gradients.values()]))
    assert int((kept[-1] != 0).sum()) == (2 if scope == "tensor" else 1)


def test_one_percentile_of_tensors_of_several_dtypes():
    # In half precision 0.1 is 0.09998: below the median of the three, 0.1 in single precision.
    gradients = {
        "half": torch.tensor([0.1], dtype=torch.float16),
        "single": torch.tensor([0.1, 0.2]),
    }
    pruned = sparsify(gradients, 50, scope="global")
    assert pruned["half"].tolist() == [0.0]
    assert torch.equal(pruned["single"], gradients["single"])


def test_more_entries_than_torch_takes_a_quantile_of():
    size = 2**24 + 2
    magnitudes = torch.arange(size, dtype=torch.int32).float()  # ties above 2**24 only
    pruned = sparsify({"w": magnitudes}, 25)["w"]
    # The percentile is at 25 % of 2**24 + 1 = 4194304.25.
    assert int(pruned.count_nonzero()) == size - 4_194_305
    assert pruned[4_194_304] == 0
    assert pruned[4_194_305] == 4_194_305


# Sign


def test_sign_by_hand():
    signs = sign({"w": torch.tensor([[0.3, 0.0], [-2.0, 1e-30]])})
    assert signs["w"].tolist() == [[1, 0], [-1, 1]]


# Quantisation


def test_quantisation_by_hand():
    gradients = {
        "w": torch.tensor([6.0, -6.0, 1.2, 0.9, 0.0, -3.1]),  # 3 bits: steps of 2
        "b": torch.tensor([0.3, -0.1, -0.6]),  # 2 bits: steps of 0.6
    }
    assert quantize(gradients, 3)["w"].tolist() == [6, -6, 2, 0, 0, -4]
    torch.testing.assert_close(quantize(gradients, 2)["b"], torch.tensor([0.0, 0.0, -0.6]))


def test_quantisation_keeps_the_largest_magnitude_to_the_last_bit():
    for tensor in torch.randn(200, 5, generator=rng(), dtype=torch.float64):
        assert quantize({"w": tensor}, 3)["w"].abs().max() == tensor.abs().max()


def test_quantisation_of_zeros():
    zeros = torch.zeros(3)
    quantised = quantize({"w": zeros}, 2, generator=rng())["w"]
    assert quantised.tolist() == [0, 0, 0]
    assert quantised.data_ptr() != zeros.data_ptr()


@given(
    st.lists(st.floats(-1e3, 1e3), min_size=1, max_size=20),
    st.integers(2, 16),
    st.booleans(),
    st.sampled_from([torch.float32, torch.float64]),
)
def test_quantisation_is_on_the_grid_near_and_idempotent(values, bits, stochastic, dtype):
    tensor = torch.tensor(values, dtype=dtype)
    generator = rng() if stochastic else None
    quantised = quantize({"w": tensor}, bits, generator=generator)["w"]
    largest = float(tensor.abs().max())
    step = largest / (2 ** (bits - 1) - 1)
    error = (quantised.double() - tensor.double()).abs().max()
    assert error <= step * (1 if stochastic else 0.5) + 1e-6 * largest
    if step:
        places = quantised.double() / step
        assert (places - places.round()).abs().max() < 0.01
        assert places.abs().max().round() == 2 ** (bits - 1) - 1
    again = quantize({"w": quantised}, bits, generator=generator)["w"]
    assert torch.equal(again, quantised)


def test_stochastic_rounding_is_right_on_average():
    value, largest, draws = 0.37, 1.0, 40_000  # steps of 1/3: between 1/3 and 2/3
    tensor = torch.full((draws + 1,), value, dtype=torch.float64)
    tensor[-1] = largest
    rounded = quantize({"w": tensor}, 3, generator=rng())["w"][:-1]
    assert set(rounded.tolist()) == {1 / 3, 2 / 3}
    error = 5 * (1 / 3) / 2 / math.sqrt(draws)
    assert rounded.mean().item() == pytest.approx(value, abs=error)
    nearest = quantize({"w": tensor}, 3)["w"][:-1]
    assert nearest.mean().item() == pytest.approx(1 / 3)


def test_stochastic_rounding_with_two_bits_is_terngrad():
    tensor = torch.linspace(-2, 2, 9, dtype=torch.float64)
    draws = torch.stack(
        [quantize({"w": tensor}, 2, generator=rng(seed))["w"] for seed in range(2000)]
    )
    assert set(draws.unique().tolist()) == {-2, 0, 2}
    # Each entry keeps its sign with probability |g| / max|g|.
    assert torch.equal(draws.sign().abs() * tensor.sign(), draws.sign())
    shares = (draws != 0).double().mean(0)
    torch.testing.assert_close(shares, tensor.abs() / 2, rtol=0, atol=5 * 0.5 / math.sqrt(2000))


# What a server can still check, and the observation


@every_defense
def test_sums_over_the_classes_stay_zero_only_where_columns_are_scaled(defense, request):
    defended = defense(head_gradients(torch.float64))
    off = max(float(tensor.sum(0).abs().max()) for tensor in defended.values())
    if request.node.callspec.id.startswith(("clip", "soteria")):
        assert off < 1e-15
    else:
        assert off > 1e-3


def observation(**more):
    gradients = head_gradients()
    return Observation(
        head=Head(torch.zeros(5, 7), torch.zeros(5), name="fc"),
        gradient=HeadGradient(gradients["fc.weight"], gradients["fc.bias"]),
        **told(**more),
    )


@every_defense
def test_the_head_alone_is_defended_where_nothing_else_is_known(defense):
    before = observation(batch_size=16, label_smoothing=0.1)
    after = defend(before, defense)
    expected = defense(head_gradients())
    assert torch.equal(after.gradient.weight, expected["fc.weight"])
    assert torch.equal(after.gradient.bias, expected["fc.bias"])
    assert after.gradients is None
    assert (after.head, after.batch_size, after.loss) == (before.head, 16, before.loss)


@every_defense
def test_the_whole_update_is_defended_where_it_is_known(defense):
    gradients = {"conv.weight": torch.randn(4, 3, generator=rng(9)), **head_gradients()}
    before = observation(gradients=gradients)
    after, expected = defend(before, defense), defense(gradients)
    assert {name: tensor.tolist() for name, tensor in after.gradients.items()} == {
        name: tensor.tolist() for name, tensor in expected.items()
    }
    assert torch.equal(after.gradient.weight, expected["fc.weight"])
    assert torch.equal(after.gradient.bias, expected["fc.bias"])
    assert before.gradients is gradients


def test_the_rest_of_the_update_counts_towards_the_norm():
    large = {"conv.weight": torch.full((1,), 99.0)}
    alone = defend(observation(), partial(clip_norm, max_norm=1.0))
    beside = defend(
        observation(gradients={**large, **head_gradients()}), partial(clip_norm, max_norm=1.0)
    )
    ratio = beside.gradient.weight.norm() / alone.gradient.weight.norm()
    assert ratio == pytest.approx(1 / 99, rel=0.01)


@pytest.mark.parametrize("name", [None, "fc"])
def test_a_head_without_bias_or_name_is_defended(name):
    gradient = head_gradients()["fc.weight"]
    before = Observation(Head(torch.zeros(5, 7), name=name), HeadGradient(gradient))
    after = defend(before, sign)
    assert torch.equal(after.gradient.weight, gradient.sign())
    assert after.gradient.bias is None


@pytest.mark.parametrize("name", [None, ""])
def test_a_model_that_is_its_head_is_defended(name):
    gradients = {"weight": head_gradients()["fc.weight"]}
    before = Observation(
        Head(torch.zeros(5, 7), name=name), HeadGradient(gradients["weight"]), gradients=gradients
    )
    after = defend(before, sign)
    assert torch.equal(after.gradient.weight, gradients["weight"].sign())
    assert after.gradients["weight"] is after.gradient.weight


@pytest.mark.parametrize(
    ("gradients", "message"),
    [
        ({"conv.weight": torch.ones(3)}, r"lack fc\.weight and fc\.bias: give the head its name"),
        ({"fc.weight": torch.ones(5, 7)}, r"lack fc\.bias: "),
    ],
)
def test_a_head_that_is_not_in_the_update_is_refused(gradients, message):
    with pytest.raises(InvalidObservation, match=message):
        defend(observation(gradients=gradients), sign)


def test_a_defence_that_leaves_nothing_of_the_head_is_said():
    gradients = {"conv.weight": torch.full((1000,), 99.0), **head_gradients()}
    with pytest.raises(InvalidObservation, match="zero everywhere"):
        defend(observation(gradients=gradients), partial(sparsify, percent=50, scope="global"))


def network(*body, features=3):
    """A body in evaluation mode, and a head of two classes that is its last layer."""
    return torch.nn.Sequential(*body, torch.nn.Linear(features, 2)).eval()


def soteria_example(*activation):
    """r = (3x + 4y, x, -2y), with slopes of norm 5, 1 and 2."""
    layer = torch.nn.Linear(2, 3, bias=False)
    layer.weight.data = torch.tensor([[3.0, 4.0], [1.0, 0.0], [0.0, -2.0]])
    return network(layer, *activation)


@pytest.mark.parametrize(
    ("activation", "percent", "kept"),
    [
        # Slopes over values at (1, 1) and (2, 0): 5/7 + 5/6 = 1.55, 1 + 1/2 = 1.5, 2/2 + 2/0.
        ([], 0, [True, True, True]),
        ([], 40, [True, False, True]),
        ([], 60, [False, False, True]),
        ([], 100, [False, False, True]),
        # A ReLU switches the third feature off: no value and no slope, so it is pruned first.
        ([torch.nn.ReLU()], 40, [True, True, False]),
        ([torch.nn.ReLU()], 60, [True, False, False]),
    ],
)
def test_soteria_prunes_what_says_most_of_the_input(activation, percent, kept):
    model = soteria_example(*activation)
    inputs = torch.tensor([[1.0, 1.0], [2.0, 0.0]])
    mask = soteria_mask(model, inputs, percent, head=str(len(model) - 1))
    assert mask.tolist() == kept


@pytest.mark.parametrize("percent", [10, 25, 50, 90])
def test_soteria_scores_follow_the_jacobian(percent):
    with torch.random.fork_rng():
        torch.manual_seed(5)
        body = torch.nn.Sequential(
            torch.nn.Flatten(), torch.nn.Linear(12, 9), torch.nn.Tanh(), torch.nn.Linear(9, 8)
        )
    inputs = torch.randn(6, 3, 2, 2, generator=rng())
    mask = soteria_mask(network(body, features=8), inputs, percent, head="1")
    jacobians = torch.stack([torch.func.jacrev(lambda x: body(x[None])[0])(x) for x in inputs])
    norms = jacobians.flatten(2).norm(dim=2)
    scores = (norms / body(inputs).abs()).sum(dim=0).detach().numpy()
    assert mask.tolist() == (scores >= np.percentile(scores, percent)).tolist()
    assert not mask.all()
    assert inputs.grad is None
    assert not inputs.requires_grad


def test_soteria_changes_the_columns_of_the_head_alone():
    mask = torch.tensor([True, False, True, True, False, True, True])
    before = observation(gradients={"conv.weight": torch.ones(3), **head_gradients()})
    after = defend(before, partial(soteria, mask=mask, weight_name="fc.weight"))
    # What the head's gradient is if the pruned features are zero in every sample's embedding.
    assert torch.equal(after.gradient.weight, head_gradients()["fc.weight"] * mask)
    assert torch.equal(after.gradient.bias, before.gradient.bias)
    assert torch.equal(after.gradients["conv.weight"], torch.ones(3))


@pytest.mark.parametrize(
    ("mask", "weight_name", "message"),
    [
        (torch.ones(7, dtype=torch.bool), "head.weight", "no gradient 'head.weight': there are fc"),
        (torch.ones(5, dtype=torch.bool), "fc.weight", r"shape \(5,\) and torch.bool for"),
        (torch.ones(7), "fc.weight", "one bool for each of its columns"),
        (torch.ones(5, dtype=torch.bool), "fc.bias", "one bool for each of its columns"),
    ],
)
def test_a_mask_that_does_not_fit_is_refused(unchecked, mask, weight_name, message):
    with pytest.raises(ValueError, match=message):
        soteria(head_gradients(), mask, weight_name)


def test_soteria_refuses_what_it_cannot_score():
    model, inputs = soteria_example(), torch.ones(4, 2)
    with pytest.raises(ValueError, match="percent 101"):
        soteria_mask(model, inputs, 101, head="1")
    convolution = torch.nn.Sequential(torch.nn.Conv2d(1, 2, 1), torch.nn.Flatten()).eval()
    with pytest.raises(ValueError, match="layer '0' does not take one vector per sample once"):
        soteria_mask(convolution, torch.ones(4, 1, 2, 2), 10, head="0")
    with pytest.raises(ValueError, match=r"call model\.eval"):
        soteria_mask(model.train(), inputs, 10, head="1")


def test_a_defended_update_comes_without_the_client_s_undefended_model():
    batch = untrained(6, 12, 4)
    seen = batch.observe(after=batch.after(0.1))
    assert defend(seen, sign).after is None
