"""The network, the sites' data and one step of training."""

import torch
from torch import Tensor, nn

from labelleak.lab.datasets import load
from labelleak.lab.networks import build

RATE, SAMPLES = 0.1, 24


def network() -> nn.Module:
    """A fully connected network of three layers, untrained."""
    return build("fcn-3", classes=10, image_shape=(1, 28, 28), seed=0)


def batch(site: int, number: int) -> tuple[Tensor, Tensor]:
    """The digits that a site takes in a round; every site has its own."""
    digits = load("mnist-sample")
    seed = torch.Generator().manual_seed(1000 * site + number)
    own = torch.arange(site, len(digits.labels), 3)
    return digits.batch(own[torch.randperm(len(own), generator=seed)[:SAMPLES]])


def train(model: nn.Module, inputs: Tensor, labels: Tensor) -> None:
    """One step of SGD on all that is given."""
    loss = nn.functional.cross_entropy(model(inputs), labels)
    loss.backward()  # type: ignore[no-untyped-call]
    torch.optim.SGD(model.parameters(), lr=RATE).step()
