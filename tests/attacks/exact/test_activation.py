"""Activations against torch's own, with derivatives by autograd."""

import pytest
import torch

from labelleak.attacks.exact.activation import (
    GELU,
    GELU_BY_SIGMOID,
    GELU_BY_TANH,
    RELU,
    SIGMOID,
    SILU,
    SMOOTH,
    TANH,
    activation_of,
)

MODULES = [
    (torch.nn.Tanh(), TANH),
    (torch.nn.Sigmoid(), SIGMOID),
    (torch.nn.GELU(), GELU),
    (torch.nn.GELU("tanh"), GELU_BY_TANH),
    (torch.nn.SiLU(), SILU),
    (torch.nn.ReLU(), RELU),
]


class QuickGELU(torch.nn.Module):
    """As other libraries write it."""

    def forward(self, inputs):
        return inputs * torch.sigmoid(1.702 * inputs)


@pytest.mark.parametrize(("module", "activation"), [*MODULES, (QuickGELU(), GELU_BY_SIGMOID)])
def test_values_slopes_and_curvatures_are_those_of_autograd(module, activation):
    inputs = torch.linspace(-7.0, 7.1, 60, dtype=torch.float64, requires_grad=True)
    values = module(inputs)
    slopes = torch.autograd.grad(values.sum(), inputs, create_graph=True)[0]
    plain = inputs.detach()
    assert torch.allclose(activation.values(plain), values, atol=1e-12)
    assert torch.allclose(activation.slopes(plain), slopes, atol=1e-12)
    if activation.is_smooth:
        curvatures = torch.autograd.grad(slopes.sum(), inputs)[0]
        assert torch.allclose(activation.curvatures(plain), curvatures, atol=1e-8)
    assert activation_of(module) is activation


def test_only_the_relu_is_not_smooth():
    assert not RELU.is_smooth
    assert all(activation.is_smooth for activation in SMOOTH)


class Fragile(torch.nn.Module):
    def forward(self, inputs):
        raise KeyError(len(inputs))


@pytest.mark.parametrize(
    "module",
    [
        torch.nn.Softmax(dim=-1),
        torch.nn.LayerNorm(4),
        torch.nn.LayerNorm(41, elementwise_affine=False),
        torch.nn.Dropout(0.5),
        torch.nn.Identity(),
        torch.nn.LeakyReLU(),
        torch.nn.Linear(41, 41),
        torch.nn.Embedding(3, 4),
        torch.nn.Module(),
        Fragile(),
    ],
)
def test_other_modules_are_no_activation(module):
    assert activation_of(module) is None


def test_hooks_of_the_model_do_not_see_the_probe():
    module, seen = torch.nn.Tanh(), []
    module.register_forward_hook(lambda *_: seen.append(1))
    assert activation_of(module) is TANH
    assert not seen
