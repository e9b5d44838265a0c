"""The search by the gradient of the fully connected layer before the head.

Before a ReLU the gradient of a layer ``z = W h + b`` is

    G = [dW, db] = 1/D * sum_k d_k [h_k, 1]^T ,     d_k = (z_k > 0) * (W_head^T q_k) .

Its rank is K even for K far above the number of classes. Behind a ReLU the inputs h_k are sparse
directions of its row space, and in any case the d_k are sparse directions of its column space
(SPEAR, Dimitrov et al., NeurIPS 2024). A forward pass of h_k yields the embedding,
the prediction and, for each label, d_k. The right label is the one whose d_k lies in the column
space.
"""

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from labelleak.attacks.exact import tolerances
from labelleak.attacks.exact.certainty import agreed_divisor, has_whole_weight, stand_apart
from labelleak.attacks.exact.clock import Clock
from labelleak.attacks.exact.layer_descent import (
    LayerSpace,
    descend_in_layer,
    draw_layer_starts,
)
from labelleak.attacks.exact.logit_gradient import logit_directions, logit_gradients
from labelleak.attacks.exact.low_rank import LowRank, decompose, decomposition_seconds
from labelleak.attacks.exact.open_patterns import can_try_patterns, directions_by_open_patterns
from labelleak.attacks.exact.open_units import inputs_by_open_units, inputs_from_directions
from labelleak.attacks.exact.previous_layer import PreviousLayer
from labelleak.attacks.exact.samples import Samples
from labelleak.attacks.exact.search import Evidence, SampleSearch
from labelleak.numerics import implied_rounding
from labelleak.observation import Observation

# Rounds in a row that may find nothing: where all were found, the first round found some. Without a
# direction that could be a sample, a single round ends it.
_PATIENCE_AT_FIRST, _PATIENCE = 2, 12
# Behind a smooth activation: starts of descents at a time, their steps, and times in a row that may
# find nothing: at first, where the activation may be another one, and once any is found.
_STARTS, _STEPS, _FRUITLESS_AT_FIRST, _FRUITLESS = 64, 40, 2, 4
# Every label is tried for each sample: seconds for one entry of the head, measured.
_SECONDS_PER_TRIAL = 1e-7


