"""The best that an attacker of moments can reach: what a site can compute, and a server cannot."""

import math
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from labelleak.attacks.probe import class_means, contributions, principal_directions, probe
from labelleak.errors import InvalidObservation, MissingKnowledge
from labelleak.metrics import accuracy
from labelleak.observation import Observation
from labelleak.projection import project_to_counts

# Samples for each entry of a sample's vector, so that its covariance can be estimated.
_SAMPLES_PER_ENTRY = 3
# The most directions of the embedding along which the weight's gradient is looked at, as of the
# attack `likelihood`.
_MOST_DIRECTIONS = 4
# Most entries of all covariances together, 128 MB.
_MOST_ENTRIES = 2**24
_DRAWS = 200
# From here on the share is written as 100 %.
_ALL = 0.9995
# Weight of the equation that counts add up, relative to the others; relative ridge of a covariance.
_FIRMLY, _RIDGE = 1e4, 1e-9


@dataclass(frozen=True)
class Ceiling:
    """How much of the labels an attack can restore that knows no more than moments.

    Attributes:
        accuracy: Share of the labels that the best of these attacks gets right, the mean over draws
            of what it sees.
        spread: Standard deviation of that share from one batch to the next.
        entries: Numbers of the gradient that were taken into account.
        samples: Samples of the site that the moments are of.

    Examples:
        >>> Ceiling(0.71, 0.05, 9, 640).text
        'An attack that knows only moments (mean and spread of what samples of a class add to the \
gradient) gets 71.0% of the labels at best here (+- 5.0% from batch to batch); exact, which looks \
at single samples, can pass that.'
    """

    accuracy: float
    spread: float
    entries: int
    samples: int

    @property
    def text(self) -> str:
        """The ceiling in one sentence."""
        text = (
            "An attack that knows only moments (mean and spread of what samples of a class add to "
            f"the gradient) gets {self.accuracy:.1%} of the labels at best here (+- "
            f"{self.spread:.1%} from batch to batch)"
        )
        if self.accuracy > _ALL:
            return f"{text}."
        return f"{text}; exact, which looks at single samples, can pass that."

    def as_dict(self) -> dict[str, Any]:
        """The ceiling as plain data, with its sentence."""
        return {**asdict(self), "text": self.text}


class ClassMoments(NamedTuple):
    """Moments of what a sample of each class adds to the gradient, float64.

    Attributes:
        means: Shape (classes, entries).
        covariances: Shape (classes, entries, entries).
    """

    means: Float[Tensor, "classes entries"]
    covariances: Float[Tensor, "classes entries entries"]


