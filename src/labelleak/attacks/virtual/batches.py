"""Virtual batches: what gradient batches of drawn counts have, and which counts this one has."""

import math
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from labelleak.attacks.conclusion import conclude
from labelleak.attacks.evidence import instances
from labelleak.attacks.registry import Gives, Need, register
from labelleak.attacks.sample_vectors import SampleVectors, sample_vectors
from labelleak.attacks.virtual.drawing import canonical_order
from labelleak.errors import MissingKnowledge
from labelleak.observation import Observation
from labelleak.restoration import Restoration

# Concentrations of the Dirichlet distribution of a batch's shares, from those of a batch drawn at
# random from even classes to those of few classes, and the virtual batches of each.
_CONCENTRATIONS, _EACH = (math.inf, 10.0, 3.0, 1.0, 0.3), 4_000
# Most sums of entries for all batches of a concentration, a second for all of them; most classes,
# for which that leaves batches enough; and most classes times samples: 200 MB.
_MOST_SUMS, _MOST_CLASSES, _MOST_ENTRIES = 10_000_000, 100, 1_000_000
# Share of the batches that are near the observed one, what those count that are not, and ridges of
# both regressions.
_NEAR, _FAR_WEIGHT, _FIRST_RIDGE, _RIDGE = 0.05, 0.1, 1e-3, 0.1
# Distances are the same below this difference, relatively, which is rounding.
_SAME = 1e-9
# How often each auxiliary sample stands in the ring of samples that batches are cut from, unless it
# is then longer than it need be, and how many times as long as the longest cut it is at least.
_PICKS, _RING, _LONGEST = 64, 4_000, 4


@register(
    "virtual-batches",
    title="Virtual batches (labelleak's own)",
    needs=(Need.BIAS, Need.BATCH_SIZE, Need.MODEL, Need.AUXILIARY),
    gives=(Gives.COUNTS,),
    assumes="auxiliary data of the client's kind, and one step",
    reference="labelleak; regression adjustment (Beaumont, Zhang and Balding 2002)",
    losses=("cross_entropy", "focal", "custom"),
)
def virtual_batches(observation: Observation, *, seed: int = 0) -> Restoration:
    """Draw batches from the auxiliary samples, and regress their counts on their gradients.

    What one sample adds to the bias gradient, ``p - y``, is known of every auxiliary sample, so
    that a batch of any counts is a sum of some of these, and thousands are made in a moment: from
    batches drawn at random from even classes to those of few classes. For each such concentration
    ridge regression predicts the shares from the gradient, mostly of the batches that are nearest
    to the observed one by what a first regression of all says. Concentrations have the weight that
    they have among the nearest. Mistakes that are few and large, as of a well trained network, are
    taken for what they are, which a normal distribution does not do, and where the gradient tells
    little, the answer stays near an even batch.

    Every other sample of a class is in one of two pools, and a batch has those of one. Errors are
    those of predicting batches of one pool from those of the other.

    Args:
        observation: Of one step; needs the bias and its gradient, the batch size, the model and
            auxiliary data with two samples of every class, better 100: of very few, errors are too
            small. Label smoothing and class weights are taken into account.
        seed: Of what is drawn; anything from 0.

    Returns:
        Real-valued and integer counts with standard errors.

    Raises:
        MissingKnowledge: There are several local steps, a class has fewer than two auxiliary
            samples, or there are too many classes for as many batches as they need.
    """
    if observation.local_steps > 1:
        raise MissingKnowledge(
            "attack 'virtual-batches' is of one local step (use virtual or likelihood)"
        )
    total, classes = instances(observation), observation.classes
    if classes > _MOST_CLASSES or classes * total > _MOST_ENTRIES:
        raise MissingKnowledge(
            f"attack 'virtual-batches' would take too long for {classes} classes and {total} "
            "samples (use rlu)"
        )
    known = sample_vectors(observation, 0)
    if int(torch.bincount(known.labels, minlength=classes).min()) < 2:
        raise MissingKnowledge(
            "attack 'virtual-batches' needs two auxiliary samples of every class"
        )
    # With the last class's entries, so that no class is another than the rest.
    vectors, seen = (
        torch.cat([one, -one.sum(dim=-1, keepdim=True)], dim=-1).cpu()
        for one in (known.vectors, known.seen)
    )
    known = known._replace(vectors=vectors, seen=seen)
    made = _made(known, canonical_order(observation), total, seed)
    shares, errors = _read(made, seen)
    return conclude(observation, total * shares, total, standard_errors=total * errors)


class _Batches(NamedTuple):
    """Virtual batches.

    Attributes:
        shares: Of the classes, float64, shape (batches, classes).
        means: Of their samples' vectors, float64, shape (batches, entries).
        pools: 0 or 1 for each, shape (batches,).
    """

    shares: Float[Tensor, "batches classes"]
    means: Float[Tensor, "batches entries"]
    pools: Int[Tensor, " batches"]