class LayerSearch(SampleSearch):
    """Finds the samples of a batch in the gradient of the layer before the head.

    The rank of its factors is 0 if noise hides the samples, or if the batch may have more samples
    than the layer can show.

    Args:
        observation: What the server sees, with a bias gradient.
        layer: The layer before the head.
        divisor: What the loss divides by, or None if it is unknown.
        generator: Source of randomness.
        clock: Time limit.
    """

    def __init__(
        self,
        observation: Observation,
        layer: PreviousLayer,
        divisor: float | None,
        generator: torch.Generator,
        clock: Clock,
    ) -> None:
        super().__init__(divisor, Samples.none(layer.gradient), generator, clock)
        self._observation, self._layer = observation, layer
        self._factors = _factorize(layer, observation.batch_size, generator, clock.seconds / 2)

    @property
    def factors(self) -> LowRank:
        """Factors of the layer's gradient."""
        return self._factors

    def run(self) -> None:
        """Search until all samples are found, time is up, or the search gives up."""
        if not self.factors.rank:
            return
        if self._layer.activation.is_smooth:
            self._search_by_descents()
        elif self._layer.behind_relu:
            self._search_sparse(self.factors.right[:-1], _PATIENCE, at_first=_PATIENCE_AT_FIRST)
        else:
            self._offer(self._inputs_by_closed_units())

    def _inputs_by_closed_units(self) -> Float[Tensor, "samples rank"]:
        """Directions of the inputs of all samples, or none."""
        factors, head = self.factors, self._layer.head[:, :-1]
        if not can_try_patterns(factors, head):
            return inputs_by_open_units(factors, head, self._generator, self._clock)
        weight = self._layer.outputs(factors.right.T).T
        directions = directions_by_open_patterns(factors, weight, head, self._clock)
        missed = float(factors.values[len(directions) :].norm() / factors.values.norm())
        if missed > tolerances.UNEXPLAINED:
            return directions[:0]
        # Samples without a pattern are too weak to be seen.
        self._factors = factors.cut(len(directions))
        inputs, failed = inputs_from_directions(self._factors, directions[:, : len(directions)])
        return inputs[:0] if failed else inputs

    def contributions(self) -> Float[Tensor, "samples outputs"]:
        """The d of each sample found, over its inverse weight."""
        pulled = self._layer.pull_back(self.found.inputs, self._logit_gradients())
        contributions: Tensor = pulled / self.found.inverse_weights[:, None]
        return contributions

    def rest_of_head(self) -> Float[Tensor, "classes columns"]:
        """The head's gradient minus the samples found."""
        return self._head_gradient - self._head_contributions().T @ self._embeddings()

    def evidence(self, divisor: float | None) -> Evidence:
        """Evidence for the samples found."""
        return Evidence(
            embeddings=self._embeddings()[:, :-1],
            sure=self._sure(divisor),
            too_weak=0,
            proves=self._proves,
        )

    @property
    def _head_gradient(self) -> Float[Tensor, "classes width"]:
        gradient = self._observation.gradient
        assert gradient.bias is not None, "the layer's search needs it"
        return torch.cat([gradient.weight, gradient.bias[:, None]], dim=1).double()

    def _embeddings(self) -> Float[Tensor, "samples width"]:
        return self._layer.embed(self.found.inputs)

    def _logit_gradients(self) -> Float[Tensor, "samples classes"]:
        return self._layer.logit_gradients(self.found.inputs, self.found.labels)

    def _head_contributions(self) -> Float[Tensor, "samples classes"]:
        """The q of each sample found, over its inverse weight."""
        contributions: Tensor = self._logit_gradients() / self.found.inverse_weights[:, None]
        return contributions

    def _offer(self, directions: Float[Tensor, "directions rank"]) -> bool:
        """Take the sparse directions that are samples; returns whether any could be one."""
        for point in self._scaled_by_bias(directions):
            if self._clock.is_over:
                break
            self._take(point)
        if len(self.found) == self.factors.rank - 1:
            self._take_last()
        return True

    def _take_last(self) -> None:
        """Take the last sample, which is the whole rest of the gradient."""
        factors = self.factors
        taken = (self.contributions() @ factors.left).T @ (self.found.inputs @ factors.right)
        _, _, right = torch.linalg.svd(torch.diag(factors.values) - taken)
        for point in self._scaled_by_bias(right[:1]):
            self._take(point)

    def _search_by_descents(self) -> None:
        """Descend from random starts in what the samples found leave of the gradient."""
        fruitless, before = 0, 0
        while not self.is_complete and not self._clock.is_over:
            if fruitless >= (_FRUITLESS if before else _FRUITLESS_AT_FIRST):
                break
            before = len(self.found)
            if before == self.factors.rank - 1:
                self._take_last()
            else:
                self._descend()
            fruitless = 0 if len(self.found) > before else fruitless + 1

    def _descend(self) -> None:
        """Descend from a number of starts, and from there on the whole gradient."""
        rest, clock, whole = self._rest(), self._clock, LayerSpace(self.factors, self._layer)
        space = LayerSpace(rest, self._layer)
        starts, labels = draw_layer_starts(space, _STARTS, self._generator)
        reached, misfits = descend_in_layer(
            space, starts, labels, steps=_STEPS, enough=tolerances.ARRIVED, clock=clock
        )
        # Ends that have arrived are equally good and keep the order of their starts.
        misfits, order = misfits.clamp_min(tolerances.ARRIVED).sort(stable=True)
        order = order[misfits < tolerances.NEAR]
        ends = Samples(reached[order] @ rest.right.T, labels[order], misfits[: len(order)])
        ends = ends.pick(ends.is_first())
        settled, _ = descend_in_layer(
            whole,
            ends.inputs @ self.factors.right,
            ends.labels,
            steps=_STEPS,
            enough=tolerances.ARITHMETIC,
            clock=clock,
        )
        for point in self._scaled_by_bias(settled):
            self._take(point)

    def _rest(self) -> LowRank:
        """Factors of the gradient minus the samples found."""
        factors, size = self.factors, self.factors.rank - len(self.found)
        taken = (self.contributions() @ factors.left).T @ (self.found.inputs @ factors.right)
        left, values, right = torch.linalg.svd(torch.diag(factors.values) - taken)
        return LowRank(
            factors.left @ left[:, :size],
            values[:size],
            factors.right @ right[:size].T,
            factors.noise,
        )

    def _take(self, point: Float[Tensor, " rank"]) -> None:
        """Take a point if it is a sample of the batch, with the label that fits."""
        factors = self.factors
        inputs = factors.right @ point
        error = float(factors.input_errors(point[None]))
        negative = float(inputs[:-1].min()) < -tolerances.NEGATIVE * error
        if len(self.found) >= factors.rank or (negative and self._layer.behind_relu):
            return
        if self._layer.behind_relu:
            # An entry that is zero within its error is zero.
            inputs = torch.where(inputs > tolerances.ZERO * error, inputs, 0.0)
        inputs[-1] = 1.0
        fit = self._by_label(inputs, point)
        # Below its errors, how well a label fits is chance: of several that fit, take the first.
        label = int(fit.excess.clamp_min(tolerances.TELLING).argmin())
        if fit.excess[label] <= 1.0 and self._goes_with_others(point, fit.contributions[label]):
            own = fit.excess.new_tensor([label]).long()
            self.found = self.found.join(Samples(inputs[None], own, fit.inverse_weights[own]))

    def _by_label(self, inputs: Float[Tensor, " columns"], point: Float[Tensor, " rank"]) -> "_Fit":
        """How well each label fits the inputs of a sample.

        Args:
            inputs: [h, 1].
            point: Coordinates of the inputs.
        """
        layer, factors = self._layer, self.factors
        classes, dual = layer.head.shape[0], point / factors.values
        labels = torch.arange(classes, device=inputs.device)
        logits = (layer.embed(inputs[None]) @ layer.head.T).expand(classes, -1)
        directions = layer.pull_back(inputs[None], logit_directions(logits, labels))
        sizes = directions.norm(dim=1).clamp_min(1e-300)
        inside = directions @ factors.left
        misfits = factors.outside(directions).norm(dim=1) / sizes
        noise = factors.noise * (inside / factors.values).norm(dim=1) / sizes
        own = logit_gradients(logits, labels, layer.class_weights).diagonal().abs()
        rounded = tolerances.COMPLEMENT_MARGIN * layer.epsilon / own
        allowed = tolerances.ERROR_MARGIN * noise * factors.left.shape[0] ** 0.5
        allowed = allowed + tolerances.DIRECTION + rounded
        allowed = allowed.clamp_max(tolerances.MOST_MISFIT)
        excess = misfits / allowed
        # If there are two classes, d of the wrong label fits too, but with a negative weight.
        inverse = own * (inside @ dual)
        if self.divisor is not None:
            times = (self.divisor / inverse).round().clamp(1.0, tolerances.MOST_TIMES)
            slip = (inverse * times / self.divisor - 1.0).abs()
            excess = torch.maximum(excess, slip / tolerances.MOST_SLIP)
        least = tolerances.LEAST_INVERSE_WEIGHT * layer.class_weights
        excess = torch.where(inverse > least, excess, torch.inf)
        return _Fit(excess, inverse, inside * (own / inverse)[:, None], allowed)

    def _goes_with_others(
        self, point: Float[Tensor, " rank"], contribution: Float[Tensor, " rank"]
    ) -> bool:
        """Whether a sample is biorthogonal to those found; a mixture with one of them is not."""
        if not len(self.found):
            return True
        factors = self.factors
        there = self.contributions() @ factors.left / factors.values @ point
        back = (self.found.inputs @ factors.right) @ (contribution / factors.values)
        return bool(torch.maximum(there.abs(), back.abs()).max() < tolerances.COUPLING)

    def _sure(self, divisor: float | None) -> Bool[Tensor, " samples"]:
        """Which samples are there beyond errors, and fit with no other label."""
        inverse, factors = self.found.inverse_weights, self.factors
        agreed = agreed_divisor(inverse) if self.divisor is None else self.divisor
        if agreed is None:
            return torch.zeros_like(self.found.labels, dtype=torch.bool)
        points, inside = self.found.inputs @ factors.right, self.contributions() @ factors.left
        sure = self._is_clear() & has_whole_weight(inverse, agreed)
        sure = sure & stand_apart(factors, points, inside) & ~self._fit_other_label()
        sure = sure & (self._chances() < tolerances.LUCK)
        # Only the other samples can confirm that one is repeated.
        return sure if self.is_complete else sure & (self.times(divisor) == 1)

    def _fit_other_label(self) -> Bool[Tensor, " samples"]:
        """Which samples fit with another label as well."""
        points = self.found.inputs @ self.factors.right
        fitting = [
            int((self._by_label(inputs, point).excess <= 1.0).sum())
            for inputs, point in zip(self.found.inputs, points, strict=True)
        ]
        return torch.tensor(fitting, device=points.device) > 1

    def _chances(self) -> Float[Tensor, " samples"]:
        """How likely the spare equations of each sample hold by chance; 0 where zeros tell."""
        inputs, labels = self.found.inputs, self.found.labels
        if not self._layer.activation.is_smooth:
            return torch.zeros_like(self.found.inverse_weights)
        points = zip(inputs, inputs @ self.factors.right, labels, strict=True)
        allowed = [self._by_label(own, point).allowed[label] for own, point, label in points]
        # Equations outside of the column space less unknowns.
        spare = len(self.factors.left) - 2 * self.factors.rank + 1
        return torch.stack([*allowed, inputs.new_ones(())])[:-1] ** max(0, spare)

    def _is_clear(self) -> Bool[Tensor, " samples"]:
        """Which samples stand clear of the errors of the gradient and of the client."""
        layer, factors = self._layer, self.factors
        q = self._head_contributions()
        slips = layer.epsilon * q.norm(dim=1) * self._embeddings().norm(dim=1)
        slips = slips * float(layer.head.norm(dim=1).max())
        slips = slips + layer.epsilon / self.found.inverse_weights
        inside = self.contributions() @ factors.left
        points = self.found.inputs @ factors.right
        dual = (inside / factors.values).norm(dim=1) * (points / factors.values).norm(dim=1)
        noise = factors.noise * factors.left.shape[0] ** 0.5 * dual
        beside_noise = tolerances.CLEAR * noise < 1.0
        clear: Tensor = beside_noise & (q.norm(dim=1) > tolerances.CLEAR * slips)
        return clear

    def _proves(self) -> bool:
        """Whether the samples make up both gradients, the layer's and the head's.

        The inputs determine every d, and the embeddings every q, by a linear system. Both have to
        be those that the head predicts, and nothing but rounding may be left of either gradient.
        """
        if not self.is_complete or not bool(self._is_clear().all()):
            return False
        if float(self._chances().prod()) >= tolerances.LUCK:
            return False
        layer, head = self._layer, self._head_gradient
        of_layer = self.found.inputs, self.contributions()
        of_head = self._embeddings(), self._head_contributions()
        return _follow(layer.gradient, *of_layer, layer.rounding) and _follow(
            head, *of_head, implied_rounding(head.float())
        )


