"""From virtual clients' updates to a real client's counts: kernel ridge regression."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product

import torch
from jaxtyping import Float, Int
from scipy.optimize import nnls
from torch import Tensor

from labelleak.attacks.virtual.shown import BEHAVIOR

# Ridges that are tried, relative to the mean squared length of an update: from none to strong.
_RIDGES = tuple(10.0**power for power in (-5.0, -4.0, -3.0, -2.5, -2.0, -1.5, -1.0, -0.5, 0.0, 0.5))
# The least squared error of a share, relative to the mean.
_LEAST_PART = 0.1


@dataclass(frozen=True, eq=False)
class Estimate:
    """What the regression says of a real client.

    Attributes:
        values: Estimated shares, float64, shape (classes,).
        errors: Their standard errors, likewise, as virtual clients of the other pool had them.
        novelty: How far the update is from all those simulated, in units of how far simulated ones
            of one pool are from those of the other.
    """

    values: Float[Tensor, " classes"]
    errors: Float[Tensor, " classes"]
    novelty: float


def similarities(
    seen: Sequence[Mapping[str, Tensor]],
    observed: Mapping[str, Tensor],
    head: str,
    weights: Float[Tensor, " clients"],
) -> list[Float[Tensor, "clients_and_one clients_and_one"]]:
    """Inner products of what virtual clients and the real one show, about the weighted mean.

    There are several choices of what to compare, of which the regression takes the best: the whole
    update, each of its tensors with the same weight; the final layer and the model's behavior; and
    all of it.

    Args:
        seen: What is known of each virtual client, by name.
        observed: That of the real client.
        head: Name of the final layer.
        weights: How much each virtual client counts, positive. Products of those that count most
            are rounded least.

    Returns:
        float64; the last row and column are the real client's.
    """
    single, shares = {}, weights / weights.sum()
    for name, own in observed.items():
        rows = torch.stack([*(one[name] for one in seen), own])
        rows = rows - shares.to(rows.dtype) @ rows[:-1]
        if name == BEHAVIOR:
            rows = rows / rows[:-1].std(dim=0).clamp_min(torch.finfo(rows.dtype).eps)
        products = (rows @ rows.T).double()
        # Mean square about the plain mean.
        size = float(products.diagonal()[:-1].mean() - products[:-1, :-1].mean())
        if size > 0.0:
            single[name] = products / size
    tensors = [name for name in single if name != BEHAVIOR]
    final = [name for name in tensors if name.rpartition(".")[0] == head]
    update = mean_of([single[name] for name in tensors])
    shown = single.get(BEHAVIOR, update)
    choices = [update, (update + shown) / 2]
    if final:
        choices.append(mean_of([single[name] for name in final]) / 2 + shown / 2)
    return choices


def mean_of(tensors: Sequence[Tensor]) -> Tensor:
    """Mean of tensors of one shape."""
    return torch.stack(list(tensors)).mean(dim=0)


def regress(
    choices: Sequence[Float[Tensor, "clients_and_one clients_and_one"]],
    shares: Float[Tensor, "clients classes"],
    pools: Int[Tensor, " clients"],
    weights: Float[Tensor, " clients"],
    variates: Float[Tensor, "clients_and_one classes"],
) -> Estimate:
    """Read a real client's shares from what virtual ones show, and from their shares.

    Choice and ridge are those under which clients of either pool are best predicted from those of
    the other. Within a pool clients share samples, and an update tells which; only another pool's
    errors are those of fresh samples. The real client is predicted from both pools, hence better:
    errors are extrapolated to that number of virtual clients.

    Args:
        choices: As of `similarities`.
        shares: Of the virtual clients.
        pools: 0 or 1 for each.
        weights: How much each virtual client counts, positive.
        variates: What is known of the shares beforehand, the real client's last: the regression is
            of the rest.
    """
    targets = shares - variates[:-1]
    sides = [(pools == pool).nonzero()[:, 0] for pool in (0, 1)]
    turns = (sides, sides[::-1])
    best = None
    for products, ridge in product(choices, _RIDGES):
        left = torch.zeros_like(targets)
        for own, other in turns:
            left[own] = targets[own] - _predicted(products, targets, weights, other, own, ridge)[0]
        spread = (weights[:, None] * left.square()).sum(dim=0) / weights.sum()
        if best is None or float(spread.sum()) < best[0]:
            best = float(spread.sum()), products, ridge, left
    assert best is not None, "there are choices"
    _, products, ridge, left = best
    everyone, last = torch.arange(len(targets)), torch.tensor([len(targets)])
    values = variates[-1] + _predicted(products, targets, weights, everyone, last, ridge)[0][0]
    ratios = []
    for compared in choices:
        away = _predicted(compared, targets, weights, everyone, last, ridge)[1]
        usual = [
            _predicted(compared, targets, weights, other, own, ridge)[1] for own, other in turns
        ]
        ratios.append(float(away[0]) / max(float(torch.cat(usual).mean()), 1e-300))
    novelty = max(*ratios, 0.0) ** 0.5
    squares, quarters = left.square(), torch.zeros_like(left)
    for own, other in turns:
        for half in other.tensor_split(2):
            predicted, _ = _predicted(products, targets, weights, half, own, ridge)
            quarters[own] += (targets[own] - predicted).square() / 2
    squares = squares * _fall(squares, quarters, weights)
    # Farther from the known, a prediction is less sure.
    spread = spread_at(values.clamp(0.0, 1.0), squares, shares, weights)
    return Estimate(values, max(novelty, 1.0) * spread.sqrt(), novelty)


def _fall(
    halves: Float[Tensor, "clients classes"],
    quarters: Float[Tensor, "clients classes"],
    weights: Float[Tensor, " clients"],
) -> float:
    """Squared errors with all virtual clients, relative to those with half of them.

    Errors fall as ``a + b / n`` with their number n, so by half at most. Those with a quarter of
    them say how fast.

    Args:
        halves: Squared errors where half of the virtual clients, one pool, are known.
        quarters: Likewise where half of a pool is.
        weights: How much each virtual client counts, positive.
    """
    half, quarter = (float((weights[:, None] * one).sum()) for one in (halves, quarters))
    fall = 1.0 - (quarter - half) / (2.0 * half) if half > 0.0 else 1.0
    return min(max(fall, 0.5), 1.0)


def spread_at(
    at: Float[Tensor, " classes"],
    squares: Float[Tensor, "clients classes"],
    shares: Float[Tensor, "clients classes"],
    weights: Float[Tensor, " clients"],
) -> Float[Tensor, " classes"]:
    """Mean squared error of each class at given shares, from those of virtual clients.

    The more samples a class has, the more its share is off. Squared errors are fit by ``a + b s``
    with the share s and a, b >= 0, the same for all classes, and each class has a factor of its
    own. The mean over the virtual clients alone would be too much for the rare classes of a client
    and too little for the frequent ones.

    Args:
        at: Between 0 and 1.
        squares: Squared errors of the virtual clients' shares.
        shares: The virtual clients' shares.
        weights: How much each virtual client counts, positive.
    """
    each = weights[:, None].expand_as(squares)
    mean = float((each * squares).sum() / each.sum())
    if mean == 0.0:
        return torch.zeros_like(at)
    variances, terms = torch.ones_like(squares), torch.stack([torch.ones_like(shares), shares])
    level, slope = 1.0, 0.0
    for _ in range(2):
        # A squared error scatters by as much as itself.
        part = each.sqrt() / variances
        system = (part * terms).flatten(1).T.numpy()
        level, slope = nnls(system, (part * squares / mean).flatten().numpy())[0]
        variances = (level + slope * shares).clamp_min(_LEAST_PART)
    factors = (each * squares).sum(dim=0) / (each * variances).sum(dim=0)
    return factors * (level + slope * at).clamp_min(_LEAST_PART)


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
    # Products of those far from the mean are rounded by more than a ridge for the nearest ones.
    noise = torch.maximum(noise, min(_RIDGES) * products.diagonal()[known])
    factor = torch.linalg.cholesky(own + torch.diag(noise))
    mean = share @ targets[known]
    across = centered[asked][:, known]
    solved = torch.cholesky_solve(targets[known] - mean, factor)
    reached = torch.linalg.solve_triangular(factor, across.T, upper=False)
    distance = centered[asked, asked] - reached.square().sum(dim=0)
    return mean + across @ solved, distance
