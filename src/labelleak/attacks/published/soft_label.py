"""The soft label of a single sample: smoothed, mixed up or hard."""

import math
from typing import Literal, get_args

import torch
from jaxtyping import Float
from torch import Tensor

from labelleak.attacks.conclusion import conclude
from labelleak.attacks.registry import Gives, Need, register
from labelleak.errors import MissingKnowledge
from labelleak.observation import Observation
from labelleak.restoration import Restoration

Kind = Literal["smoothing", "mixup"]

# Lengths of the embedding to try, in units of the gradient's, which is |p - y| lengths: none is
# below one over the root of 2. Beyond logits that far apart predictions are certain.
_SHORTEST, _LEAST_END, _MOST_END, _CERTAIN = 0.5, 5.0, 1e16, 1e4
_GRID, _CANDIDATES, _REFINEMENTS = 2000, 8, 60
# Of a sum of entries of the head, in double precision.
_ROUNDING = 1e-12
# Targets of all lengths together, which take about a second; fewer lengths are too far apart.
_MOST_TARGETS, _LEAST_GRID = 1 << 24, 32


@register(
    "soft-label",
    title="Soft label of one sample",
    needs=(Need.WEIGHT, Need.ONE_SAMPLE),
    gives=(Gives.COUNTS, Gives.EMBEDDINGS),
    assumes="a single sample, and that all classes but one (smoothing) or two (mixup) have the "
    "same target",
    reference="Wang, Liang and He, ICLR 2024 (Towards Eliminating Hard Label Constraints in "
    "Gradient Inversion Attacks, arXiv:2402.03124)",
)
def soft_label(observation: Observation, *, kind: Kind = "smoothing") -> Restoration:
    """Find the one length of the embedding for which what remains is a label.

    With one sample all rows of the weight gradient are multiples ``a_i`` of the same direction u,
    and the embedding is ``t u`` with an unknown number t. Each t gives a prediction
    ``p = softmax(W t u + b)`` and a target ``y = p - a / t``, which sums to one. The right t is the
    one whose smallest C - 1 (smoothing) or C - 2 (mixup) targets are all the same: the one of least
    variance, relative to ``|a / t|^2`` so that certain predictions (t without bounds) do not seem
    right.

    Args:
        observation: Needs the weight gradient of a single sample, and the head.
        kind: How the label was made: ``"smoothing"`` (a hard label, too) or ``"mixup"`` of two
            samples.

    Returns:
        ``raw`` and ``proportions``: the soft label; ``counts``: its largest entry's class;
        ``class_embeddings``: the sample's embedding, the same for every class.

    Raises:
        MissingKnowledge: More classes than there is time for, fewer than two that can be the same,
            or a head that predicts the same for all of them: every length leaves a label.
        ValueError: No such kind.
    """
    if kind not in get_args(Kind):
        raise ValueError(f"kind {kind!r}: use {' or '.join(map(repr, get_args(Kind)))}")
    most = _MOST_TARGETS // (2 * _LEAST_GRID)
    if observation.classes > most:
        raise MissingKnowledge(
            f"attack 'soft-label' tries many lengths for all classes: {observation.classes} are "
            f"more than {most} (use 'pooled' or 'llbg')"
        )
    apart = 1 if kind == "smoothing" else 2
    if observation.classes < apart + 2:
        raise MissingKnowledge(
            f"attack 'soft-label' needs {apart + 2} classes to tell one label from another: of "
            f"{observation.classes}, embeddings of any length leave one (use 'pooled' or 'llbg')"
        )
    gradient, head = observation.gradient.weight.double(), observation.head
    direction = gradient[torch.linalg.vector_norm(gradient, dim=1).argmax()]
    direction = direction / torch.linalg.vector_norm(direction)
    factors = gradient @ direction
    unit = torch.linalg.vector_norm(factors)
    slope = head.weight.double() @ direction
    bias = torch.zeros_like(slope) if head.bias is None else head.bias.double()
    if _same(slope, head.weight) and _same(bias, bias):
        raise MissingKnowledge(
            "attack 'soft-label' needs a head that predicts some classes rather than others: this "
            "one predicts all the same, and embeddings of any length leave a label (use 'pooled')"
        )
    model = _Line(factors / unit, slope * unit, bias, apart)
    length = model.best()
    label = model.targets(length.reshape(1))[0]
    found = conclude(observation, label, 1)
    embeddings = (length * unit * direction).expand(observation.classes, -1)
    return Restoration(**{**vars(found), "rounded": None, "class_embeddings": embeddings})