class _Fit(NamedTuple):
    """How well each label fits the inputs of a sample.

    Attributes:
        excess: Distance of each label's d from that of a sample of the batch, in units of what
            errors allow; a sample has at most 1.
        inverse_weights: The divisor over how often the sample is in the batch.
        contributions: ``U^T d`` over the inverse weights.
        allowed: How far errors can take the direction of d from the column space.
    """

    excess: Float[Tensor, " classes"]
    inverse_weights: Float[Tensor, " classes"]
    contributions: Float[Tensor, "classes rank"]
    allowed: Float[Tensor, " classes"]


def _follow(matrix: Tensor, rows: Tensor, predicted: Tensor, rounding: float) -> bool:
    """Whether ``X^T rows = matrix`` has the predicted solution X, and leaves only rounding."""
    # Rows may be linearly dependent, which solvers on a GPU do not allow.
    solved = torch.linalg.lstsq(rows.T.cpu(), matrix.T.cpu(), driver="gelsd").solution
    solved = solved.to(matrix)
    apart = (solved - predicted).norm(dim=1)
    if bool((apart > tolerances.DIFFERENT * predicted.norm(dim=1)).any()):
        return False
    left_over = (matrix - solved.T @ rows).norm()
    return bool(left_over <= tolerances.LEFT_OVER * rounding * matrix.numel() ** 0.5)


