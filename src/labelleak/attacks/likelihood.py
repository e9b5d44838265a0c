"""Likelihood: the most probable counts, given how auxiliary samples of every class scatter."""

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from labelleak.attacks.conclusion import conclude
from labelleak.attacks.evidence import instances
from labelleak.attacks.inputs import auxiliary_of
from labelleak.attacks.multi_label.label_likelihood import likely_labels
from labelleak.attacks.probe import class_means
from labelleak.attacks.registry import Gives, Need, register
from labelleak.attacks.sample_vectors import sample_vectors
from labelleak.errors import MissingKnowledge
from labelleak.loss import MULTI_LABEL
from labelleak.observation import Observation
from labelleak.restoration import Restoration

# Auxiliary samples for each entry of a covariance's diagonal, and the most directions of the
# embedding: chosen on seeds and networks other than those of benchmarks/local_steps.py.
_SAMPLES_PER_ENTRY, _MOST_DIRECTIONS = 150, 4
# Concentrations of the shares' Dirichlet prior: from nearly balanced to one class alone.
_CONCENTRATIONS = (100.0, 30.0, 10.0, 3.0, 1.0, 0.3, 0.1)
# Most iterations of L-BFGS for one concentration.
_ITERATIONS = 100
# Ridge, relative to a sample's second moments: keeps the covariance regular.
_RIDGE = 1e-6
# Most entries of all covariances together: 128 MB, as for 256 classes without directions.
_MOST_ENTRIES = 2**24


@register(
    "likelihood",
    title="Likelihood of auxiliary gradients (labelleak's own)",
    needs=(Need.WEIGHT, Need.BIAS, Need.BATCH_SIZE, Need.MODEL, Need.AUXILIARY),
    uses=(Need.AFTER,),
    gives=(Gives.COUNTS,),
    assumes="auxiliary data of the client's kind, that the weights moved evenly in the "
    "local steps, and enough samples for their sum to be normally distributed",
    reference="labelleak; the expected mistakes are those of RLU (Chen and Vikalo, ICML 2024)",
    models_steps=True,
    losses=("cross_entropy", "focal", "custom", *MULTI_LABEL),
)
def likelihood(observation: Observation, *, directions: int | None = None) -> Restoration:
    """Find the counts under which the update is most probable.

    A client's N samples add up to N times its mean gradient. Samples of class c add a vector of
    mean m_c and covariance V_c each, so that the sum is about normal with mean ``sum_c n_c m_c``
    and covariance ``sum_c n_c V_c``; both moments are those of auxiliary samples. The covariance
    tells how far each equation can be trusted. Errors of the auxiliary means add ``n_c^2 / A_c
    V_c`` for A_c auxiliary samples. Shares have a symmetric Dirichlet prior. For each of several
    concentrations the most probable softmax of real numbers is found by L-BFGS, and these are
    averaged, weighted by how probable the gradient is for each.

    A sample's vector is its entry ``p - y`` of the bias gradient, and the same times its embedding
    along the auxiliary embeddings' first principal directions. For several steps it is averaged
    over the way from the server's model to the client's.

    Args:
        observation: Needs the bias and its gradient, the batch size, the model and auxiliary data
            with every class, better 500 samples of each than 100; for several steps it uses the
            client's model. Label smoothing and class weights are taken into account.
        directions: Number of principal directions; None for as many as the auxiliary samples
            suffice for, at most 4.

    Returns:
        Real-valued and integer counts.

    Raises:
        MissingKnowledge: A class has fewer than two auxiliary samples, or there are too many
            classes for their covariances to be kept.
        ValueError: `directions` is negative or more than the embedding has.
    """
    if observation.loss.is_multi_label:
        return likely_labels(observation, directions)
    auxiliary, total = auxiliary_of(observation), instances(observation)
    classes, features = observation.classes, observation.head.features
    if directions is None:
        affordable = len(auxiliary.labels) // (_SAMPLES_PER_ENTRY * classes) - 1
        directions = max(0, min(affordable, _MOST_DIRECTIONS, features))
    if not 0 <= directions <= features:
        raise ValueError(f"{directions} directions: there can be 0 to {features}")
    if int(torch.bincount(auxiliary.labels, minlength=classes).min()) < 2:
        raise MissingKnowledge("attack 'likelihood' needs two auxiliary samples of every class")
    if classes * ((classes - 1) * (directions + 1)) ** 2 > _MOST_ENTRIES:
        raise MissingKnowledge(
            f"attack 'likelihood' keeps a covariance for every class: {classes} classes are too "
            "many (use rlu)"
        )
    moments, seen = _moments(observation, directions)
    raw = total * probable_shares(moments, seen, total)
    return conclude(observation, raw, total)


