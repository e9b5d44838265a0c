"""The network, the sites' data and their local training."""

from hashlib import sha256

import torch
from flwr.app import ArrayRecord
from torch import Tensor, nn

from labelleak.lab.datasets import load
from labelleak.lab.networks import build


def network() -> nn.Module:
    """A fully connected network of three layers, untrained."""
    return build("fcn-3", classes=10, image_shape=(1, 28, 28), seed=0)


def partition(site: int, sites: int, alpha: float) -> Tensor:
    """Which of the 5,000 embedded digits a site holds: the classes' shares are Dirichlet."""
    labels = load("mnist-sample").labels
    owner = torch.empty_like(labels)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        shares = torch.distributions.Dirichlet(torch.full((sites,), alpha)).sample((10,))
        for digit in range(10):
            members = torch.nonzero(labels == digit).flatten()
            owner[members] = torch.multinomial(shares[digit], len(members), replacement=True)
    return torch.nonzero(owner == site).flatten()


def train(model: nn.Module, inputs: Tensor, labels: Tensor, lr: float) -> float:
    """One step of SGD on all that is given; the loss before it."""
    optimizer = torch.optim.SGD(model.parameters(), lr=lr)
    loss = nn.functional.cross_entropy(model(inputs), labels)
    loss.backward()  # type: ignore[no-untyped-call]
    optimizer.step()
    return loss.item()


def accuracy(arrays: ArrayRecord) -> float:
    """Share of the embedded digits that a model with these weights tells right."""
    model = network()
    model.load_state_dict(arrays.to_torch_state_dict())
    digits = load("mnist-sample")
    inputs, labels = digits.batch(torch.arange(len(digits.labels)))
    with torch.no_grad():
        return float((model(inputs).argmax(1) == labels).double().mean())


def fingerprint(arrays: ArrayRecord) -> str:
    """SHA-256 over all arrays' bytes."""
    return sha256(b"".join(array.data for array in arrays.values())).hexdigest()
