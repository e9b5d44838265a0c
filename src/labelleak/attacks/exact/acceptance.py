"""Tests whether an embedding and a label are a sample of the batch, by the head's gradient."""

import math

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from labelleak.attacks.exact import tolerances
from labelleak.attacks.exact.clock import Clock
from labelleak.attacks.exact.head_factors import HeadFactors
from labelleak.attacks.exact.logit_gradient import logit_directions, logit_gradients
from labelleak.attacks.exact.samples import Samples

# Labels tried for each embedding.
_LABELS_TRIED = 12
# Most entries of the predictions in memory at once: 64 MB.
_ENTRIES = 2**23


def accepted(
    factors: HeadFactors,
    points: Float[Tensor, "points rank"],
    labels: Int[Tensor, " points"],
    divisor: float | None,
    *,
    clock: Clock | None = None,
    entries: int = _ENTRIES,
) -> Samples:
    """Pick the samples of the batch among some points and labels.

    The q of a sample lies in the column space, up to the errors of that space. And taking the
    sample out lowers the rank, so its inverse weight is D over a whole number.

    Args:
        factors: Factors of the head's gradient.
        points: Coordinates a.
        labels: A label for each point.
        divisor: D, or None if it is unknown; any weight clearly above zero passes then.
        clock: Time limit, or None; points that there is no time for are not accepted.
        entries: Most entries of the predictions in memory at once.

    Returns:
        The samples, each once: of points that are the same sample, the best fit stays. Better fits
        come first; equally good fits keep the order of the points.
    """
    distances, inverse = excess(factors, points, labels, divisor, clock=clock, entries=entries)
    chosen = (distances <= 1.0).nonzero()[:, 0]
    found = Samples(points[chosen] @ factors.right.T, labels[chosen], inverse[chosen])
    distances = distances[chosen]
    best_first = distances.sort(stable=True).indices
    kept = best_first[found.pick(best_first).is_first()].sort().values
    # Below its errors, how well a sample fits is chance and must not decide which one is preferred.
    telling = distances[kept].clamp_min(tolerances.TELLING)
    return found.pick(kept[telling.sort(stable=True).indices])