def _factorize(
    layer: PreviousLayer, batch_size: int | None, generator: torch.Generator, seconds: float
) -> LowRank:
    """Factorize the layer's gradient; rank 0 if it tells nothing of the samples, or takes long."""
    matrix = layer.gradient
    most = min(matrix.shape) // 2
    few = most if batch_size is None else min(batch_size, most)
    trials = few * layer.head.numel() * _SECONDS_PER_TRIAL
    if decomposition_seconds(matrix.shape, few) + trials > seconds:
        nothing = matrix.new_zeros(0)
        return LowRank(matrix[:, :0], nothing, matrix.T[:, :0].contiguous(), 0.0)
    found = decompose(matrix, few, generator)
    values = found.values
    noise = max(found.noise, tolerances.DECOMPOSITION * float(values[0]) / max(matrix.shape))
    if batch_size is None:
        # Without a batch size only the number format tells how large rounding is.
        noise = max(noise, layer.rounding / 4)
    loud = tolerances.RANK_MARGIN * noise * sum(side**0.5 for side in matrix.shape)
    rank = int((values > loud).sum())
    # The batch may have more samples than were looked for: then the rank tells nothing.
    crowded = rank == len(values) if batch_size is None else batch_size > len(values)
    if crowded or noise * matrix.numel() ** 0.5 > tolerances.UNEXPLAINED * float(values.norm()):
        rank = 0
    return LowRank(found.left[:, :rank], values[:rank], found.right[:, :rank].contiguous(), noise)