def _made(known: SampleVectors, order: Int[Tensor, " classes"], total: int, seed: int) -> _Batches:
    """As many virtual batches of each concentration; classes are drawn in the order given."""
    source, classes = np.random.default_rng(seed), len(order)
    each = min(_EACH, _MOST_SUMS // classes**2)
    batches = each * len(_CONCENTRATIONS)
    counts = torch.empty(batches, classes, dtype=torch.int64)
    drawn = [_drawn(source, (each, classes), total, one) for one in _CONCENTRATIONS]
    counts[:, order] = torch.from_numpy(np.concatenate(drawn))
    pools = torch.arange(batches) % 2
    vectors, labels = known.vectors, known.labels.cpu()
    means = torch.zeros(batches, vectors.shape[1], dtype=vectors.dtype)
    for label in order.tolist():
        own = vectors[labels == label]
        for pool in (0, 1):
            rows = ((pools == pool) & (counts[:, label] > 0)).nonzero()[:, 0]
            means[rows] += _cuts(source, own[pool::2], counts[rows, label])
    means /= (counts.double() @ known.weights.cpu().double())[:, None]
    return _Batches(counts.double() / total, means, pools)


def _drawn(
    source: np.random.Generator, shape: tuple[int, int], total: int, concentration: float
) -> np.ndarray:
    """Counts of batches with shares of this concentration, int64, of shape (batches, classes)."""
    weights = np.ones(shape)
    if concentration < math.inf:
        # No class is impossible, and none has the weight that rounds to zero of all.
        weights = source.standard_gamma(concentration, shape) + 1e-300
    drawn: np.ndarray = source.multinomial(total, weights / weights.sum(axis=1, keepdims=True))
    return drawn


def _cuts(
    source: np.random.Generator,
    vectors: Float[Tensor, "samples entries"],
    numbers: Int[Tensor, " cuts"],
) -> Float[Tensor, "cuts entries"]:
    """Sums of so many vectors each, picked at random, nearly with replacement.

    They are cut out of a ring in which each vector stands as often, in any order, so that a sum
    takes the same time for any number.
    """
    longest = int(numbers.max()) if len(numbers) else 0
    times = min(_PICKS, -(-_RING // len(vectors)))
    times = max(times, -(-_LONGEST * longest // len(vectors)))
    ring = source.permutation(np.repeat(np.arange(len(vectors)), times))
    row = vectors[torch.from_numpy(np.concatenate([ring, ring[:longest]]))]
    sums = torch.cat([torch.zeros_like(row[:1]), row.cumsum(dim=0)])
    starts = torch.from_numpy(source.integers(len(ring), size=len(numbers)))
    return sums[starts + numbers] - sums[starts]


def _read(
    made: _Batches, seen: Float[Tensor, " entries"]
) -> tuple[Float[Tensor, " classes"], Float[Tensor, " classes"]]:
    """Shares of the observed batch and their standard errors."""
    near = _nearness(made, seen)
    each = len(near) // len(_CONCENTRATIONS)
    parts = [slice(start, start + each) for start in range(0, len(near), each)]
    found = [
        (
            float(near[part].sum()),
            *_read_among(_Batches(*(one[part] for one in made)), near[part], seen),
        )
        for part in parts
        if bool((near[part] > 0.0).any())
    ]
    weights = torch.tensor([weight for weight, _, _ in found], dtype=near.dtype)
    weights = (weights / weights.sum())[:, None]
    shares = torch.stack([own for _, own, _ in found])
    mean = (weights * shares).sum(dim=0)
    squares = torch.stack([square for _, _, square in found]) + (shares - mean).square()
    return mean, (weights * squares).sum(dim=0).sqrt()


def _nearness(made: _Batches, seen: Float[Tensor, " entries"]) -> Float[Tensor, " batches"]:
    """How near batches are to the observed one, by predicted shares: from 1 to 0 for most."""
    fit = _fit(made, torch.ones_like(made.means[:, 0]), _FIRST_RIDGE)
    predicted = fit(made.means)
    spread = (predicted - made.shares).square().mean(dim=0).clamp_min(1e-300)
    distances = ((predicted - fit(seen[None])).square() / spread).sum(dim=1)
    # Many that are the same may be the nearest: all of them are near.
    farthest = distances.kthvalue(int(_NEAR * len(distances))).values
    farthest = (1.0 + _SAME) * farthest + 1e-300
    return (1.0 - distances / farthest).clamp_min(0.0)


def _read_among(
    made: _Batches, near: Float[Tensor, " batches"], seen: Float[Tensor, " entries"]
) -> tuple[Float[Tensor, " classes"], Float[Tensor, " classes"]]:
    """Shares by the batches of one concentration, and their expected squared errors."""
    weights = _FAR_WEIGHT + (1.0 - _FAR_WEIGHT) * near / near.max()
    shares = _fit(made, weights, _RIDGE)(seen[None])[0]
    squares = torch.zeros_like(made.shares)
    for pool in (0, 1):
        own, others = made.pools == pool, weights * (made.pools != pool)
        squares[own] = (_fit(made, others, _RIDGE)(made.means[own]) - made.shares[own]).square()
    return shares, (near @ squares) / near.sum()


class _Fit(NamedTuple):
    """Shares as a linear function of the gradient, whose entries count no further than was seen.

    An entry that all batches had at zero, nearly, says nothing where another batch has it at one.
    """

    least: Float[Tensor, " entries"]
    most: Float[Tensor, " entries"]
    middle: Float[Tensor, " entries"]
    mean: Float[Tensor, " classes"]
    slopes: Float[Tensor, "entries classes"]

    def __call__(self, means: Float[Tensor, "batches entries"]) -> Float[Tensor, "batches classes"]:
        return self.mean + (means.clamp(self.least, self.most) - self.middle) @ self.slopes


def _fit(made: _Batches, weights: Float[Tensor, " batches"], ridge: float) -> _Fit:
    """Weighted ridge regression of the shares on the gradients, each entry in its own units."""
    weights = weights / weights.sum()
    middle, mean = weights @ made.means, weights @ made.shares
    centered = made.means - middle
    units = (weights @ centered.square()).sqrt().clamp_min(1e-300)
    scaled = centered / units
    products = (scaled.T * weights) @ scaled
    products.diagonal().add_(ridge)
    across = (scaled.T * weights) @ (made.shares - mean)
    seen = made.means[weights > 0.0]
    least, most = seen.amin(dim=0), seen.amax(dim=0)
    return _Fit(least, most, middle, mean, torch.linalg.solve(products, across) / units[:, None])
