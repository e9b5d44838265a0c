"""The most probable label counts, given how auxiliary samples' residuals depend on their labels."""

from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from labelleak.attacks.multi_label.label_counts import conclude_labels
from labelleak.attacks.multi_label.label_logits import bias_of_labels, divisor_of_one
from labelleak.attacks.probe import probe
from labelleak.errors import MissingKnowledge
from labelleak.observation import Auxiliary, Observation
from labelleak.restoration import Restoration

# Auxiliary samples for each entry of a sample's vector, and the most directions of the embedding.
_SAMPLES_PER_ENTRY, _MOST_DIRECTIONS = 25, 4
# Standard deviations of a client's prevalences about the auxiliary ones, to weigh.
_APART = (0.01, 0.03, 0.1, 0.3)
# Rounds of weighing the auxiliary samples as the client's are, and steps of Newton's method.
_ROUNDS, _STEPS = 4, 25
_RIDGE = 1e-6
# How near a prevalence may come to 0 or 1 where samples are weighed, in samples.
_NEAREST = 0.5


class _Moments(NamedTuple):
    """Moments of samples' vectors v at some prevalences of the labels y.

    Attributes:
        mean: Shape (entries,).
        slope: By the prevalences, shape (entries, labels).
        covariance: Of v with the part that y explains taken off, shape (entries, entries).
        of_labels: Covariance of y, shape (labels, labels).
        samples: Effective number of auxiliary samples.
    """

    mean: Float[Tensor, " entries"]
    slope: Float[Tensor, "entries labels"]
    covariance: Float[Tensor, "entries entries"]
    of_labels: Float[Tensor, "labels labels"]
    samples: float


