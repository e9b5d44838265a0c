"""From what an update shows of a class to the class's share: one map for all classes."""

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from scipy.optimize import nnls
from torch import Tensor

# Rows, a class of a virtual client each, that a regression uses at most.
_MOST_ROWS = 2400
# Widths of the kernel and ridges that are tried.
_WIDTHS, _RIDGES = (1.0, 1.5, 3.0), (3e-4, 3e-3, 3e-2)
# Share of the mean squared error that every class has at least.
_LEAST_VARIANCE = 0.1
# Weight of the linear part of the kernel, which goes on where the other ends.
_LINEAR = 0.02


@dataclass(frozen=True, eq=False)
class RowEstimate:
    """What the regression says of a real client.

    Attributes:
        values: Estimated targets, float64, shape (classes,).
        constant: Variance of an error that all classes have.
        growing: Variance that an error has beside it, per unit of the class's share.
        novelty: How far the client's rows are from those of virtual clients, in units of how far
            those of one are from the others'.
    """

    values: Float[Tensor, " classes"]
    constant: float
    growing: float
    novelty: float

    def errors(self, shares: Float[Tensor, " classes"]) -> Float[Tensor, " classes"]:
        """Standard errors of classes with these shares, larger where the client is novel."""
        variances = self.constant + self.growing * shares.clamp_min(0.0)
        return max(self.novelty, 1.0) * variances.sqrt()


def regress_rows(
    rows: Float[Tensor, "clients classes features"],
    targets: Float[Tensor, "clients classes"],
    shares: Float[Tensor, "clients classes"],
    observed: Float[Tensor, "classes features"],
) -> RowEstimate:
    """Read a real client's targets from its rows, as virtual clients' targets follow from theirs.

    Kernel ridge regression; width and ridge are those under which each virtual client is best
    predicted from all others.

    Args:
        rows: Of virtual clients, as of `class_features`.
        targets: Of each row.
        shares: Of each row's class in its client, to tell how errors grow with it.
        observed: The rows of the real client.
    """
    clients, classes, _ = rows.shape
    kept = _kept_classes(clients, classes, targets)
    used = torch.gather(rows, 1, kept[..., None].expand(-1, -1, rows.shape[2])).flatten(0, 1)
    wanted, own = (torch.gather(values, 1, kept).flatten() for values in (targets, shares))
    center, spread = used.mean(dim=0), used.std(dim=0)
    flat = spread <= 1e-9 * used.abs().amax(dim=0).clamp_min(1e-300)
    scale = torch.where(flat, torch.inf, spread)
    used, asked = (used - center) / scale, (observed - center) / scale
    middle = float(wanted.mean())
    best = None
    unit = torch.eye(len(used), dtype=used.dtype)
    for width in _WIDTHS:
        kernel = _kernel(used, used, width)
        for ridge in _RIDGES:
            inverse = torch.linalg.inv(kernel + ridge * unit)
            left, apart = _left_out(inverse, wanted - middle, clients)
            loss = float(left.square().sum())
            if best is None or loss < best[0]:
                best = loss, width, inverse, left, apart
    assert best is not None, "there are choices"
    _, width, inverse, left, apart = best
    across = _kernel(asked, used, width)
    values = middle + across @ (inverse @ (wanted - middle))
    itself = _kernel(asked, asked, width).diagonal()
    away = (itself - ((across @ inverse) * across).sum(dim=1)).clamp_min(0.0)
    novelty = float(away.mean() / apart.mean().clamp_min(1e-300)) ** 0.5
    design = torch.stack([torch.ones_like(own), own], dim=1)
    (constant, growing), _ = nnls(design.numpy(), left.square().numpy())
    # No class is sure because the fit went through the origin.
    least = _LEAST_VARIANCE * float(left.square().mean())
    return RowEstimate(values, max(float(constant), least), float(growing), novelty)


def _kept_classes(clients: int, classes: int, targets: Tensor) -> Tensor:
    """Indices of the classes of each client that are used: all, or evenly chosen by target."""
    most = max(2, _MOST_ROWS // clients)
    ordered = targets.argsort(dim=1)
    if classes <= most:
        return ordered
    places = torch.from_numpy(np.linspace(0, classes - 1, most).round()).long()
    return ordered[:, places]


def _kernel(
    first: Float[Tensor, "rows features"], second: Float[Tensor, "others features"], width: float
) -> Float[Tensor, "rows others"]:
    features = first.shape[1]
    near = torch.exp(-torch.cdist(first, second).square() / (2.0 * width**2 * features))
    return near + _LINEAR * (first @ second.T) / features


def _left_out(
    inverse: Float[Tensor, "rows rows"], targets: Float[Tensor, " rows"], clients: int
) -> tuple[Float[Tensor, " rows"], Float[Tensor, " rows"]]:
    """Errors and variances of each client's rows, predicted from all other clients."""
    each = len(targets) // clients
    solved = (inverse @ targets).reshape(clients, each)
    blocks = inverse.reshape(clients, each, clients, each)
    own = torch.stack([blocks[number, :, number] for number in range(clients)])
    covariance = torch.linalg.inv(own)
    errors = (covariance @ solved[..., None])[..., 0]
    return errors.flatten(), covariance.diagonal(dim1=1, dim2=2).flatten()
