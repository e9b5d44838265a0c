import pytest
import torch

from labelleak.inversion.objective import cosine_distance, squared_distance, total_variation


def tensors(seed, requires_grad=False):
    random = torch.Generator().manual_seed(seed)
    shapes = [(3, 4), (3,), (2, 3, 2, 2)]
    return [
        torch.randn(shape, generator=random, dtype=torch.float64).requires_grad_(requires_grad)
        for shape in shapes
    ]


def flat(parts):
    return torch.cat([part.reshape(-1) for part in parts])


def derivative(distance, gradients):
    return [cotangent * distance.factor for cotangent in distance.cotangents]


def test_cosine_distance_is_that_of_torch_and_so_is_its_derivative():
    gradients, target = tensors(1, requires_grad=True), tensors(2)
    unit = [part / flat(target).norm() for part in target]
    expected = 1 - torch.cosine_similarity(flat(gradients), flat(target), dim=0)
    slopes = torch.autograd.grad(expected, gradients)
    with torch.no_grad():
        found = cosine_distance(gradients, [-part for part in unit])
    torch.testing.assert_close(found.value, expected.detach())
    for ours, slope in zip(derivative(found, gradients), slopes, strict=True):
        torch.testing.assert_close(ours, slope)


def test_squared_distance_is_that_of_torch_and_so_is_its_derivative():
    gradients, target = tensors(1, requires_grad=True), tensors(2)
    expected = torch.nn.functional.mse_loss(flat(gradients), flat(target), reduction="sum")
    slopes = torch.autograd.grad(expected, gradients)
    with torch.no_grad():
        found = squared_distance(gradients, [-part for part in target])
    torch.testing.assert_close(found.value, expected.detach())
    for ours, slope in zip(derivative(found, gradients), slopes, strict=True):
        torch.testing.assert_close(ours, slope)


def test_distances_are_zero_where_the_gradients_agree():
    target = tensors(3)
    norm = flat(target).norm()
    twice = [2 * part for part in target]
    assert float(cosine_distance(twice, [-part / norm for part in target]).value) < 1e-12
    assert float(squared_distance(target, [-part for part in target]).value) == 0.0


@pytest.mark.parametrize("shape", [(2, 3, 5, 4), (1, 1, 1, 6), (2, 1, 1, 1)])
def test_total_variation_is_the_mean_difference_of_neighbors(shape):
    images = torch.rand(shape, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    images.requires_grad_()
    expected = images.sum() * 0
    for dimension in (2, 3):
        if shape[dimension] > 1:
            expected = expected + images.diff(dim=dimension).abs().mean()
    (slope,) = torch.autograd.grad(expected, images)
    value, found = total_variation(images.detach())
    torch.testing.assert_close(value, expected.detach())
    torch.testing.assert_close(found, slope)
