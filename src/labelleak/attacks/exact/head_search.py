"""The search by the head's gradient: sparse directions first, then descents from many starts."""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from labelleak.attacks.exact import tolerances
from labelleak.attacks.exact.acceptance import accepted, likely_labels
from labelleak.attacks.exact.biorthogonality import compatible, refine_together
from labelleak.attacks.exact.certificate import (
    Judgement,
    clear_samples,
    determined_by_zeros,
    fits_other_label,
    judge,
    no_competitor,
    number_too_weak,
)
from labelleak.attacks.exact.clock import Clock
from labelleak.attacks.exact.descent import descend
from labelleak.attacks.exact.head_factors import HeadFactors, deflate, factorize
from labelleak.attacks.exact.logit_gradient import logit_gradients
from labelleak.attacks.exact.samples import Samples
from labelleak.attacks.exact.search import Evidence, SampleSearch
from labelleak.attacks.exact.starts import starts, typical_length
from labelleak.numerics import root_mean_square
from labelleak.observation import Observation

_PASSES = 40
_STARTS, _MOST_STARTS = 256, 2048
_PATIENCE = 6
# Of what descents reach, so many are fitted to the whole gradient, in so many steps.
_SETTLED = 96
_SETTLING_STEPS = 40
_KEPT_DIRECTIONS = 24


