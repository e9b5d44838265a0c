"""The patients, the hospitals' shares of them, and the two networks."""

from functools import cache

import torch
from flwr.app import ArrayRecord
from sklearn.datasets import load_breast_cancer
from torch import Tensor, nn

NAMES = ("cancer center", "general hospital", "screening unit")
MALIGNANT, BENIGN = (125, 63, 24), (60, 132, 165)
MEASUREMENTS, HIDDEN = 30, 32


def network(kind: str) -> nn.Module:
    """A logistic regression that starts at zero, or a small network; one logit, of malignancy."""
    if kind == "mlp":
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            hidden = nn.Linear(MEASUREMENTS, HIDDEN)
            return nn.Sequential(hidden, nn.ReLU(), nn.Linear(HIDDEN, 1))
    model = nn.Linear(MEASUREMENTS, 1)
    nn.init.zeros_(model.weight)
    nn.init.zeros_(model.bias)
    return model


@cache
def patients() -> tuple[Tensor, Tensor]:
    """Standardized measurements of all 569 patients, and whether the tumor is malignant."""
    measured, benign = load_breast_cancer(return_X_y=True)
    inputs = torch.tensor(measured, dtype=torch.float32)
    return (inputs - inputs.mean(0)) / inputs.std(0), 1 - torch.tensor(benign)


def own(site: int) -> Tensor:
    """Which patients a hospital has; no two have the same."""
    labels, random = patients()[1], torch.Generator().manual_seed(0)
    chosen = []
    for label, numbers in ((1, MALIGNANT), (0, BENIGN)):
        members = torch.nonzero(labels == label)[:, 0]
        members = members[torch.randperm(len(members), generator=random)]
        chosen.append(torch.split(members, list(numbers))[site])
    return torch.cat(chosen)


def admitted(site: int, server_round: int) -> tuple[Tensor, Tensor]:
    """A hospital's patients in an order of this round: a round takes as many as it needs."""
    random = torch.Generator().manual_seed(1000 * site + server_round)
    taken = own(site)
    taken = taken[torch.randperm(len(taken), generator=random)]
    inputs, labels = patients()
    return inputs[taken], labels[taken]


def train(model: nn.Module, inputs: Tensor, labels: Tensor, lr: float) -> float:
    """One step of SGD on all that is given; the loss before it."""
    optimizer = torch.optim.SGD(model.parameters(), lr=lr)
    loss = nn.functional.binary_cross_entropy_with_logits(model(inputs)[:, 0], labels.float())
    loss.backward()  # type: ignore[no-untyped-call]
    optimizer.step()
    return loss.item()


def accuracy(model: nn.Module, arrays: ArrayRecord) -> float:
    """Share of all patients that the network with these weights tells right."""
    model.load_state_dict(arrays.to_torch_state_dict())
    inputs, labels = patients()
    with torch.no_grad():
        return float(((model(inputs)[:, 0] > 0) == labels.bool()).double().mean())