def _same(values: Float[Tensor, " classes"], parts: Float[Tensor, "..."]) -> bool:
    """Whether sums of such parts differ by rounding only."""
    return bool(values.max() - values.min() <= _ROUNDING * parts.abs().max())


class _Line:
    """Targets as a function of the embedding's length on its line, and how uneven they are.

    Lengths are in units of the factors, whose norm is 1.
    """

    def __init__(
        self,
        factors: Float[Tensor, " classes"],
        slope: Float[Tensor, " classes"],
        bias: Float[Tensor, " classes"],
        apart: int,
    ) -> None:
        self._factors, self._slope, self._bias, self._apart = factors, slope, bias, apart

    def targets(self, lengths: Float[Tensor, " lengths"]) -> Float[Tensor, "lengths classes"]:
        """Prediction less the factors over the length."""
        logits = lengths[:, None] * self._slope + self._bias
        return torch.softmax(logits, dim=1) - self._factors / lengths[:, None]

    def unevenness(self, lengths: Float[Tensor, " lengths"]) -> Float[Tensor, " lengths"]:
        """Variance of the smallest targets, relative to the size of the error."""
        targets = self.targets(lengths)
        apart = targets.topk(self._apart, dim=1)
        mean = (targets.sum(dim=1, keepdim=True) - apart.values.sum(dim=1, keepdim=True)) / (
            targets.shape[1] - self._apart
        )
        # The largest ones replaced, not subtracted: the others may differ by rounding only.
        apart_from = targets.scatter(1, apart.indices, mean.expand_as(apart.indices)) - mean
        return (apart_from * lengths[:, None]).square().sum(dim=1) / (
            targets.shape[1] - self._apart
        )

    def best(self) -> Float[Tensor, ""]:
        """The length of least unevenness: a grid on both sides of zero, then its best minima."""
        spread = self._slope.std().clamp_min(_CERTAIN / _MOST_END)
        longest = max(_CERTAIN / float(spread), _LEAST_END)
        grid = min(_GRID, _MOST_TARGETS // (2 * len(self._slope)))
        logs = torch.linspace(math.log(_SHORTEST), math.log(longest), grid, dtype=torch.float64)
        logs = logs.to(self._slope.device)
        sides = torch.tensor([1.0, -1.0]).to(logs)
        values = torch.stack([self.unevenness(side * logs.exp()) for side in sides])
        padded = torch.nn.functional.pad(values, (1, 1), value=torch.inf)
        minima = (values <= padded[:, :-2]) & (values <= padded[:, 2:])
        ranked = torch.where(minima, values, torch.inf).flatten().sort(stable=True)
        chosen = ranked.indices[: min(_CANDIDATES, int(minima.sum()))]
        side, middle = sides[chosen // grid], logs[chosen % grid]
        # Golden-section search, vectorized over all candidates.
        width = logs[1] - logs[0]
        left, right = middle - width, middle + width
        ratio = (5**0.5 - 1) / 2
        for _ in range(_REFINEMENTS):
            inner_left = right - ratio * (right - left)
            inner_right = left + ratio * (right - left)
            better = self.unevenness(side * inner_left.exp()) < self.unevenness(
                side * inner_right.exp()
            )
            right = torch.where(better, inner_right, right)
            left = torch.where(better, left, inner_left)
        lengths = side * ((left + right) / 2).exp()
        return lengths[self.unevenness(lengths).argmin()]
