"""Which embeddings and labels are samples of the batch, by the head's gradient alone."""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from labelleak.attacks.exact import tolerances
from labelleak.attacks.exact.head_factors import HeadFactors
from labelleak.attacks.exact.logit_gradient import logit_directions
from labelleak.attacks.exact.samples import Samples

_LABELS_TRIED = 12
# Entries of the predictions that are held at once: 64 MB.
_ENTRIES = 2**23


def accepted(
    factors: HeadFactors,
    points: Float[Tensor, "points rank"],
    labels: Int[Tensor, " points"],
    divisor: float | None,
    *,
    entries: int = _ENTRIES,
) -> Samples:
    """The samples of the batch among some coordinates and labels.

    The q of a sample lies in the column space as far as the errors of that space let it, and taking
    the sample out lowers the rank: its inverse weight is D over a whole number.

    Args:
        factors: Of the gradient.
        points: Coordinates a.
        labels: A label for each.
        divisor: D; None where it is unknown, and anything clearly above zero passes.
        entries: Entries of the predictions that are held at once.

    Returns:
        The samples, once each: of those that are the same, the one that fits best. Those come
        first that fit better, and of those that fit equally well the first of the points.
    """
    apart, inverse = excess(factors, points, labels, divisor, entries=entries)
    chosen = (apart <= 1.0).nonzero()[:, 0]
    best_first = chosen[apart[chosen].sort(stable=True).indices]
    every = Samples(points @ factors.right.T, labels, inverse)
    kept = best_first[every.pick(best_first).is_first()].sort().values
    # How far below its errors a sample fits is chance, and no reason to prefer it to another one.
    telling = apart[kept].clamp_min(tolerances.TELLING)
    return every.pick(kept[telling.sort(stable=True).indices])


def excess(
    factors: HeadFactors,
    points: Float[Tensor, "points rank"],
    labels: Int[Tensor, " points"],
    divisor: float | None,
    *,
    entries: int = _ENTRIES,
) -> tuple[Float[Tensor, " points"], Float[Tensor, " points"]]:
    """How far each q is from that of a sample of the batch, and its inverse weight.

    Args:
        factors: Of the gradient.
        points: Coordinates a.
        labels: A label for each.
        divisor: D; None where it is unknown.
        entries: Entries of the predictions that are held at once.

    Returns:
        The larger of two distances, in units of what errors allow: of q from the column space, and
        of D over the inverse weight from a whole number. It is at most 1 for a sample of the batch.
    """
    size = max(1, entries // factors.left.shape[0])
    parts = zip(torch.split(points, size), torch.split(labels, size), strict=True)
    apart, inverse = zip(
        *(_excess(factors, part, those, divisor) for part, those in parts), strict=True
    )
    return torch.cat(apart), torch.cat(inverse)


def _excess(
    factors: HeadFactors,
    points: Float[Tensor, "points rank"],
    labels: Int[Tensor, " points"],
    divisor: float | None,
) -> tuple[Float[Tensor, " points"], Float[Tensor, " points"]]:
    """`excess` of so few points that their predictions fit into memory."""
    directions = logit_directions(factors.logits(points), labels)
    lengths = directions.norm(dim=1)
    inside = directions @ factors.left
    outside = (directions - inside @ factors.left.T).norm(dim=1)
    # Entries of column i of U are wrong by noise / S_i.
    error = factors.noise * (inside / factors.values).norm(dim=1) * factors.left.shape[0] ** 0.5
    inverse = factors.inverse_weights(points, labels)
    allowed = tolerances.ERROR_MARGIN * error + tolerances.DIRECTION * lengths
    # One less a probability is computed with an error of epsilon, which q shares.
    own = factors.logit_gradients(points, labels).gather(1, labels[:, None])[:, 0].abs()
    rounded = tolerances.COMPLEMENT_MARGIN * factors.epsilon * factors.weights[labels] / own
    allowed += rounded.clamp_max(tolerances.MOST_MISFIT)
    allowed = allowed.minimum(tolerances.MOST_MISFIT * lengths)
    if divisor is None:
        slipped = torch.where(inverse > tolerances.LEAST_INVERSE_WEIGHT, 0.0, torch.inf)
    else:
        # Only where the fit is evidence itself may a sample be there several times.
        fits_itself = factors.spare_equations >= factors.rank
        times = (divisor / inverse).round().clamp(1.0, tolerances.MOST_TIMES if fits_itself else 1)
        slip = _weight_errors(factors, points, labels) / inverse.abs()
        # And flat directions blur the weight.
        least = tolerances.FLAT_SLIP if fits_itself else tolerances.WHOLE_NUMBER
        allowed_slip = least + rounded + tolerances.SLIP_MARGIN * slip
        allowed_slip = allowed_slip.clamp_max(tolerances.MOST_SLIP)
        slipped = (inverse * times / divisor - 1.0).abs() / allowed_slip
    excess = torch.maximum(outside / allowed, slipped)
    return torch.where(torch.isfinite(inverse), excess, torch.inf), inverse


def _weight_errors(
    factors: HeadFactors,
    points: Float[Tensor, "points rank"],
    labels: Int[Tensor, " points"],
) -> Float[Tensor, " points"]:
    """Size of the errors of the inverse weights: of the gradient, and of the client's rounding."""
    inside = factors.logit_gradients(points, labels) @ factors.left
    dual_inside = (inside / factors.values).norm(dim=1)
    dual_points = (points / factors.values).norm(dim=1)
    errors: Tensor = factors.noise * dual_inside * dual_points
    errors += tolerances.CLIENT_ROUNDING * inside.norm(dim=1) * dual_points
    errors += tolerances.CLIENT_ROUNDING * dual_inside * points.norm(dim=1)
    return errors


def likely_labels(
    factors: HeadFactors, points: Float[Tensor, "points rank"]
) -> tuple[Float[Tensor, "pairs rank"], Int[Tensor, " pairs"]]:
    """Every point with the labels whose q is nearest to the column space, relative to its size."""
    logits = factors.logits(points)
    classes = logits.shape[1]
    # Where the column space holds every q, which is nearest would be rounding.
    tried = classes if factors.rank >= classes - 1 else min(_LABELS_TRIED, classes)
    p = torch.softmax(logits, dim=1)
    outside = factors.outside(p)
    own = 1.0 - factors.left.square().sum(dim=1)
    squares = outside.square().sum(dim=1, keepdim=True) - 2.0 * outside + own
    sizes = p.square().sum(dim=1, keepdim=True) - 2.0 * p + 1.0
    ratio = squares.clamp_min(0.0) / sizes.clamp_min(1e-300)
    ratio = ratio.scatter(1, p.argmax(dim=1, keepdim=True), -1.0)
    labels = ratio.topk(tried, dim=1, largest=False).indices.sort(dim=1).values
    return points.repeat_interleave(tried, dim=0), labels.flatten()
