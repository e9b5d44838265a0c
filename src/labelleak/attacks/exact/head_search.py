"""The search by the head's gradient: sparse directions first, then descents from many starts."""

from collections.abc import Callable
from functools import cache

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from labelleak.attacks.exact import tolerances
from labelleak.attacks.exact.acceptance import accepted, beyond_luck, likely_labels
from labelleak.attacks.exact.biorthogonality import compatible, refine_together
from labelleak.attacks.exact.certainty import agreed_divisor, has_whole_weight, stand_apart
from labelleak.attacks.exact.certificate import (
    Judgment,
    clear_samples,
    determined_by_zeros,
    fits_other_label,
    judge,
    no_competitor,
    number_too_weak,
    singled_out_by_zeros,
)
from labelleak.attacks.exact.clock import Clock
from labelleak.attacks.exact.descent import descend
from labelleak.attacks.exact.head_factors import HeadFactors, deflate, factorize
from labelleak.attacks.exact.logit_gradient import logit_gradients
from labelleak.attacks.exact.samples import Samples
from labelleak.attacks.exact.search import Evidence, SampleSearch
from labelleak.attacks.exact.starts import draw_starts, typical_length
from labelleak.observation import Observation

# Rounds of guessed zeros in a row that may find nothing.
_PATIENCE = 6
# Passes of descents, and how many starts the first and the largest of them have.
_PASSES, _STARTS, _MOST_STARTS = 40, 256, 2048
# Ends of descents that are fitted to the whole gradient after each pass, and steps of that fit.
_SETTLED, _SETTLING_STEPS, _SETTLED_ENTRIES = 96, 40, 2**24
# Without a bias: sparse directions kept per round, and lengths tried for each.
_KEPT_DIRECTIONS, _LENGTHS_TRIED = 24, 9


