"""Second derivatives against PyTorch's own."""

from contextlib import nullcontext

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from labelleak.inversion.derivatives import SecondDerivatives
from labelleak.lab.networks import build


def second_derivatives(
    network: nn.Module, inputs: Tensor, *, fast: bool
) -> tuple[list[Tensor], list[Tensor]]:
    """The gradient of some loss, and the derivative of a random function of it by the inputs."""
    parameters = [p for p in network.parameters() if p.requires_grad]
    inputs = inputs.clone().requires_grad_()
    target = torch.zeros((), dtype=torch.float64).requires_grad_()
    with SecondDerivatives() if fast else nullcontext():
        logits = network(inputs).flatten(1)
        loss = (logits.tanh().mean(dim=1) - target).square().sum()
    first = torch.autograd.grad(loss, parameters, create_graph=True)
    generator = torch.Generator().manual_seed(1)
    weights = [torch.randn(g.shape, generator=generator, dtype=g.dtype) for g in first]
    second = torch.autograd.grad(first, [inputs, target], weights)
    return [g.detach() for g in first], list(second)


def agree(network: nn.Module, inputs: Tensor) -> None:
    fast = second_derivatives(network, inputs, fast=True)
    slow = second_derivatives(network, inputs, fast=False)
    for one, other in zip((*fast[0], *fast[1]), (*slow[0], *slow[1]), strict=True):
        assert one.norm() > 0
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-12)


@settings(max_examples=30, deadline=None)
@given(
    stride=st.sampled_from([1, 2, (1, 2)]),
    padding=st.sampled_from([0, 1, (2, 0), "same"]),
    dilation=st.sampled_from([1, 2]),
    groups=st.sampled_from([1, 2]),
    bias=st.booleans(),
)
def test_convolutions(
    stride: int | tuple[int, int],
    padding: int | tuple[int, int] | str,
    dilation: int,
    groups: int,
    bias: bool,
) -> None:
    torch.manual_seed(0)
    stride = 1 if padding == "same" else stride
    options = {"dilation": dilation, "groups": groups, "bias": bias, "dtype": torch.float64}
    network = nn.Sequential(
        nn.Conv2d(2, 4, 3, stride=stride, padding=padding, **options),
        nn.Softplus(),
        nn.Conv2d(4, 2, (3, 2), **{**options, "dilation": 1}),
    )
    agree(network, torch.randn(3, 2, 12, 11, dtype=torch.float64))


@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("statistics", [True, False])
def test_batch_normalization(affine: bool, statistics: bool) -> None:
    torch.manual_seed(0)
    layers = [
        nn.Conv2d(2, 3, 3),
        nn.BatchNorm2d(3, affine=affine, track_running_stats=statistics),
        nn.Softplus(),
        nn.Flatten(),
        nn.Linear(48, 6),
        nn.BatchNorm1d(6),
    ]
    network = nn.Sequential(*layers).double()
    for layer in network.modules():
        if isinstance(layer, nn.BatchNorm1d | nn.BatchNorm2d) and layer.running_var is not None:
            nn.init.normal_(layer.running_mean)
            nn.init.uniform_(layer.running_var, 0.5, 2.0)
        if isinstance(layer, nn.BatchNorm1d | nn.BatchNorm2d) and layer.affine:
            nn.init.normal_(layer.weight)
    agree(network.eval(), torch.randn(5, 2, 6, 6, dtype=torch.float64))


def test_in_training_mode_statistics_are_the_batchs_own() -> None:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3, momentum=0.0)).double()
    agree(network, torch.randn(5, 2, 6, 6, dtype=torch.float64))


@pytest.mark.parametrize("frozen", ["0.weight", "0.bias", "1.weight", "1.bias"])
def test_frozen_parameters(frozen: str) -> None:
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3), nn.Softplus(), nn.Conv2d(3, 1, 2)
    )
    network.double().eval().get_parameter(frozen).requires_grad_(requires_grad=False)
    agree(network, torch.randn(5, 2, 6, 6, dtype=torch.float64))


def test_a_single_image_without_a_batch() -> None:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(2, 3, 3), nn.Softplus()).double()
    agree(network, torch.randn(2, 6, 6, dtype=torch.float64))


class Odd(nn.Module):
    """A convolution that is called in a way of its own."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how = how
        self.first, self.second = nn.Conv2d(2, 4, 3), nn.Conv2d(4, 4, 3, bias=False)
        self.norm, self.more = nn.BatchNorm2d(4), nn.Linear(4, 8)

    def forward(self, images: Tensor) -> Tensor:
        hidden = nn.functional.softplus(self.first(images))
        weight, scale, shift = self.second.weight, self.norm.weight, self.norm.bias
        sums = self.more(hidden.mean(dim=(0, 2, 3)))
        if self.how == "weight from the images":
            weight = weight * sums[:4, None, None, None]
        elif self.how == "standardized weight":
            weight = weight / weight.std()
        elif self.how == "scale from the images":
            scale, shift = scale * sums[:4], shift + sums[4:]
        hidden = nn.functional.conv2d(input=hidden, weight=weight, padding=(1,), stride=[2])
        mean, var = self.norm.running_mean, self.norm.running_var
        hidden = nn.functional.batch_norm(hidden, mean, var, scale, shift)
        return hidden + sums.sum()


@pytest.mark.parametrize(
    "how",
    [
        "weight from the images",
        "scale from the images",
        "standardized weight",
        "plain, sizes of one number",
    ],
)
def test_functional_use(how: str) -> None:
    torch.manual_seed(0)
    network = Odd(how).double()
    agree(network, torch.randn(3, 2, 9, 8, dtype=torch.float64))


def test_layers_used_twice_operations_in_place_and_hooks() -> None:
    torch.manual_seed(0)
    layer, norm = nn.Conv2d(2, 2, 3, padding=1), nn.BatchNorm2d(2)
    inputs = torch.randn(3, 2, 9, 8, dtype=torch.float64)
    for activation in (nn.ReLU(inplace=True), nn.SiLU()):
        network = nn.Sequential(layer, norm, activation, layer, norm, activation)
        network.double().eval()
        agree(network, inputs.to(memory_format=torch.channels_last))
        agree(network, inputs.transpose(2, 3)[..., ::2])
    for module in network:
        module.register_full_backward_hook(lambda module, before, after: None)
    agree(network, inputs)


def test_mixed_precision_is_left_to_pytorch() -> None:
    class Mixed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.Sequential(nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3), nn.Conv2d(3, 2, 3))

        def forward(self, images: Tensor) -> Tensor:
            with torch.autocast("cpu", torch.bfloat16):
                return self.layers(images).double()

    torch.manual_seed(0)
    agree(Mixed().eval(), torch.randn(3, 2, 9, 8))


def test_what_is_simple_is_not_left_to_pytorch() -> None:
    images = torch.randn(2, 2, 6, 6)
    with SecondDerivatives():
        convolved = nn.Conv2d(2, 3, 3)(images)
        normalized = nn.BatchNorm2d(2).eval()(images)
    assert type(convolved.grad_fn).__name__ == "_ConvolutionBackward"
    assert type(normalized.grad_fn).__name__ == "_NormalizationBackward"


def test_a_network_of_the_paper() -> None:
    network = build("resnet18", classes=10, image_shape=(3, 32, 32), seed=0).double().eval()
    inputs = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0)).double()
    agree(network, inputs)