class Moments(NamedTuple):
    """Moments of what one sample of each class adds to the gradient, float64.

    Attributes:
        means: Shape (classes, entries).
        covariances: Shape (classes, entries, entries).
        samples: How many samples of each class they are from, shape (classes,).
        weights: What a sample adds to the number that a mean loss divides by, shape (classes,).
    """

    means: Float[Tensor, "classes entries"]
    covariances: Float[Tensor, "classes entries entries"]
    samples: Float[Tensor, " classes"]
    weights: Float[Tensor, " classes"]


def probable_shares(
    moments: Moments,
    seen: Float[Tensor, " entries"],
    total: int,
    concentrations: Sequence[float] = _CONCENTRATIONS,
) -> Float[Tensor, " classes"]:
    """Shares of the classes under which a mean of so many samples' vectors is probable.

    Args:
        moments: Of the classes.
        seen: The mean, for a mean loss with class weights over the sum of weights.
        total: Number of samples.
        concentrations: Of the Dirichlet priors to weigh, positive.

    Returns:
        Positive, summing to one, shape (classes,): the most probable ones for each concentration of
        the prior, weighted by how probable the gradient is for it (Laplace's approximation).
    """
    classes, entries = moments.means.shape
    offsets = moments.means - moments.weights[:, None] * seen
    covariances = moments.covariances.flatten(1)
    variances = moments.covariances.diagonal(dim1=1, dim2=2)
    ridge = _RIDGE * (variances + moments.means.square()).mean(dim=0)
    # Nor may it vanish where the network is certain of all auxiliary samples.
    ridge = torch.diag(total * ridge.clamp_min(_RIDGE * float(ridge.max()) + 1e-30))

    def energy(concentration: float, logits: Tensor) -> Tensor:
        """Less the logarithm of the probability of shares and gradient, up to a constant."""
        counts = total * torch.softmax(logits, dim=0)
        scatter = (counts + counts.square() / moments.samples) @ covariances
        factor = torch.linalg.cholesky(scatter.reshape(entries, entries) + ridge)
        distance = torch.linalg.solve_triangular(factor, (counts @ offsets)[:, None], upper=False)
        fit = distance.square().sum() / 2 + factor.diagonal().log().sum()
        normalizer = math.lgamma(classes * concentration) - classes * math.lgamma(concentration)
        prior = concentration * torch.log_softmax(logits, dim=0).sum() + normalizer
        less_probable: Tensor = fit - prior
        return less_probable

    logits = torch.zeros(classes, dtype=seen.dtype, device=seen.device)
    found, evidence = [], []
    for concentration in concentrations:
        given = partial(energy, concentration)
        logits = _minimum(given, logits)
        hessian = torch.autograd.functional.hessian(given, logits)  # type: ignore[no-untyped-call]
        # Shifting all logits changes nothing: that direction is left out.
        curvature = torch.linalg.eigvalsh(hessian + 1.0 / classes)
        found.append(torch.softmax(logits, dim=0))
        evidence.append(-given(logits) - curvature.clamp_min(_RIDGE).log().sum() / 2)
    return torch.softmax(torch.stack(evidence), dim=0) @ torch.stack(found)


def _minimum(function: Callable[[Tensor], Tensor], start: Tensor) -> Tensor:
    """Where a function of a vector is least, by L-BFGS."""
    place = start.clone().requires_grad_()
    optimizer = torch.optim.LBFGS(
        [place], max_iter=_ITERATIONS, history_size=20, line_search_fn="strong_wolfe"
    )

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = function(place)
        loss.backward()  # type: ignore[no-untyped-call]
        return loss

    with torch.enable_grad():
        optimizer.step(closure)  # type: ignore[no-untyped-call]
    return place.detach()


def _moments(
    observation: Observation, directions: int
) -> tuple[Moments, Float[Tensor, " entries"]]:
    """Moments of the auxiliary samples' vectors, and the same vector of the update."""
    vectors, labels, seen, weights = sample_vectors(observation, directions)
    means = class_means(vectors, labels, observation.classes)
    centered = vectors - means[labels]
    covariances = torch.stack(
        [centered[labels == label].T.cov(correction=1) for label in range(observation.classes)]
    ).reshape(observation.classes, vectors.shape[1], -1)
    samples = torch.bincount(labels, minlength=observation.classes).double()
    return Moments(means, covariances, samples, weights), seen