def excess(
    factors: HeadFactors,
    points: Float[Tensor, "points rank"],
    labels: Int[Tensor, " points"],
    divisor: float | None,
    *,
    clock: Clock | None = None,
    entries: int = _ENTRIES,
) -> tuple[Float[Tensor, " points"], Float[Tensor, " points"]]:
    """Distance of each point and label from a sample of the batch, and the inverse weight.

    Args:
        factors: Factors of the head's gradient.
        points: Coordinates a.
        labels: A label for each point.
        divisor: D, or None if it is unknown.
        clock: Time limit, or None.
        entries: Most entries of the predictions in memory at once.

    Returns:
        The larger of two distances, in units of what errors allow: of q from the column space, and
        of D over the inverse weight from a whole number. A sample of the batch has at most 1. Then
        the inverse weights. Points that there was no time for have an infinite distance.
    """
    size = max(1, entries // factors.left.shape[0])
    distances, inverse = points.new_full((2, len(points)), torch.inf)
    for start in range(0, len(points), size):
        if start and clock is not None and clock.is_over:
            break
        part = slice(start, start + size)
        distances[part], inverse[part] = _excess(factors, points[part], labels[part], divisor)
    return distances, inverse


def _excess(
    factors: HeadFactors,
    points: Float[Tensor, "points rank"],
    labels: Int[Tensor, " points"],
    divisor: float | None,
) -> tuple[Float[Tensor, " points"], Float[Tensor, " points"]]:
    """`excess` of a few points, whose predictions fit in memory."""
    logits = factors.logits(points)
    directions = logit_directions(logits, labels)
    q = logit_gradients(logits, labels, factors.weights)
    lengths = directions.norm(dim=1)
    outside = factors.outside(directions).norm(dim=1)
    inside = q @ factors.left
    inverse = factors.inverse_weights(points, inside)
    rounded = _rounding_of_complement(factors, q, labels)
    allowed = _allowed_misfit(factors, directions, rounded)
    allowed = allowed.minimum(tolerances.MOST_MISFIT * lengths)
    if divisor is None:
        fewest = tolerances.LEAST_INVERSE_WEIGHT * factors.weights[labels]
        slipped = torch.where(inverse > fewest, 0.0, torch.inf)
    else:
        # With enough spare equations the fit alone is evidence, so samples may be repeated.
        overdetermined = factors.spare_equations >= factors.rank
        most = tolerances.MOST_TIMES if overdetermined else 1
        times = (divisor / inverse).round().clamp(1, most)
        slip = _weight_errors(factors, points, inside) / inverse.abs()
        least = tolerances.FLAT_SLIP if overdetermined else tolerances.WHOLE_NUMBER
        allowed_slip = least + rounded + tolerances.SLIP_MARGIN * slip
        allowed_slip = allowed_slip.clamp_max(tolerances.MOST_SLIP)
        slipped = (inverse * times / divisor - 1.0).abs() / allowed_slip
    excess = torch.maximum(outside / allowed, slipped)
    return torch.where(torch.isfinite(inverse), excess, torch.inf), inverse


def _rounding_of_complement(
    factors: HeadFactors,
    q: Float[Tensor, "points classes"],
    labels: Int[Tensor, " points"],
) -> Float[Tensor, " points"]:
    """Relative error of q: the client computes 1 - p with an error of epsilon."""
    own = q.gather(1, labels[:, None])[:, 0].abs()
    error: Tensor = tolerances.COMPLEMENT_MARGIN * factors.epsilon * factors.weights[labels] / own
    return error


def _allowed_misfit(
    factors: HeadFactors,
    directions: Float[Tensor, "points classes"],
    rounded: Float[Tensor, " points"],
) -> Float[Tensor, " points"]:
    """How far errors can take the direction of a sample's q from the column space."""
    inside = directions @ factors.left
    # Each entry of column i of U is off by noise / S_i.
    error = factors.noise * (inside / factors.values).norm(dim=1) * factors.left.shape[0] ** 0.5
    allowed = tolerances.ERROR_MARGIN * error + tolerances.DIRECTION * directions.norm(dim=1)
    result: Tensor = allowed + rounded.clamp_max(tolerances.MOST_MISFIT)
    return result


def beyond_luck(factors: HeadFactors, samples: Samples) -> Bool[Tensor, " samples"]:
    """Which samples have spare equations that cannot all hold by chance.

    An embedding gives as many classes any probabilities as it has unknowns, and the column space
    holds as many as its rank. The other, smallest ones are evidence, as far as they are no errors:
    of confident predictions next to none. And where the column space holds the difference of two
    unit vectors, as confident wrong predictions make it do, nothing tells one label from the other.

    Args:
        factors: Factors of the head's gradient.
        samples: Some of its samples.
    """
    points = samples.inputs @ factors.right
    logits = factors.logits(points)
    directions = logit_directions(logits, samples.labels)
    q = logit_gradients(logits, samples.labels, factors.weights)
    rounded = _rounding_of_complement(factors, q, samples.labels)
    allowed = _allowed_misfit(factors, directions, rounded)
    predicted = directions.clamp_min(0.0).sort(dim=1, descending=True).values
    spare = predicted[:, factors.rank + factors.unknowns : -1]
    chance = (allowed[:, None] / spare).clamp_max(1.0).prod(dim=1)
    apart = _from_other_labels(factors, samples.labels) > tolerances.CLEAR * allowed
    beyond: Tensor = (chance < tolerances.LUCK) & apart
    return beyond


def _from_other_labels(
    factors: HeadFactors, labels: Int[Tensor, " samples"]
) -> Float[Tensor, " samples"]:
    """How far the column space is from what tells each label from another: the least distance."""
    own = 1.0 - factors.left.square().sum(dim=1)
    squares = own[labels][:, None] + own + 2.0 * factors.left[labels] @ factors.left.T
    nearest: Tensor = squares.scatter(1, labels[:, None], torch.inf).amin(dim=1)
    return nearest.clamp_min(0.0).sqrt()


def _weight_errors(
    factors: HeadFactors,
    points: Float[Tensor, "points rank"],
    inside: Float[Tensor, "points rank"],
) -> Float[Tensor, " points"]:
    """Standard errors of the inverse weights, from noise and from the client's rounding."""
    dual_inside = (inside / factors.values).norm(dim=1)
    dual_points = (points / factors.values).norm(dim=1)
    errors: Tensor = factors.noise * dual_inside * dual_points
    errors += tolerances.CLIENT_ROUNDING * inside.norm(dim=1) * dual_points
    errors += tolerances.CLIENT_ROUNDING * dual_inside * points.norm(dim=1)
    return errors


def likely_labels(
    factors: HeadFactors,
    points: Float[Tensor, "points rank"],
    *,
    within: float = math.inf,
    clock: Clock | None = None,
) -> tuple[Int[Tensor, " pairs"], Int[Tensor, " pairs"]]:
    """Pair every point with the labels whose q lies nearest to the column space.

    Args:
        factors: Factors of the head's gradient.
        points: Coordinates a.
        within: Largest distance of the direction of q from the column space, relative to its
            length, at which a label is worth a trial. The predicted label always is.
        clock: Time limit, or None; the first points are paired in any case.

    Returns:
        The point of each pair, ascending, and the label, ascending for each point.
    """
    classes = factors.left.shape[0]
    # If the column space holds every q, rounding alone would say which is nearest: try all labels.
    tried = classes if factors.rank >= classes - 1 else min(_LABELS_TRIED, classes)
    own = 1.0 - factors.left.square().sum(dim=1)
    pairs: list[tuple[Tensor, Tensor]] = []
    for part in torch.split(points, max(1, _ENTRIES // classes)):
        if pairs and clock is not None and clock.is_over:
            break
        p = torch.softmax(factors.logits(part), dim=1)
        outside = factors.outside(p)
        squares = outside.square().sum(dim=1, keepdim=True) - 2.0 * outside + own
        sizes = p.square().sum(dim=1, keepdim=True) - 2.0 * p + 1.0
        ratio = squares.clamp_min(0.0) / sizes.clamp_min(1e-300)
        ratio = ratio.scatter(1, p.argmax(dim=1, keepdim=True), -1.0)
        nearest = ratio.topk(tried, dim=1, largest=False)
        labels, order = nearest.indices.sort(dim=1)
        pairs.append((labels, nearest.values.gather(1, order) <= within**2))
    labels, worthwhile = (torch.cat(parts) for parts in zip(*pairs, strict=True))
    which = torch.arange(len(labels), device=labels.device)[:, None].expand_as(labels)
    return which[worthwhile], labels[worthwhile]
