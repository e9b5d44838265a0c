import math
from fractions import Fraction
from functools import partial
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from head_gradients import every_defense, head_gradients, rng
from labelleak.defenses import (
    clip_norm,
    gaussian_noise,
    quantize,
    sign,
    sparsify,
)


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


def test_sign_by_hand():
    signs = sign({"w": torch.tensor([[0.3, 0.0], [-2.0, 1e-30]])})
    assert signs["w"].tolist() == [[1, 0], [-1, 1]]


def test_quantization_by_hand():
    gradients = {
        "w": torch.tensor([6.0, -6.0, 1.2, 0.9, 0.0, -3.1]),  # 3 bits: steps of 2
        "b": torch.tensor([0.3, -0.1, -0.6]),  # 2 bits: steps of 0.6
    }
    assert quantize(gradients, 3)["w"].tolist() == [6, -6, 2, 0, 0, -4]
    torch.testing.assert_close(quantize(gradients, 2)["b"], torch.tensor([0.0, 0.0, -0.6]))


def test_quantization_keeps_the_largest_magnitude_to_the_last_bit():
    for tensor in torch.randn(200, 5, generator=rng(), dtype=torch.float64):
        assert quantize({"w": tensor}, 3)["w"].abs().max() == tensor.abs().max()


def test_quantization_of_zeros():
    zeros = torch.zeros(3)
    quantized = quantize({"w": zeros}, 2, generator=rng())["w"]
    assert quantized.tolist() == [0, 0, 0]
    assert quantized.data_ptr() != zeros.data_ptr()


@given(
    st.lists(st.floats(-1e3, 1e3), min_size=1, max_size=20),
    st.integers(2, 16),
    st.booleans(),
    st.sampled_from([torch.float32, torch.float64]),
)
def test_quantization_is_on_the_grid_near_and_idempotent(values, bits, stochastic, dtype):
    tensor = torch.tensor(values, dtype=dtype)
    generator = rng() if stochastic else None
    quantized = quantize({"w": tensor}, bits, generator=generator)["w"]
    largest = float(tensor.abs().max())
    step = largest / (2 ** (bits - 1) - 1)
    error = (quantized.double() - tensor.double()).abs().max()
    assert error <= step * (1 if stochastic else 0.5) + 1e-6 * largest
    if step:
        places = quantized.double() / step
        assert (places - places.round()).abs().max() < 0.01
        assert places.abs().max().round() == 2 ** (bits - 1) - 1
    again = quantize({"w": quantized}, bits, generator=generator)["w"]
    assert torch.equal(again, quantized)


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


@every_defense
def test_sums_over_the_classes_stay_zero_only_where_columns_are_scaled(defense, request):
    defended = defense(head_gradients(torch.float64))
    off = max(float(tensor.sum(0).abs().max()) for tensor in defended.values())
    if request.node.callspec.id.startswith(("clip", "soteria")):
        assert off < 1e-15
    else:
        assert off > 1e-3
