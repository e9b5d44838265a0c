"""Single samples: embeddings and labels that fit the column space of the gradient."""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from labelleak.attacks.exact.clock import Clock
from labelleak.attacks.exact.factors import Factors

_STEPS = 60
_SAME = 1e-2
_LOOSENESS = 30.0
# Logits that the client computed in single precision are off by a few 1e-6.
_CONSISTENT = 1e-4
_ROUNDED = 3.0
_MOST_MISFIT = 0.1
_INTEGER = 0.02
# Of q and embeddings, relative, where the client computed in single precision.
ROUNDING = 5e-6
_FLAT = 0.15
_MOST_SLIP = 0.2
_MOST_TIMES = 16.0
# Entries of the derivatives, or of the predictions, that are held at once.
_ENTRIES = 2**23
_LABELS_TRIED = 12


@dataclass(frozen=True)
class Atoms:
    """Samples found.

    Attributes:
        embeddings: [e, 1], shape (atoms, columns).
        labels: int64, shape (atoms,).
        inverse_weights: D over the number of times that each is in the batch, shape (atoms,).
    """

    embeddings: Float[Tensor, "atoms columns"]
    labels: Int[Tensor, " atoms"]
    inverse_weights: Float[Tensor, " atoms"]

    def __len__(self) -> int:
        return len(self.labels)

    def pick(self, chosen: Tensor) -> "Atoms":
        """Some of them, by index or mask."""
        return Atoms(self.embeddings[chosen], self.labels[chosen], self.inverse_weights[chosen])

    def join(self, others: "Atoms") -> "Atoms":
        """These, and those of the others that are not among them, once each."""
        embeddings = torch.cat([self.embeddings, others.embeddings])
        labels = torch.cat([self.labels, others.labels])
        every = Atoms(embeddings, labels, torch.cat([self.inverse_weights, others.inverse_weights]))
        if not len(every):
            return every
        gram = embeddings @ embeddings.T
        squares = gram.diagonal()
        distances = squares[:, None] + squares - 2.0 * gram
        same = (distances < _SAME**2 * squares) & (labels[:, None] == labels)
        return every.pick(same.int().argmax(dim=1) == torch.arange(len(labels)).to(labels))


def no_atoms(factors: Factors) -> Atoms:
    """None found yet."""
    empty = factors.values.new_zeros(0)
    return Atoms(factors.matrix.new_zeros(0, factors.matrix.shape[1]), empty.long(), empty)


def accepted(
    factors: Factors,
    points: Float[Tensor, "points rank"],
    labels: Int[Tensor, " points"],
    divisor: float | None,
) -> Atoms:
    """The samples of the batch among some coordinates and labels.

    A sample's direction of q lies in the column space as far as the errors of that space let it,
    and taking it out lowers the rank: its inverse weight is D over an integer.

    Args:
        factors: Of the gradient.
        points: Coordinates a.
        labels: A label for each.
        divisor: D; None where it is unknown, and anything clearly above zero passes.

    Returns:
        The samples, once each, those that fit best first.
    """
    outside, inverse = excess(factors, points, labels, divisor)
    chosen = (outside <= 1.0).nonzero()[:, 0]
    chosen = chosen[outside[chosen].sort(stable=True).indices]
    found = Atoms(points[chosen] @ factors.right.T, labels[chosen], inverse[chosen])
    return no_atoms(factors).join(found)