def moment_ceiling(
    observation: Observation,
    true_counts: Int[Tensor, " classes"],
    inputs: Tensor,
    labels: Int[Tensor, " samples"],
) -> Ceiling:
    """The best accuracy of an attacker who knows the moments of every class.

    A sample adds its residual to the bias gradient, and the same times its embedding to that of the
    weight. Sums of many are about normal, so that the Fisher information of the counts follows from
    the classes' means and covariances (`fisher_information`). The attacker is granted both of them
    exactly, and how uneven the batch is, and knows that counts are not negative and add up. An
    attack has to estimate all of these.

    Args:
        observation: One step; brings the model and the loss.
        true_counts: The counts of the batch, int64, shape (classes,).
        inputs: Samples of the site, at best all that it has, shape (samples, ...).
        labels: Their classes, int64, shape (samples,).

    Returns:
        The ceiling.

    Raises:
        MissingKnowledge: The model is not there, a class of the batch has no sample, or there are
            too few samples for the covariances or too many classes.
        InvalidObservation: The update is of several steps, along which the moments change.

    Examples:
        >>> import labelleak
        >>> _ = torch.manual_seed(0)
        >>> model = torch.nn.Linear(6, 3)
        >>> inputs, labels = torch.rand(60, 6), torch.arange(60) % 3
        >>> seen = labelleak.capture(model, inputs[:12], labels[:12])
        >>> moment_ceiling(seen, torch.tensor([4, 4, 4]), inputs, labels).accuracy > 0.9
        True
    """
    if observation.local_steps > 1:
        raise InvalidObservation(
            "the update adds up several local steps: the ceiling is one of a single step"
        )
    known = torch.bincount(labels, minlength=observation.classes) > 0
    if bool((true_counts.cpu() > 0).logical_and(~known.cpu()).any()):
        raise MissingKnowledge("a class of the batch has no sample to compute its moments from")
    seen = probe(observation, inputs)
    labels = labels.to(seen.logits.device)
    residuals = observation.loss.residual(seen.logits, labels)
    classes = int(known.sum())
    estimable, kept = len(labels) // _SAMPLES_PER_ENTRY, math.isqrt(_MOST_ENTRIES // classes)
    of_one = max(classes - 1, 1)
    if kept < of_one:
        raise MissingKnowledge(f"{classes} classes are too many for their covariances to be kept")
    directions = min(min(estimable, kept) // of_one - 1, _MOST_DIRECTIONS)
    if directions < 0:
        raise MissingKnowledge(
            f"{len(labels)} samples are too few for the covariance of {classes} classes: give at "
            f"least {_SAMPLES_PER_ENTRY * (classes - 1)}"
        )
    vectors = sample_vectors(residuals[:, known.to(residuals.device)], seen.embeddings, directions)
    places = torch.cumsum(known, 0).to(labels.device)[labels] - 1
    moments = class_moments(vectors, places, classes)
    counts = true_counts.cpu()[known.cpu()].double().to(vectors.device)
    weights = observation.loss.divisor_weights(observation.classes, vectors)[known]
    information = fisher_information(moments, counts, weights)
    reached = _accuracies(information.cpu(), counts.cpu().long())
    return Ceiling(
        accuracy=float(reached.mean()),
        spread=float(reached.std()),
        entries=vectors.shape[1],
        samples=len(labels),
    )


def sample_vectors(
    residuals: Float[Tensor, "samples classes"],
    embeddings: Float[Tensor, "samples features"],
    directions: int,
) -> Float[Tensor, "samples entries"]:
    """What each sample adds to the gradient, along the embeddings' first principal directions.

    Args:
        residuals: Of the samples, float64, shape (samples, classes).
        embeddings: What arrives at the head, float64, shape (samples, features).
        directions: How many directions, at least 0; fewer where the embeddings have no more.

    Returns:
        Float64, shape (samples, (classes - 1) * (directions + 1)). The last class's entries follow
        from the others and are left out.
    """
    middle, axes, _ = principal_directions(embeddings, directions)
    return contributions(residuals, (embeddings - middle) @ axes.T)


def class_moments(
    vectors: Float[Tensor, "samples entries"], labels: Int[Tensor, " samples"], classes: int
) -> ClassMoments:
    """Mean and covariance of each class; of one sample, the covariance within all classes.

    Args:
        vectors: Float64, shape (samples, entries).
        labels: int64, shape (samples,); every class has a sample.
        classes: Number of classes.
    """
    means = class_means(vectors, labels, classes)
    centered = vectors - means[labels]
    freedom = max(len(labels) - classes, 1)
    within = centered.T @ centered / freedom
    covariances = [
        own.T @ own / (len(own) - 1) if len(own) > 1 else within
        for own in (centered[labels == label] for label in range(classes))
    ]
    return ClassMoments(means, torch.stack(covariances))


def fisher_information(
    moments: ClassMoments,
    counts: Float[Tensor, " classes"],
    weights: Float[Tensor, " classes"] | None = None,
) -> Float[Tensor, "classes classes"]:
    """Fisher information of the counts in a sum of so many samples of each class.

    The sum is normal with mean ``sum_c n_c m_c`` and covariance ``S = sum_c n_c V_c``:
    ``J_ab = m_a S^-1 m_b + tr(S^-1 V_a S^-1 V_b) / 2``.

    Args:
        moments: Of the classes.
        counts: Numbers of samples n, float64, shape (classes,).
        weights: What a sample of each class adds to the divisor of a mean loss; the sum is then
            known up to that divisor. None for a sum.

    Returns:
        Float64, shape (classes, classes), per sample squared.
    """
    means = moments.means
    if weights is not None:
        means = means - weights[:, None] * ((counts @ means) / (counts @ weights))
    covariance = torch.einsum("c,cij->ij", counts, moments.covariances)
    ridge = _RIDGE * float(covariance.diagonal().mean()) + 1e-300
    covariance = covariance + ridge * torch.eye(len(covariance)).to(covariance)
    factor = torch.linalg.cholesky(covariance)
    solved = torch.linalg.solve_triangular(factor, means.T, upper=False)
    left = torch.linalg.solve_triangular(factor, moments.covariances, upper=False)
    whitened = torch.linalg.solve_triangular(factor, left.mT, upper=False).flatten(1)
    information: Tensor = solved.T @ solved + whitened @ whitened.T / 2
    return information


def _accuracies(
    information: Float[Tensor, "classes classes"], counts: Int[Tensor, " classes"]
) -> Float[Tensor, " draws"]:
    """Accuracies of the most probable counts, for draws of what the gradient tells of them.

    Non-negative least squares with the sum and the prior as further equations: a normal prior about
    even counts, as wide as the true ones are uneven.
    """
    from scipy.optimize import nnls

    total, classes = int(counts.sum()), counts.numel()
    even = total / classes
    width = max(float((counts - even).square().mean().sqrt()), math.sqrt(even / classes))
    values, vectors = torch.linalg.eigh(information)
    root = values.clamp_min(0.0).sqrt()[:, None] * vectors.T
    firmly = _FIRMLY * max(1.0 / width, float(values.max().clamp_min(0.0).sqrt()))
    prior = torch.eye(classes, dtype=torch.float64) / width
    matrix = torch.cat([root, prior, torch.full((1, classes), firmly, dtype=torch.float64)])
    generator = torch.Generator().manual_seed(0)
    reached = []
    for _ in range(_DRAWS if classes <= 100 else _DRAWS // 10):
        noise = torch.randn(classes, dtype=torch.float64, generator=generator)
        right = torch.cat([root @ counts.double() + noise, prior @ torch.full_like(noise, even)])
        right = torch.cat([right, right.new_tensor([firmly * total])])
        found, _ = nnls(matrix.numpy(), right.numpy())
        restored = project_to_counts(torch.from_numpy(found), total)
        reached.append(accuracy(restored, counts))
    return torch.tensor(reached, dtype=torch.float64)
