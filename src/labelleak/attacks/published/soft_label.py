"""The soft label of a single sample: smoothed, mixed up or hard."""

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

# Lengths of the embedding to try, in units of one over the norm of a row of the head. Beyond them
# the head's predictions are certain or uniform.
_SPAN, _GRID, _CANDIDATES, _REFINEMENTS = (1e-4, 1e4), 2000, 8, 60
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
        MissingKnowledge: More classes than there is time for.
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
    gradient, head = observation.gradient.weight.double(), observation.head
    direction = gradient[torch.linalg.vector_norm(gradient, dim=1).argmax()]
    direction = direction / torch.linalg.vector_norm(direction)
    slope = head.weight.double() @ direction
    bias = torch.zeros_like(slope) if head.bias is None else head.bias.double()
    model = _Line(gradient @ direction, slope, bias, 1 if kind == "smoothing" else 2)
    length = model.best()
    label = model.targets(length.reshape(1))[0]
    found = conclude(observation, label, 1)
    embeddings = (length * direction).expand(observation.classes, -1)
    return Restoration(**{**vars(found), "rounded": None, "class_embeddings": embeddings})


class _Line:
    """Targets as a function of the embedding's length on its line, and how uneven they are."""

    def __init__(
        self,
        factors: Float[Tensor, " classes"],
        slope: Float[Tensor, " classes"],
        bias: Float[Tensor, " classes"],
        apart: int,
    ) -> None:
        self._factors, self._slope, self._bias = factors, slope, bias
        self._apart = min(apart, len(factors) - 1)

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
        error = self._factors.square().sum() / lengths.square()
        return apart_from.square().sum(dim=1) / (targets.shape[1] - self._apart) / error

    def best(self) -> Float[Tensor, ""]:
        """The length of least unevenness: a grid on both sides of zero, then its best minima."""
        unit = 1.0 / float(self._slope.std().clamp_min(torch.finfo(torch.float64).tiny))
        low, high = (torch.tensor(end * unit, dtype=torch.float64).log() for end in _SPAN)
        grid = min(_GRID, _MOST_TARGETS // (2 * len(self._slope)))
        logs = torch.linspace(float(low), float(high), grid, dtype=torch.float64)
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