def excess(
    factors: Factors,
    points: Float[Tensor, "points rank"],
    labels: Int[Tensor, " points"],
    divisor: float | None,
) -> tuple[Float[Tensor, " points"], Float[Tensor, " points"]]:
    """How far each q is outside of the column space, and its inverse weight; see `accepted`.

    Returns:
        The former in units of what errors allow, infinite where the inverse weight fits no sample.
    """
    size = max(1, _ENTRIES // factors.left.shape[0])
    parts = zip(torch.split(points, size), torch.split(labels, size), strict=True)
    outside, inverse = zip(
        *(_excess(factors, part, those, divisor) for part, those in parts), strict=True
    )
    return torch.cat(outside), torch.cat(inverse)


def _excess(
    factors: Factors,
    points: Float[Tensor, "points rank"],
    labels: Int[Tensor, " points"],
    divisor: float | None,
) -> tuple[Float[Tensor, " points"], Float[Tensor, " points"]]:
    """The same for so few points that their predictions fit into memory."""
    directions = off_label(factors.logits(points), labels)
    inside = directions @ factors.left
    outside = (directions - inside @ factors.left.T).norm(dim=1)
    # Entries of column i of U are wrong by noise / S_i.
    error = factors.noise * (inside / factors.values).norm(dim=1) * factors.left.shape[0] ** 0.5
    inverse = factors.inverse_weights(points, labels)
    allowed = _LOOSENESS * error + _CONSISTENT * directions.norm(dim=1)
    # One less a probability is computed with an error of epsilon, which q shares.
    sizes = factors.errors(points, labels).gather(1, labels[:, None])[:, 0].abs()
    rounded = _ROUNDED * factors.epsilon * factors.weights[labels] / sizes
    allowed += rounded.clamp_max(_MOST_MISFIT)
    allowed = allowed.minimum(_MOST_MISFIT * directions.norm(dim=1))
    good = torch.isfinite(inverse)
    if divisor is None:
        good &= inverse > 0.5
    else:
        # Only where the fit is evidence itself may a sample be there several times.
        most = _MOST_TIMES if factors.spare_equations >= factors.rank else 1.0
        times = (divisor / inverse).round().clamp(1.0, most)
        q = factors.errors(points, labels) @ factors.left
        dual_q, dual_points = q / factors.values, points / factors.values
        slip = factors.noise * dual_q.norm(dim=1) * dual_points.norm(dim=1)
        slip += ROUNDING * q.norm(dim=1) * dual_points.norm(dim=1)
        slip += ROUNDING * dual_q.norm(dim=1) * points.norm(dim=1)
        slip /= inverse.abs()
        # With equations to spare the fit itself is the evidence, and flat directions blur.
        least = _INTEGER if factors.spare_equations < factors.rank else _FLAT
        allowed_slip = (least + rounded + 5.0 * slip).clamp_max(_MOST_SLIP)
        good &= (inverse * times / divisor - 1.0).abs() < allowed_slip
    return torch.where(good, outside / allowed, torch.inf), inverse


def likely_labels(
    factors: Factors, points: Float[Tensor, "points rank"]
) -> tuple[Float[Tensor, "pairs rank"], Int[Tensor, " pairs"]]:
    """Every point with the labels whose q is nearest to the column space, relative to its size."""
    logits = factors.logits(points)
    tried = min(_LABELS_TRIED, logits.shape[1])
    p = torch.softmax(logits, dim=1)
    outside = p - (p @ factors.left) @ factors.left.T
    own = 1.0 - factors.left.square().sum(dim=1)
    squares = outside.square().sum(dim=1, keepdim=True) - 2.0 * outside + own
    sizes = p.square().sum(dim=1, keepdim=True) - 2.0 * p + 1.0
    ratio = squares.clamp_min(0.0) / sizes.clamp_min(1e-300)
    ratio = ratio.scatter(1, p.argmax(dim=1, keepdim=True), -1.0)
    labels = ratio.topk(tried, dim=1, largest=False).indices
    return points.repeat_interleave(tried, dim=0), labels.flatten()


def off_label(
    logits: Float[Tensor, "points classes"], labels: Int[Tensor, " points"]
) -> Float[Tensor, "points classes"]:
    """Q over its own size: ``pi - y`` with pi the softmax over all classes but the label.

    p - y is (1 - p_y) times that: the direction stays regular however sure the network is.
    """
    masked = logits.scatter(1, labels[:, None], -torch.inf)
    return torch.softmax(masked, dim=1).scatter(1, labels[:, None], -1.0)


def misfit(
    factors: Factors, points: Float[Tensor, "points rank"], labels: Int[Tensor, " points"]
) -> Float[Tensor, " points"]:
    """What of the direction of q lies outside of the column space, relative."""
    directions = off_label(factors.logits(points), labels)
    outside = directions - (directions @ factors.left) @ factors.left.T
    relative: Tensor = outside.norm(dim=1) / directions.norm(dim=1)
    return relative


def descend(
    factors: Factors,
    points: Float[Tensor, "points rank"],
    labels: Int[Tensor, " points"],
    *,
    enough: float,
    clock: Clock,
    steps: int = _STEPS,
) -> tuple[Float[Tensor, "points rank"], Float[Tensor, " points"]]:
    """Levenberg-Marquardt on the misfit, every point with its own label and damping.

    Args:
        factors: Of the gradient.
        points: Starts.
        labels: Label of each start.
        enough: Misfit at which a point has arrived.
        clock: When to stop at the latest.
        steps: Largest number of steps.

    Returns:
        The points reached and their misfits; infinite for those that there was no time for.
    """
    size = max(1, _ENTRIES // max(1, factors.left.shape[0] * factors.directions.shape[1]))
    reached, misfits = points.clone(), points.new_full((len(points),), torch.inf)
    for start in range(0, len(points), size):
        if start and clock.is_over:
            break
        part = slice(start, start + size)
        reached[part], misfits[part] = _descended(
            factors, points[part], labels[part], enough, clock, steps
        )
    return reached, misfits


def _descended(
    factors: Factors,
    points: Float[Tensor, "points rank"],
    labels: Int[Tensor, " points"],
    enough: float,
    clock: Clock,
    steps: int,
) -> tuple[Float[Tensor, "points rank"], Float[Tensor, " points"]]:
    """The same for so few points that their derivatives fit into memory."""
    left, moves = factors.left, factors.directions
    if moves.shape[1] == 0:
        return points, misfit(factors, points, labels)
    slopes = factors.head @ moves
    result, final = points.clone(), points.new_full((len(points),), torch.inf)
    active = torch.arange(len(points), device=points.device)
    damping = points.new_full((len(points),), 1e-2)
    steady = torch.zeros_like(labels)

    def outside(at: Tensor, of: Tensor) -> tuple[Tensor, Tensor]:
        directions = off_label(factors.logits(at), of)
        return directions, directions - (directions @ left) @ left.T

    here, own = points, labels
    directions, residuals = outside(here, own)
    cost = residuals.square().sum(dim=1)
    for step in range(steps):
        shares = directions.scatter(1, own[:, None], 0.0)
        means = shares @ slopes
        jacobian = shares[:, :, None] * (slopes - means[:, None, :])
        jacobian = jacobian - torch.einsum(
            "cr,brm->bcm", left, torch.einsum("cr,bcm->brm", left, jacobian)
        )
        gram = jacobian.transpose(1, 2) @ jacobian
        gradient = (jacobian.transpose(1, 2) @ residuals[:, :, None])[..., 0]
        ridge = damping[:, None] * gram.diagonal(dim1=1, dim2=2)
        ridge = ridge + 1e-14 * gram.diagonal(dim1=1, dim2=2).amax(dim=1, keepdim=True) + 1e-300
        system = gram + torch.diag_embed(ridge)
        move, _ = torch.linalg.solve_ex(system, -gradient[:, :, None])
        trial = here + move[..., 0] @ moves.T
        new_directions, new_residuals = outside(trial, own)
        new_cost = new_residuals.square().sum(dim=1)
        better = new_cost < cost
        gained = torch.where(better, 1.0 - new_cost / cost, 0.0)
        here = torch.where(better[:, None], trial, here)
        directions = torch.where(better[:, None], new_directions, directions)
        residuals = torch.where(better[:, None], new_residuals, residuals)
        cost = torch.where(better, new_cost, cost)
        damping = torch.where(better, damping * 0.2, damping * 5.0).clamp(1e-12, 1e8)
        steady = torch.where(gained > 1e-2, 0, steady + 1)
        done = (cost < enough**2) | (steady >= 6) | (damping > 1e7)
        if step == steps - 1 or clock.is_over:
            done = torch.ones_like(done)
        if done.any() and (step % 5 == 4 or done.all()):
            result[active[done]] = here[done]
            final[active[done]] = cost[done].sqrt()
            keep = ~done
            active, here, own, cost = active[keep], here[keep], own[keep], cost[keep]
            directions, residuals = directions[keep], residuals[keep]
            damping, steady = damping[keep], steady[keep]
            if not len(active):
                break
    return result, final