class HeadSearch(SampleSearch):
    """Finds samples by the gradient of the head.

    Args:
        observation: What the server sees.
        divisor: What the loss divides by; None where it is unknown.
        generator: Source of all guesses.
        clock: When to stop at the latest.

    Raises:
        MissingKnowledge: The rank of the gradient tells no samples apart.
    """

    def __init__(
        self,
        observation: Observation,
        divisor: float | None,
        generator: torch.Generator,
        clock: Clock,
    ) -> None:
        self._observation = observation
        self._factors = factorize(observation, observation.batch_size)
        super().__init__(divisor, Samples.none(self._factors.matrix), generator, clock)

    @property
    def factors(self) -> HeadFactors:
        """Of the head's gradient."""
        return self._factors

    @property
    def is_complete(self) -> bool:
        """Whether as many samples are found as the rank shows, or as there are in the batch."""
        return super().is_complete or self._is_explained

    @property
    def _is_explained(self) -> bool:
        """Whether the samples found, some of them repeated, are the whole batch.

        The client's rounding may pass for one more rank then.
        """
        values, number = self.factors.values, len(self.found)
        if self.divisor is None or number < 2 or bool((self.factors.weights != 1.0).any()):
            return False
        if float(values[number:].norm() / values.norm()) > tolerances.REPEATED_REST:
            return False
        times = (self.divisor / self.found.inverse_weights).round()
        return bool((times > 1.5).any()) and float(times.sum()) == self.divisor

    def run(self) -> None:
        """Search until all samples are found, the time is over, or the search is fruitless."""
        if self.factors.affine or self.factors.spare_equations > 0:
            # Else nothing would tell the length of a sparse direction.
            self._search_sparse(self._features, _PATIENCE)
        if self.factors.spare_equations > 0:
            self._search_by_descents()
        if self.is_complete and len(self.found) < self.factors.rank:
            self._factors = factorize(self._observation, len(self.found))

    def contributions(self) -> Float[Tensor, "samples classes"]:
        """Each found sample's q, over its inverse weight."""
        logits = self.found.inputs @ self.factors.layer.T + self.factors.offset
        q = logit_gradients(logits, self.found.labels, self.factors.weights)
        contributions: Tensor = q / self.found.inverse_weights[:, None]
        return contributions

    def rest_of_head(self) -> Float[Tensor, "classes columns"]:
        """What the samples found leave of the head's gradient."""
        return self._rest().matrix

    def evidence(self, divisor: float | None) -> Evidence:
        """What speaks for the samples found; they are fitted together once all are found."""
        judged, samples = None, self.found
        if len(samples) and divisor is not None and self.is_complete:
            judged = judge(self.factors, samples, divisor, self._rounding)
            samples = judged.samples
        missing = self.factors.rank - len(samples)
        return Evidence(
            embeddings=samples.inputs[:, : self._observation.head.features],
            sure=self._sure(samples, divisor),
            too_weak=min(missing, number_too_weak(self._rest(), samples))
            if missing and len(samples)
            else 0,
            proves=lambda: judged is not None and self._proves(judged, divisor),
        )

    def _sure(self, samples: Samples, divisor: float | None) -> Bool[Tensor, " samples"]:
        """Which samples stand clear of the gradient's errors, and are the only ones that fit."""
        if not len(samples):
            return torch.zeros_like(samples.labels, dtype=torch.bool)
        factors, complete = self.factors, self.is_complete
        sure = clear_samples(factors, samples)
        by_zeros = complete and determined_by_zeros(factors, self.found)
        if factors.spare_equations > 0 and not by_zeros:
            known = divisor if complete else self.divisor
            sure = sure & ~fits_other_label(factors, samples, known)
        # That a sample is there several times shows in the others alone.
        return sure if complete else sure & (self.times(divisor) == 1)

    def _proves(self, judged: Judgement, divisor: float | None) -> bool:
        """Whether nothing speaks against the samples, and no other hypothesis comes near."""
        if divisor is None or not judged.rebuilt or not bool(judged.seen.all()):
            return False
        if determined_by_zeros(self.factors, self.found):
            return True
        if self.factors.spare_equations > 0:
            return not bool(fits_other_label(self.factors, judged.samples, divisor).any())
        return no_competitor(self.factors, judged, divisor, self._clock)

    @property
    def _rounding(self) -> float:
        """Typical rounding error of one entry of the gradient."""
        gradient = self._observation.gradient
        typical = root_mean_square(gradient.weight)
        return max(gradient.rounding, tolerances.ARITHMETIC * typical)

    @property
    def _features(self) -> Float[Tensor, "features rank"]:
        """Rows of V without that of the bias."""
        return self.factors.right[: self._observation.head.features]

    def _rest(self) -> HeadFactors:
        """Factors of what the samples found leave of the gradient."""
        if not len(self.found):
            return self.factors
        return deflate(self.factors, self.found.inputs, self.contributions())

    def _take(self, points: Tensor, labels: Tensor) -> None:
        """Add what is accepted and goes with what was found before."""
        factors = self.factors
        # Fitted to each other, two of them may have become the same.
        known = Samples.none(factors.matrix).join(self.found)
        every = known.join(accepted(factors, points, labels, self.divisor))
        self.found = every.pick(compatible(factors, len(known), every, factors.rank))

    def _offer(self, directions: Float[Tensor, "directions rank"]) -> bool:
        """Take those sparse directions that are samples; whether any may have been one."""
        factors, features = self.factors, self._features
        if factors.affine:
            points = self._scaled_by_bias(directions)
        else:
            negative = (directions @ features.T).sum(dim=1, keepdim=True) < 0
            points = torch.where(negative, -directions, directions)
        slack = tolerances.NEGATIVE * factors.input_errors(points)
        points = points[(points @ features.T >= -slack).all(dim=1)]
        if not len(points):
            return False
        if factors.affine:
            self._take(*likely_labels(factors, points))
        else:
            self._take_at_some_length(points)
        return True

    def _take_at_some_length(self, directions: Float[Tensor, "directions rank"]) -> None:
        """Without a bias a direction says nothing of the length: several are tried, and refined."""
        factors = self.factors
        lengths = typical_length(factors) * torch.logspace(-0.8, 0.8, 9).to(directions)
        points = (lengths[:, None, None] * directions[:_KEPT_DIRECTIONS]).flatten(0, 1)
        points, labels = likely_labels(factors, points)
        self._take(self._settled(points, labels), labels)

    def _settled(
        self, points: Float[Tensor, "points rank"], labels: Int[Tensor, " points"]
    ) -> Float[Tensor, "points rank"]:
        """Points that have descended on the whole gradient as far as arithmetic lets them."""
        enough = tolerances.ARRIVED**2
        clock, steps = self._clock, _SETTLING_STEPS
        return descend(self.factors, points, labels, enough=enough, clock=clock, steps=steps)[0]

    def _search_by_descents(self) -> None:
        for number in range(_PASSES):
            if self.is_complete or self._clock.is_over:
                return
            before = len(self.found)
            self._descend(min(_MOST_STARTS, _STARTS * (1 + number // 2)))
            if len(self.found) == before > 1:
                # What is left of the gradient is only as exact as what was taken out.
                self.found = refine_together(self.factors, self.found)

    def _descend(self, number: int) -> None:
        """Descend from so many starts on what the samples found leave of the gradient."""
        rest = self._rest()
        points, labels = starts(rest, number, self._generator)
        reached, misfits = descend(
            rest, points, labels, enough=tolerances.ARRIVED, clock=self._clock
        )
        # Errors of what was taken out are errors of the rest's spaces: near is good enough here.
        near = tolerances.NEAR if len(self.found) else tolerances.ARRIVED**0.5
        # Those that have arrived are all equally good, and stay in the order of their starts.
        misfits, order = misfits.clamp_min(tolerances.ARRIVED).sort(stable=True)
        chosen = order[misfits < near]
        if not len(chosen):
            return
        ends = Samples(reached[chosen] @ rest.right.T, labels[chosen], misfits[misfits < near])
        ends = Samples.none(rest.matrix).join(ends)
        ends = ends.pick(slice(_SETTLED))
        whole = self.factors.on_bias(ends.inputs @ self.factors.right)
        settled = self._settled(whole, ends.labels)
        # Along flat directions the descent drifts by rounding: where it started may be the better.
        self._take(torch.cat([settled, whole]), ends.labels.repeat(2))
