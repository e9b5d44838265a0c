"""From what an update shows of a class to its share: small networks, one for all classes."""

from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from jaxtyping import Float, Int
from scipy.optimize import nnls
from torch import Tensor, nn
from torch.nn import functional

from labelleak.isolation import undisturbed

# Networks, each trained without another part of the virtual clients.
_PARTS = 5
# Of each: width of its two hidden layers, steps, virtual clients of a step, rate and weight decay.
_WIDTH, _STEPS, _BATCH, _RATE, _DECAY = 64, 250, 16, 2e-3, 3e-2
# Share of the mean squared error that every class has at least.
_LEAST_VARIANCE = 0.1
# Most rows of a step of one network.
_MOST_AT_ONCE = 4096
# Rows, a class of a virtual client each, among which the nearest one is looked for, at most.
_MOST_ROWS = 2400
_TINY = 1e-12


@dataclass(frozen=True, eq=False)
class RowEstimate:
    """What the networks say of a real client.

    Attributes:
        shares: Estimated shares of the classes, float64, shape (classes,).
        constant: Variance of an error that all classes have.
        growing: Variance that an error has beside it, per unit of the class's share.
        novelty: How far the client's rows are from those of virtual clients, in units of how far
            those of one are from the others'.
    """

    shares: Float[Tensor, " classes"]
    constant: float
    growing: float
    novelty: float

    def errors(self, shares: Float[Tensor, " classes"]) -> Float[Tensor, " classes"]:
        """Standard errors of classes with these shares, larger where the client is novel."""
        variances = self.constant + self.growing * shares.clamp_min(0.0)
        return max(self.novelty, 1.0) * variances.sqrt()


def read_rows(
    rows: Float[Tensor, "clients classes features"],
    shares: Float[Tensor, "clients classes"],
    observed: Float[Tensor, "classes features"],
    variates: Float[Tensor, "clients_and_one classes"] | None = None,
) -> RowEstimate:
    """Read a real client's shares from its rows, as virtual clients' shares follow from theirs.

    A network maps each row to a number, and the softmax of an update's numbers are its shares. Each
    network predicts the virtual clients that it was trained without, which tells its error, and the
    real client has the mean of all predictions.

    Args:
        rows: Of virtual clients, as of `class_features`.
        shares: Of each row's class in its client.
        observed: The rows of the real client.
        variates: What is known of the shares beforehand, the real client's last: networks predict
            the sum of both, a mean prediction, which is positive and adds up to one. None where
            nothing is known.
    """
    center, spread = rows.flatten(0, 1).mean(dim=0), rows.flatten(0, 1).std(dim=0)
    flat = spread <= 1e-9 * rows.abs().amax(dim=(0, 1)).clamp_min(_TINY)
    scale = torch.where(flat, torch.inf, spread)
    used, asked = (((one - center) / scale).float() for one in (rows, observed))
    known = rows.new_zeros(len(rows) + 1, rows.shape[1]) if variates is None else variates
    parts = torch.arange(len(rows)) % _PARTS
    with undisturbed():
        torch.manual_seed(0)
        networks = _trained(used, (shares + known[:-1]).float(), parts)
        with torch.no_grad():
            means = torch.empty_like(shares)
            for part in range(_PARTS):
                # Of each part, what the network that was trained without it says.
                own = parts == part
                means[own] = networks(used[own].expand(_PARTS, -1, -1, -1))[part].double()
            found = networks(asked.expand(_PARTS, 1, -1, -1))[:, 0].double().mean(dim=0) - known[-1]
    left = shares - (means - known[:-1])
    design = torch.stack([torch.ones_like(shares), shares], dim=-1).flatten(0, 1)
    squares = left.square()
    (constant, growing), _ = nnls(design.numpy(), squares.flatten().numpy())
    # No class is sure because the fit went through the origin.
    least = _LEAST_VARIANCE * float(squares.mean())
    novelty = _novelty(used, asked, shares)
    return RowEstimate(found, max(float(constant), least), float(growing), novelty)


class _Networks(nn.Module):
    """As many networks as there are parts, which share no weight, in one pass."""

    def __init__(self, features: int) -> None:
        super().__init__()
        sizes = (features, _WIDTH, _WIDTH, 1)
        self.weights, self.biases = nn.ParameterList(), nn.ParameterList()
        for entries, outputs in pairwise(sizes):
            # As torch starts a linear layer.
            most = entries**-0.5
            for held, rows in ((self.weights, entries), (self.biases, 1)):
                held.append(torch.empty(_PARTS, rows, outputs).uniform_(-most, most))

    def forward(
        self, rows: Float[Tensor, "parts clients classes features"]
    ) -> Float[Tensor, "parts clients classes"]:
        """Mean predictions, which add up to one for every client."""
        values = rows.flatten(1, 2)
        for place, (weight, bias) in enumerate(zip(self.weights, self.biases, strict=True)):
            values = torch.baddbmm(bias, functional.gelu(values) if place else values, weight)
        return torch.softmax(values.reshape(rows.shape[:-1]), dim=-1)


def _trained(
    rows: Float[Tensor, "clients classes features"],
    means: Float[Tensor, "clients classes"],
    parts: Int[Tensor, " clients"],
) -> _Networks:
    """Networks whose mean predictions are off by little, each of the parts but its own."""
    networks = _Networks(rows.shape[-1])
    optimizer = torch.optim.AdamW(networks.parameters(), _RATE, weight_decay=_DECAY)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, _RATE, total_steps=_STEPS)
    size = min(_BATCH, max(1, _MOST_AT_ONCE // rows.shape[1]))
    others = (parts != torch.arange(_PARTS)[:, None]).float()
    for _ in range(_STEPS):
        batch = torch.multinomial(others, size, replacement=True)
        off = networks(rows[batch]) - means[batch]
        optimizer.zero_grad()
        torch.autograd.backward(off.abs().sum(dim=-1).mean(dim=1).sum())
        optimizer.step()
        schedule.step()
    return networks


def _novelty(
    rows: Float[Tensor, "clients classes features"],
    observed: Float[Tensor, "classes features"],
    shares: Float[Tensor, "clients classes"],
) -> float:
    """Mean distance of a real client's rows to the nearest of virtual ones, beside theirs."""
    clients, classes, features = rows.shape
    kept = _kept_classes(clients, classes, shares)
    used = torch.gather(rows, 1, kept[..., None].expand(-1, -1, features))
    each, used = used.shape[1], used.flatten(0, 1)
    between = torch.cdist(used, used)
    owner = torch.arange(clients).repeat_interleave(each)
    between[owner[:, None] == owner[None, :]] = torch.inf
    usual = float(between.amin(dim=1).mean())
    return float(torch.cdist(observed, used).amin(dim=1).mean()) / max(usual, _TINY)


def _kept_classes(
    clients: int, classes: int, shares: Float[Tensor, "clients classes"]
) -> Int[Tensor, "clients kept"]:
    """Indices of the classes of each client that are used: all, or evenly chosen by share."""
    most = max(2, _MOST_ROWS // clients)
    ordered = shares.argsort(dim=1)
    if classes <= most:
        return ordered
    places = torch.from_numpy(np.linspace(0, classes - 1, most).round()).long()
    return ordered[:, places]
