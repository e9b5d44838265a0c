"""From virtual clients' updates to a real client's counts: kernel ridge regression."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

# Ridges that are tried, relative to the mean squared length of an update: from none to strong.
_RIDGES = tuple(10.0**power for power in (-5.0, -4.0, -3.0, -2.5, -2.0, -1.5, -1.0, -0.5, 0.0, 0.5))


@dataclass(frozen=True, eq=False)
class Estimate:
    """What the regression says of a real client.

    Attributes:
        values: Estimated targets, float64, shape (classes,).
        errors: Their standard errors, likewise, as virtual clients of the other pool had them.
        novelty: How far the update is from all those simulated, in units of how far simulated ones
            of one pool are from those of the other.
    """

    values: Float[Tensor, " classes"]
    errors: Float[Tensor, " classes"]
    novelty: float


def similarity(
    seen: Sequence[Mapping[str, Tensor]], observed: Mapping[str, Tensor]
) -> Float[Tensor, "clients_and_one clients_and_one"]:
    """Inner products of updates about their mean, each tensor of the network as important as another.

    Args:
        seen: Changes of the virtual clients, by name of the tensor.
        observed: Those of the real client.

    Returns:
        float64; the last row and column are the real client's.
    """
    total = torch.zeros(len(seen) + 1, len(seen) + 1, dtype=torch.float64)
    used = 0
    for name, own in observed.items():
        rows = torch.stack([*(one[name] for one in seen), own])
        rows = rows - rows[:-1].mean(dim=0)
        products = (rows @ rows.T).double()
        size = float(products.diagonal()[:-1].mean())
        if size > 0.0:
            total += products / size
            used += 1
    return total / max(used, 1)


def regress(
    products: Float[Tensor, "clients_and_one clients_and_one"],
    targets: Float[Tensor, "clients classes"],
    pools: Int[Tensor, " clients"],
    weights: Float[Tensor, " clients"],
) -> Estimate:
    """Read a real client's target from the updates and targets of virtual ones.

    The ridge is the one under which clients of either pool are best predicted from those of the
    other. Within a pool clients share samples, and an update tells which; only another pool's
    errors are those of fresh samples.

    Args:
        products: As of `similarity`.
        targets: Of the virtual clients.
        pools: 0 or 1 for each.
        weights: How much each virtual client counts, positive.
    """
    sides = [(pools == pool).nonzero()[:, 0] for pool in (0, 1)]
    best = None
    for ridge in _RIDGES:
        left = torch.zeros_like(targets)
        for own, other in (sides, sides[::-1]):
            left[own] = targets[own] - _predicted(products, targets, weights, other, own, ridge)[0]
        spread = (weights[:, None] * left.square()).sum(dim=0) / weights.sum()
        if best is None or float(spread.sum()) < best[0]:
            best = float(spread.sum()), ridge, spread
    assert best is not None
    ridge, everyone = best[1], torch.arange(len(targets))
    last = torch.tensor([len(targets)])
    values, distance = _predicted(products, targets, weights, everyone, last, ridge)
    usual = []
    for own, other in (sides, sides[::-1]):
        usual.append(_predicted(products, targets, weights, other, own, ridge)[1])
    usual_distance = float(torch.cat(usual).clamp_min(0.0).mean())
    novelty = float(distance.clamp_min(0.0)[0]) / max(usual_distance, 1e-300)
    return Estimate(values[0], best[2].sqrt(), novelty**0.5)


def _predicted(
    products: Float[Tensor, "clients_and_one clients_and_one"],
    targets: Float[Tensor, "clients classes"],
    weights: Float[Tensor, " clients"],
    known: Int[Tensor, " known"],
    asked: Int[Tensor, " asked"],
    ridge: float,
) -> tuple[Float[Tensor, "asked classes"], Float[Tensor, " asked"]]:
    """Targets of the asked predicted from the known, and how far those are from all the known."""
    share = weights[known] / weights[known].sum()
    center = products[:, known] @ share
    centered = products - center[:, None] - center[None, :] + share @ center[known]
    own = centered[known][:, known]
    noise = ridge * float(share @ own.diagonal()) / (weights[known] / weights[known].mean())
    factor = torch.linalg.cholesky(own + torch.diag(noise))
    mean = share @ targets[known]
    across = centered[asked][:, known]
    solved = torch.cholesky_solve(targets[known] - mean, factor)
    reached = torch.linalg.solve_triangular(factor, across.T, upper=False)
    distance = centered[asked, asked] - reached.square().sum(dim=0)
    return mean + across @ solved, distance