def likely_labels(observation: Observation, directions: int | None = None) -> Restoration:
    """Find the label counts under which the update is most probable.

    A sample's vector is its residual, and the same times its embedding along the auxiliary
    embeddings' first principal directions. Auxiliary samples are weighed until labels are as
    frequent among them as in the batch (exponential tilting). The mean of their vectors, how it
    changes with the frequencies and how single vectors scatter about that give a normal likelihood
    of the counts. Prevalences are normal about the auxiliary ones; how far they lie from these is
    weighed by the evidence.

    Args:
        observation: Needs the bias and its gradient, the batch size, the model and auxiliary data
            with zeros and ones for every label.
        directions: Number of principal directions; None for as many as the samples suffice for.

    Returns:
        Counts, shape (labels,), with standard errors.
    """
    auxiliary, total = _labeled(observation), observation.num_instances
    if total is None:
        raise MissingKnowledge("the batch size is missing (batch_size=K, --batch-size K)")
    labels = auxiliary.labels.to(observation.head.weight.device).double()
    number, count = labels.shape
    if directions is None:
        directions = min(number // (_SAMPLES_PER_ENTRY * count) - 1, _MOST_DIRECTIONS)
    vectors, seen = _vectors(observation, auxiliary, labels, max(directions, 0))
    start = labels.mean(dim=0)
    prevalence = start
    for _ in range(_ROUNDS):
        inside = prevalence.clamp(_NEAREST / total, 1.0 - _NEAREST / total)
        moments = _moments(vectors, labels, inside)
        mean, covariance = _posterior(moments, seen, start, inside, total)
        prevalence = mean
    raw = total * mean
    errors = total * covariance.diagonal().clamp_min(0.0).sqrt()
    return conclude_labels(observation, raw, errors)


def _labeled(observation: Observation) -> Auxiliary:
    """The auxiliary data, with samples of every label and without it.

    Raises:
        MissingKnowledge: There are none.
    """
    auxiliary = observation.auxiliary
    if auxiliary is None:
        raise MissingKnowledge("auxiliary data is missing (auxiliary=Auxiliary(inputs, labels))")
    times = auxiliary.labels.sum(dim=0)
    lone = ((times < 2) | (times > len(auxiliary.labels) - 2)).nonzero()[:, 0].tolist()
    if lone:
        raise MissingKnowledge(
            f"label {lone[0]} needs two auxiliary samples that have it, and two that have not"
        )
    return auxiliary


def _vectors(
    observation: Observation,
    auxiliary: Auxiliary,
    labels: Float[Tensor, "samples labels"],
    directions: int,
) -> tuple[Float[Tensor, "samples entries"], Float[Tensor, " entries"]]:
    """Every auxiliary sample's vector, and the mean vector of the update."""
    found = probe(observation, auxiliary.inputs)
    residuals = observation.loss.residual(found.logits, labels)
    middle = found.embeddings.mean(dim=0)
    _, sizes, axes = torch.linalg.svd(found.embeddings - middle, full_matrices=False)
    axes = axes[:directions].T / (sizes[:directions] / len(labels) ** 0.5).clamp_min(1e-12)
    places = torch.cat(
        [torch.ones_like(residuals[:, :1]), (found.embeddings - middle) @ axes], dim=1
    )
    bias = bias_of_labels(observation)
    weight = (observation.gradient.weight.double() - bias[:, None] * middle) @ axes
    seen = divisor_of_one(observation) * torch.cat([bias[:, None], weight], dim=1)
    return (residuals[:, :, None] * places[:, None, :]).flatten(1), seen.flatten()


def _moments(
    vectors: Float[Tensor, "samples entries"],
    labels: Float[Tensor, "samples labels"],
    prevalence: Float[Tensor, " labels"],
) -> _Moments:
    weights = _tilted(labels, prevalence)
    mean, middle = weights @ vectors, weights @ labels
    around, beside = vectors - mean, labels - middle
    of_labels = beside.T @ (weights[:, None] * beside)
    ridge = _RIDGE * torch.eye(len(of_labels)).to(of_labels)
    slope = torch.linalg.solve(of_labels + ridge, beside.T @ (weights[:, None] * around)).T
    rest = around - beside @ slope.T
    samples = 1.0 / float(weights.square().sum())
    free = max(samples - labels.shape[1] - 1, 1.0) / samples
    covariance = rest.T @ (weights[:, None] * rest) / free
    # The mean at the prevalences asked for, where weights do not reach them.
    return _Moments(mean + slope @ (prevalence - middle), slope, covariance, of_labels, samples)


def _tilted(
    labels: Float[Tensor, "samples labels"], prevalence: Float[Tensor, " labels"]
) -> Float[Tensor, " samples"]:
    """Weights of samples, as even as can be, under which labels have these prevalences."""
    place = torch.zeros_like(prevalence)
    ridge = 1e-3 * torch.eye(len(place)).to(place)
    for _ in range(_STEPS):
        weights = torch.softmax(labels @ place, dim=0)
        middle = weights @ labels
        beside = labels - middle
        curvature = beside.T @ (weights[:, None] * beside) + ridge
        step = torch.linalg.solve(curvature, middle + 1e-3 * place - prevalence)
        place = place - step / max(1.0, float(step.abs().max()))
        if float(step.abs().max()) < 1e-6:
            break
    return torch.softmax(labels @ place, dim=0)


def _posterior(
    moments: _Moments,
    seen: Float[Tensor, " entries"],
    start: Float[Tensor, " labels"],
    about: Float[Tensor, " labels"],
    total: int,
) -> tuple[Float[Tensor, " labels"], Float[Tensor, "labels labels"]]:
    """Mean and covariance of the batch's prevalences, over all distances that are weighed."""
    labels = len(start)
    eye = torch.eye(labels).to(start)
    noise = moments.covariance * (1.0 / total + 1.0 / moments.samples)
    noise = noise + _RIDGE * float(noise.diagonal().mean()) * torch.eye(len(noise)).to(noise)
    # What the vectors say of the prevalences: seen = mean + slope (x - about).
    constant = seen - moments.mean + moments.slope @ (about - start)
    found, evidence = [], []
    for apart in _APART:
        prior = moments.of_labels / total + apart**2 * eye
        marginal = noise + moments.slope @ prior @ moments.slope.T
        factor = torch.linalg.cholesky((marginal + marginal.T) / 2)
        gain = torch.cholesky_solve(moments.slope @ prior, factor).T
        mean = start + gain @ constant
        found.append((mean, prior - gain @ moments.slope @ prior))
        distance = torch.cholesky_solve(constant[:, None], factor)[:, 0] @ constant
        evidence.append(-0.5 * distance - factor.diagonal().log().sum())
    weights = torch.softmax(torch.stack(evidence), dim=0)
    mean = sum((w * m for w, (m, _) in zip(weights, found, strict=True)), torch.zeros_like(start))
    spread = torch.zeros_like(eye)
    for weight, (own, covariance) in zip(weights, found, strict=True):
        spread = spread + weight * (covariance + torch.outer(own - mean, own - mean))
    return mean, spread