class HeadSearch(SampleSearch):
    """Finds the samples of a batch in the gradient of the head.

    Args:
        observation: What the server sees.
        divisor: What the loss divides by, or None if it is unknown.
        generator: Source of randomness.
        clock: Time limit.

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
        self._factors = factorize(
            observation, observation.batch_size, generator, seconds=clock.seconds / 2
        )
        super().__init__(divisor, Samples.none(self._factors.matrix), generator, clock)

    @property
    def factors(self) -> HeadFactors:
        """Factors of the head's gradient."""
        return self._factors

    @property
    def is_complete(self) -> bool:
        """Whether the samples found reach the rank of the gradient, or the batch size."""
        return super().is_complete or self._is_explained

    @property
    def _is_explained(self) -> bool:
        """Whether the samples found, some of them repeated, are the whole batch.

        The rank may be one too high then, because of the client's rounding.
        """
        values, number = self.factors.values, len(self.found)
        if self.divisor is None or number < 2 or bool((self.factors.weights != 1.0).any()):
            return False
        if float(values[number:].norm() / values.norm()) > tolerances.REPEATED_REST:
            return False
        times = (self.divisor / self.found.inverse_weights).round()
        return bool((times > 1.5).any()) and float(times.sum()) == self.divisor

    @property
    def _is_square(self) -> bool:
        """Whether there are as many samples as the rank, so that they determine the gradient."""
        return len(self.found) == self.factors.rank

    def run(self) -> None:
        """Search until all samples are found, time is up, or the search gives up."""
        # Without a bias and spare equations nothing tells the length of a sparse direction.
        if self.factors.affine or self.factors.spare_equations > 0:
            self._search_sparse(self._features, _PATIENCE, affine=self.factors.affine)
        if self.factors.spare_equations > 0:
            self._search_by_descents()
        if self.is_complete and len(self.found) < self.factors.rank:
            fewer = factorize(self._observation, len(self.found), self._generator)
            # Otherwise noise hides one of them.
            self._factors = fewer if fewer.rank == len(self.found) else self.factors

    def contributions(self) -> Float[Tensor, "samples classes"]:
        """The q of each sample found, over its inverse weight."""
        logits = self.found.inputs @ self.factors.layer.T + self.factors.offset
        q = logit_gradients(logits, self.found.labels, self.factors.weights)
        contributions: Tensor = q / self.found.inverse_weights[:, None]
        return contributions

    def rest_of_head(self) -> Float[Tensor, "classes columns"]:
        """The head's gradient minus the samples found."""
        return self._rest().matrix

    def evidence(self, divisor: float | None) -> Evidence:
        """Evidence for the samples found; once all are found, they are fitted together first."""
        judged, samples, late = None, self.found, self._clock.judging.is_over
        if len(samples) and divisor is not None and self._is_square and not late:
            judged = judge(self.factors, samples, divisor, self._rounding, self._clock)
            samples = judged.samples
        known = divisor if self._is_square else self.divisor
        # Slow, and asked for twice.
        others = cache(lambda: fits_other_label(self.factors, samples, known, self._clock))
        missing = self.factors.rank - len(samples)
        return Evidence(
            embeddings=samples.inputs[:, : self._observation.head.features],
            sure=self._sure(samples, divisor, others),
            too_weak=min(missing, number_too_weak(self._rest(), samples))
            if missing and len(samples)
            else 0,
            proves=lambda: judged is not None and self._proves(judged, divisor, others),
        )

    def _sure(
        self, samples: Samples, divisor: float | None, others: Callable[[], Tensor]
    ) -> Bool[Tensor, " samples"]:
        """Which samples are there beyond errors and chance, and fit with no other label."""
        if not len(samples) or self._clock.judging.is_over:
            return torch.zeros_like(samples.labels, dtype=torch.bool)
        factors, complete = self.factors, self._is_square
        points = samples.inputs @ factors.right
        inside = factors.logit_gradients(points, samples.labels) @ factors.left
        inverse = factors.inverse_weights(points, inside)
        agreed = agreed_divisor(inverse) if self.divisor is None else self.divisor
        if agreed is None:
            return torch.zeros_like(samples.labels, dtype=torch.bool)
        sure = clear_samples(factors, samples) & has_whole_weight(inverse, agreed)
        sure = sure & stand_apart(factors, points, inside / inverse[:, None])
        if not (complete and determined_by_zeros(factors, self.found)):
            evident = beyond_luck(factors, samples) | singled_out_by_zeros(factors, self.found)
            sure = sure & evident & ~others()
        # Only the other samples can confirm that one is repeated.
        return sure if complete else sure & (self.times(divisor) == 1)

    def _proves(
        self, judged: Judgment, divisor: float | None, others: Callable[[], Tensor]
    ) -> bool:
        """Whether the samples rebuild the gradient, and no other hypothesis comes near."""
        if divisor is None or not judged.rebuilt or not bool(judged.seen.all()):
            return False
        if determined_by_zeros(self.factors, self.found):
            return True
        if self.factors.spare_equations > 0:
            return not bool(others().any())
        return no_competitor(self.factors, judged, divisor, self._clock)

    @property
    def _rounding(self) -> float:
        """Typical rounding error of one entry of the gradient."""
        gradient = self._observation.gradient
        return max(gradient.rounding, tolerances.ARITHMETIC * gradient.size)

    @property
    def _features(self) -> Float[Tensor, "features rank"]:
        """Rows of V without that of the bias."""
        return self.factors.right[: self._observation.head.features]

    def _rest(self) -> HeadFactors:
        """Factors of the gradient minus the samples found."""
        if not len(self.found):
            return self.factors
        return deflate(self.factors, self.found.inputs, self.contributions())

    def _take(self, points: Tensor, labels: Tensor) -> None:
        """Add the points that are accepted and compatible with the samples found before."""
        factors = self.factors
        # `refine_together` may have made two of them the same.
        known = self.found.pick(self.found.is_first())
        every = known.join(accepted(factors, points, labels, self.divisor, clock=self._clock))
        self.found = every.pick(compatible(factors, len(known), every, factors.rank))

    def _offer(self, directions: Float[Tensor, "directions rank"]) -> bool:
        """Take the sparse directions that are samples; returns whether any could be one."""
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
            within = tolerances.MOST_MISFIT
            which, labels = likely_labels(factors, points, within=within, clock=self._clock)
            self._take(points[which], labels)
        else:
            self._take_at_some_length(points)
        return True

    def _take_at_some_length(self, directions: Float[Tensor, "directions rank"]) -> None:
        """Try several lengths of each direction, as nothing tells the length without a bias."""
        factors = self.factors
        ratios = torch.logspace(-0.8, 0.8, _LENGTHS_TRIED).to(directions)
        lengths = typical_length(factors) * ratios
        points = (lengths[:, None, None] * directions[:_KEPT_DIRECTIONS]).flatten(0, 1)
        which, labels = likely_labels(factors, points, clock=self._clock)
        if self._clock.judging.is_over:
            return
        self._take(self._settled(points[which], labels), labels)

    def _settled(
        self, points: Float[Tensor, "points rank"], labels: Int[Tensor, " points"]
    ) -> Float[Tensor, "points rank"]:
        """The points after a descent on the whole gradient to the limit of arithmetic."""
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
                # The rest of the gradient is only as exact as the samples taken out of it.
                self.found = refine_together(self.factors, self.found, self._clock)

    def _descend(self, number: int) -> None:
        """Descend from a number of starts on the gradient minus the samples found."""
        rest = self._rest()
        points, labels = draw_starts(rest, number, self._generator)
        reached, misfits = descend(
            rest, points, labels, enough=tolerances.ARRIVED, clock=self._clock
        )
        if self._clock.judging.is_over:
            return
        # Samples taken out inexactly blur the rest, so a descent on it need not arrive.
        near = tolerances.NEAR if len(self.found) else tolerances.ARRIVED**0.5
        # Ends that have arrived are equally good and keep the order of their starts.
        misfits, order = misfits.clamp_min(tolerances.ARRIVED).sort(stable=True)
        chosen = order[misfits < near]
        if not len(chosen):
            return
        ends = Samples(
            reached[chosen] @ rest.right.T, labels[chosen], torch.ones_like(chosen).double()
        )
        most = min(_SETTLED, max(1, _SETTLED_ENTRIES // rest.left.shape[0]))
        ends = ends.pick(ends.is_first().nonzero()[:most, 0])
        whole = self.factors.on_bias(ends.inputs @ self.factors.right)
        settled = self._settled(whole, ends.labels)
        # Rounding moves points along flat directions, so the start may fit better than the end.
        self._take(torch.cat([settled, whole]), ends.labels.repeat(2))
