"""The search for single samples: sparse directions first, then descents from many starts."""

import torch
from jaxtyping import Float
from torch import Tensor

from labelleak.attacks.exact.atoms import Atoms, accepted, descend, likely_labels, no_atoms
from labelleak.attacks.exact.clock import Clock
from labelleak.attacks.exact.factors import Factors, deflate, errors
from labelleak.attacks.exact.sparsity import sparse_directions
from labelleak.attacks.exact.together import compatible, settle

_PASSES = 40
_STARTS = 256
_FRUITLESS = 6
_ARRIVED = 1e-5
_NEAR = 0.2
_SETTLED = 96
_SETTLING = 40
_SPREAD = 3.0
_KEPT_DIRECTIONS = 24
_ROUNDING_RANK = 5e-5


class Search:
    """What has been found so far, and how to go on.

    Args:
        factors: Of the whole gradient.
        divisor: D; None where it is unknown.
        generator: Source of all guesses.
        clock: When to stop at the latest.
    """

    def __init__(
        self, factors: Factors, divisor: float | None, generator: torch.Generator, clock: Clock
    ) -> None:
        self.factors = factors
        self.divisor = divisor
        self.found = no_atoms(factors)
        self._generator = generator
        self.clock = clock

    @property
    def is_complete(self) -> bool:
        """Whether as many samples are found as the rank shows, or as there are in the batch."""
        return len(self.found) >= self.factors.rank or self._is_explained

    @property
    def _is_explained(self) -> bool:
        """Whether the samples found, some of them repeated, are the whole batch.

        The client's rounding may pass for one more rank then.
        """
        if self.divisor is None or len(self.found) < 2 or bool((self.factors.weights != 1.0).any()):
            return False
        values = self.factors.values
        if float(values[len(self.found) :].norm() / values.norm()) > _ROUNDING_RANK:
            return False
        times = (self.divisor / self.found.inverse_weights).round()
        return bool((times > 1.5).any()) and float(times.sum()) == self.divisor

    def run(self) -> None:
        """Look for samples until all are found, time is over or passes stay fruitless."""
        self._sparse()
        if self.factors.spare_equations <= 0:
            return
        for number in range(_PASSES):
            if self.is_complete or self.clock.is_over:
                break
            before = len(self.found)
            self._descents(_STARTS * min(8, 1 + number // 2))
            if len(self.found) == before > 1:
                # What is left of the gradient is only as exact as what was taken out.
                self.found = settle(self.factors, self.found)

    def offer(self, embeddings: Float[Tensor, "candidates columns"]) -> None:
        """Take those candidates that are samples of the batch, whatever their label is."""
        factors = self.factors
        if not len(embeddings):
            return
        points = embeddings @ factors.right
        points, labels = likely_labels(factors, points)
        self._take(points, labels)

    def rest(self) -> Factors:
        """Factors of what the samples found leave of the gradient."""
        if not len(self.found):
            return self.factors
        return deflate(self.factors, self.found.embeddings, self.contributions())

    def contributions(self) -> Float[Tensor, "atoms classes"]:
        """Each found sample's q, over its inverse weight."""
        q = errors(
            self.found.embeddings @ self.factors.layer.T + self.factors.offset,
            self.found.labels,
            self.factors.weights,
        )
        contributions: Tensor = q / self.found.inverse_weights[:, None]
        return contributions

    def _take(self, points: Tensor, labels: Tensor) -> None:
        """Add what is accepted and goes with what was found before."""
        factors = self.factors
        # Fitted to each other, two of them may have become the same.
        known = no_atoms(factors).join(self.found)
        every = known.join(accepted(factors, points, labels, self.divisor))
        self.found = every.pick(compatible(factors, len(known), every, factors.rank))

    def _sparse(self) -> None:
        """Rounds of guessed zeros, each in the space that the samples found so far leave."""
        factors = self.factors
        if not factors.affine and factors.spare_equations <= 0:
            # Nothing would tell the length of a direction.
            return
        features = factors.right[:-1] if factors.affine else factors.right
        fruitless = 0
        while not self.is_complete and fruitless < _FRUITLESS and not self.clock.is_over:
            before = len(self.found)
            found = sparse_directions(
                features, factors.noise / factors.values, self._left_space(), self._generator
            )
            if factors.affine:
                last = found @ factors.right[-1]
                found = found[last.abs() > 1e-12] / last[last.abs() > 1e-12][:, None]
            else:
                found = torch.where(
                    (found @ features.T).sum(dim=1, keepdim=True) < 0, -found, found
                )
            embeddings = found @ features.T
            slack = 10.0 * factors.noise * (found / factors.values).norm(dim=1, keepdim=True)
            found = found[(embeddings >= -slack).all(dim=1)]
            if len(found) and not factors.affine:
                found = self._scaled(found)
            if len(found):
                self.offer(found @ factors.right.T)
            elif not fruitless and not before:
                # Without a ReLU before the head there is nothing to find.
                fruitless += _FRUITLESS // 2
            fruitless = 0 if len(self.found) > before else fruitless + 1

    def _scaled(self, directions: Float[Tensor, "found rank"]) -> Float[Tensor, "scaled rank"]:
        """Without a bias a direction says nothing of the length: several are tried, and refined."""
        lengths = _typical_length(self.factors) * torch.logspace(-0.8, 0.8, 9).to(directions)
        points = (lengths[:, None, None] * directions[:_KEPT_DIRECTIONS]).flatten(0, 1)
        points, labels = likely_labels(self.factors, points)
        reached, _ = descend(
            self.factors,
            points,
            labels,
            enough=_ARRIVED**2,
            clock=self.clock,
            steps=_SETTLING,
        )
        self._take(reached, labels)
        return directions[:0]

    def _left_space(self) -> Float[Tensor, "rank unknown"]:
        """Where the coordinates of the other samples lie: orthogonal to S^-1 U^T q of the found."""
        factors = self.factors
        if not len(self.found):
            return torch.eye(factors.rank).to(factors.values)
        constraints = (self.contributions() @ factors.left / factors.values).T
        basis, _ = torch.linalg.qr(constraints, mode="complete")
        left: Tensor = basis[:, len(self.found) :]
        return left

    def _descents(self, starts: int) -> None:
        rest = self.rest()
        points, labels = self._starts(rest, starts)
        reached, misfits = descend(rest, points, labels, enough=_ARRIVED, clock=self.clock)
        # Errors of what was taken out are errors of the rest's spaces: near is good enough here.
        chosen = misfits.argsort(stable=True)[:_SETTLED]
        chosen = chosen[misfits[chosen] < (_NEAR if len(self.found) else _ARRIVED**0.5)]
        if not len(chosen):
            return
        near = no_atoms(rest).join(
            Atoms(reached[chosen] @ rest.right.T, labels[chosen], misfits[chosen])
        )
        whole = near.embeddings @ self.factors.right
        if self.factors.affine:
            whole = whole / (whole @ self.factors.right[-1])[:, None]
        settled, _ = descend(
            self.factors,
            whole,
            near.labels,
            enough=_ARRIVED**2,
            clock=self.clock,
            steps=_SETTLING,
        )
        # Along flat directions the descent drifts by rounding: where it started may be the better.
        self._take(torch.cat([settled, whole]), near.labels.repeat(2))

    def _starts(self, rest: Factors, starts: int) -> tuple[Tensor, Tensor]:
        """Mixtures of the rows' quotients and of steps along W, for labels that may be there."""
        generator = self._generator
        leverage = rest.left.square().sum(dim=1)
        labels = torch.multinomial(leverage.cpu(), starts, replacement=True, generator=generator)
        others = torch.multinomial(leverage.cpu(), starts, replacement=True, generator=generator)
        labels, others = labels.to(leverage.device), others.to(leverage.device)
        share = torch.rand(starts, 1, generator=generator, dtype=torch.float64).to(leverage)
        rows = rest.left * rest.values
        if rest.affine:
            last = rest.matrix[:, -1:]
            quotients = rows / torch.where(last.abs() < 1e-30, 1.0, last)
        else:
            sizes = rows.norm(dim=1, keepdim=True).clamp_min(1e-300)
            quotients = rows * (-_typical_length(rest) / sizes)
        size = quotients[labels].norm(dim=1).median()
        quotients = quotients * (10.0 * size / quotients.norm(dim=1, keepdim=True)).clamp_max(1.0)
        mixed = quotients[labels] * share + quotients[others] * (1.0 - share)
        slopes = (rest.head - rest.head.mean(dim=0)) @ rest.directions
        slopes = torch.nn.functional.normalize(slopes, dim=1)
        length = size * torch.exp(
            0.7 * torch.randn(starts, 1, generator=generator, dtype=torch.float64).to(leverage)
        )
        along = (slopes[labels] * share + slopes[others] * (1.0 - share)) * length
        along = rest.origin + along @ rest.directions.T
        points = torch.where(
            (torch.arange(starts) % 3 == 0)[:, None].to(labels.device), along, mixed
        )
        if rest.affine:
            slip = (points @ rest.right[-1] - 1.0)[:, None]
            points = points - slip * rest.origin
        return points, labels


def _typical_length(factors: Factors) -> Float[Tensor, ""]:
    """Length at which a direction's logits spread as those of a trained network do."""
    return _SPREAD / factors.head.std(dim=0).square().mean().sqrt()
