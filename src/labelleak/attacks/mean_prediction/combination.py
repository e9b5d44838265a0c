"""The mean prediction from two estimates of the mean logits: of the gradient and of the model."""

from typing import NamedTuple

import torch
from jaxtyping import Float
from scipy.special import fdtri
from torch import Tensor

from labelleak.attacks.mean_prediction.mean_logits import MeanLogits, second_order
from labelleak.attacks.mean_prediction.raw_counts import MeanPrediction
from labelleak.attacks.mean_prediction.scatter import FEW_CLASSES
from labelleak.observation import Observation

_REPLICATES = 128
# Model discrepancy: variance of the difference between the mean logits of dummies and of real
# inputs, relative to that of single inputs.
_DISCREPANCY = 0.01
# The same where rows are too few to contradict the dummies, whose assumptions nothing then tests.
_UNTESTED = 1.0
# Most doublings of the discrepancy where the two estimates contradict each other.
_DOUBLINGS = 23
# Ridge of the covariance of logits, relative to their mean variance.
_RIDGE = 1e-4
# What a matrix that is solved gets at least, relative to its own mean variance.
_SINGULAR = 1e-9
# Level of the F test at which two estimates contradict each other.
_CONTRADICTION = 0.99


class Seen(NamedTuple):
    """What the model makes of dummy or auxiliary inputs, float64.

    Attributes:
        logits: Mean over all inputs, shape (classes,).
        log_probabilities: Logarithm of the mean prediction, shape (classes,).
        covariance: Of the logits of single inputs, shape (classes, classes).
        spread: Deviations of the mean logits for inputs of other spectra or power, shape
            (classes, alternatives), scaled so that the sum of squares is a variance.
        shared: Deviations for other means of the inputs, scaled likewise. These errors come from
            the same samples as those of the pooled embedding.
        inputs: Number of independent inputs.
    """

    logits: Float[Tensor, " classes"]
    log_probabilities: Float[Tensor, " classes"]
    covariance: Float[Tensor, "classes classes"]
    spread: Float[Tensor, "classes _"]
    shared: Float[Tensor, "classes _"]
    inputs: int


def summary(
    logits: Float[Tensor, "inputs classes"],
    spread: Float[Tensor, "classes _"],
    shared: Float[Tensor, "classes _"],
    inputs: int,
) -> Seen:
    """Summarize the logits of all inputs; the other arguments are those of `Seen`."""
    centered = logits - logits.mean(dim=0)
    return Seen(
        logits.mean(dim=0),
        torch.softmax(logits, dim=1).mean(dim=0).log(),
        centered.T @ centered / len(logits),
        spread,
        shared,
        inputs,
    )


def combined(observation: Observation, pooled: MeanLogits, seen: Seen) -> MeanPrediction:
    """Both estimates of the mean logits, weighted by their variances (a Kalman update).

    The covariance of the pooled logits' error is assumed to be proportional to that of single
    inputs, since the residuals of a few rows show its size but not its shape. The error that both
    estimates share, from regressions over the same samples, does not enter the weights and is
    added at the end.
    """
    classes = observation.classes
    # Softmax ignores a constant: logits are made to sum to zero.
    covariance, spread, shared = (
        _centered(seen.covariance, both=True), _centered(seen.spread), _centered(seen.shared)
    )  # fmt: skip
    power = max(float(covariance.trace()), 1e-30)
    covariance = covariance + _RIDGE * power / classes * torch.eye(classes).to(covariance)
    difference = _centered((pooled.logits - seen.logits)[:, None])
    errors = _centered(pooled.replicates - pooled.logits[:, None])
    noise = float(errors.square().sum(dim=0).mean()) / power * covariance
    own = 1.0 / seen.inputs + 1.0 / (observation.num_instances or seen.inputs)
    tested = classes > FEW_CLASSES or observation.auxiliary is not None
    prior = spread @ spread.T + (own + (_DISCREPANCY if tested else _UNTESTED)) * covariance
    wider = _discrepancy(difference, prior + shared @ shared.T + noise, covariance)
    prior, trust = prior + wider * covariance, 1.0 / (1.0 + wider)
    gain = _solved(prior + noise, prior).T
    logits = seen.logits + trust * (seen.log_probabilities - seen.logits)
    logits = logits + (gain @ difference)[:, 0]
    # Where dummies are not trusted, the rows show the scatter of single samples.
    shift, size = second_order(pooled)
    shift, size = (1.0 - trust) * shift, (1.0 - trust) * size

    left = prior - gain @ prior
    values, vectors = torch.linalg.eigh((left + left.T) / 2)
    root = vectors * values.clamp_min(0.0).sqrt()
    generator = torch.Generator().manual_seed(2)

    def normal(rows: int) -> Tensor:
        return torch.randn(rows, _REPLICATES, generator=generator, dtype=torch.float64).to(root)

    scatter = root @ normal(classes) + shared @ normal(shared.shape[1])
    errors = shift[:, None] + size[:, None] * normal(classes)
    return MeanPrediction(
        torch.softmax(logits, dim=0) + shift,
        torch.softmax(logits[:, None] + scatter, dim=0) + errors,
        pooled.bias_gradient,
        noise=pooled.noise,
        has_errors=not pooled.has_learned,
    )


def _discrepancy(
    difference: Float[Tensor, "classes 1"],
    explained: Float[Tensor, "classes classes"],
    covariance: Float[Tensor, "classes classes"],
) -> float:
    """Additional model discrepancy of the dummies, in units of a covariance; 0 without conflict.

    Dummies are not images. If the pooled estimate contradicts them, their assumed error grows until
    both estimates agree within their errors.

    Args:
        difference: Of the two estimates.
        explained: Covariance of the difference that the estimates' own errors explain.
        covariance: Of the logits of single inputs.
    """
    freedom = len(difference) - 1
    # The size of the pooled error is itself estimated, from as many rows as there are classes.
    if _surplus(difference, explained) <= float(fdtri(freedom, freedom, _CONTRADICTION)):
        return 0.0
    for doublings in range(1, _DOUBLINGS + 1):
        wider = _DISCREPANCY * 2.0**doublings
        if _surplus(difference, explained + wider * covariance) <= 1.0:
            break
    return wider


def _surplus(
    difference: Float[Tensor, "classes 1"], covariance: Float[Tensor, "classes classes"]
) -> float:
    """Squared Mahalanobis distance over its degrees of freedom: one on average."""
    solved = _solved(covariance, difference)
    return float((difference * solved).sum()) / (len(difference) - 1)


def _solved(
    covariance: Float[Tensor, "classes classes"], right: Float[Tensor, "classes columns"]
) -> Float[Tensor, "classes columns"]:
    """The solution for a covariance of logits that sum to zero, which is singular but for that."""
    least = _SINGULAR * covariance.trace() / len(covariance)
    regular = covariance + least * torch.eye(len(covariance)).to(covariance)
    solution: Tensor = torch.linalg.solve(regular, right)
    return solution


def _centered(matrix: Tensor, *, both: bool = False) -> Tensor:
    matrix = matrix - matrix.mean(dim=0)
    return matrix - matrix.mean(dim=1, keepdim=True) if both else matrix
