"""RLU: counts by least squares on the mistakes that the network makes on auxiliary data."""

import numpy as np
import torch
from jaxtyping import Float, Int
from scipy.optimize import nnls
from torch import Tensor

from labelleak.attacks.conclusion import conclude
from labelleak.attacks.evidence import (
    bias_gradient,
    mean_divisor,
)
from labelleak.attacks.inputs import auxiliary_of
from labelleak.attacks.probe import class_means, probe
from labelleak.attacks.registry import Gives, Need, register
from labelleak.errors import MissingKnowledge
from labelleak.observation import Observation
from labelleak.restoration import Restoration


@register(
    "rlu",
    title="RLU (recovering labels from local updates)",
    needs=(Need.WEIGHT, Need.BIAS, Need.MODEL, Need.AUXILIARY),
    uses=(Need.LEARNING_RATES, Need.AFTER),
    gives=(Gives.COUNTS, Gives.PROBABILITIES),
    assumes="auxiliary data of the client's kind, and that local steps move the logits of all "
    "samples alike",
    reference="Chen and Vikalo, ICML 2024 (Recovering Labels from Local Updates in Federated "
    "Learning, arXiv:2405.00955)",
    models_steps=True,
    losses=("cross_entropy", "focal"),
)
def rlu(observation: Observation, *, searches: int = 5) -> Restoration:
    """Find the mixture of classes of which the bias gradient is the expected mistake.

    Let row n of S be the mean prediction on auxiliary samples of class n. A client with shares z of
    the classes has the expected bias gradient ``sum_n z_n (S_n - y_n)``; z is its least-squares
    solution among all shares.

    For several local steps S changes on the way. The server simulates it: with shares z the logits
    of all samples move by ``-eta (|e|^2 + 1) g`` in a step, where g is the expected bias gradient
    and e the mean embedding ``dW^T db / |db|^2``; S is averaged over the steps. Where the server
    has the client's model, it knows where the mean logits on the auxiliary data went: up to
    `searches` times the class that the simulation puts too high most gives one instance to the one
    that it puts too low most.

    Args:
        observation: Needs the bias and its gradient, the model and auxiliary data with every
            class; for several steps also their learning rates. Without a batch size, proportions
            only. Label smoothing and class weights are taken into account.
        searches: How often the simulated shares are corrected by the client's model; 0 for never.

    Returns:
        Real-valued and integer counts, and the (mean) predictions S.

    Raises:
        MissingKnowledge: A class has no auxiliary sample, or the learning rates of several steps
            are not known.
        ValueError: `searches` is negative.
    """
    if searches < 0:
        raise ValueError(f"{searches} searches: there cannot be less than none")
    auxiliary, seen = auxiliary_of(observation), bias_gradient(observation)
    logits = probe(observation, auxiliary.inputs).logits
    labels = auxiliary.labels.to(logits.device)
    predictions = class_means(torch.softmax(logits, dim=1), labels, observation.classes)
    shares = solve(observation, predictions, seen)
    if observation.local_steps > 1:
        simulation = _Simulation(observation, logits, labels)
        end = None
        if searches and observation.after is not None:
            end = probe(observation, auxiliary.inputs, observation.after).logits.mean(dim=0)
            end = end - logits.mean(dim=0)
        predictions = simulation.predictions(shares, end, searches)
        shares = solve(observation, predictions, seen)
    total = observation.num_instances
    found = conclude(observation, shares * (total or 1), total)
    return Restoration(**{**vars(found), "class_probabilities": predictions})


def solve(
    observation: Observation,
    predictions: Float[Tensor, "classes classes"],
    gradient: Float[Tensor, " classes"],
) -> Float[Tensor, " classes"]:
    """The shares whose expected bias gradient is nearest to the one seen.

    Args:
        observation: Says what the loss is.
        predictions: Mean prediction for samples of each class, row = true class.
        gradient: Bias gradient, of a mean loss or of a sum divided by the batch size.

    Returns:
        Shares, non-negative, summing to one, shape (classes,).
    """
    # The loss divides by the sum of the weights, so solve for each class's part of that sum.
    weights = observation.loss.divisor_weights(observation.classes, gradient)
    expected = expected_mistakes(observation, predictions) / weights[:, None]
    parts = least_squares_on_simplex(expected.T, gradient) / weights
    return parts / parts.sum()


def expected_mistakes(
    observation: Observation, predictions: Float[Tensor, "classes classes"]
) -> Float[Tensor, "classes classes"]:
    """Derivative of a sample's loss by its logits, for the mean prediction of its class.

    Row = true class. For the plain loss it is ``prediction - one-hot``.
    """
    classes = torch.arange(observation.classes, device=predictions.device)
    return observation.loss.mistakes(predictions, classes)


def least_squares_on_simplex(
    matrix: Float[Tensor, "equations unknowns"], right: Float[Tensor, " equations"]
) -> Float[Tensor, " unknowns"]:
    """The x >= 0 with sum 1 for which ``matrix @ x`` is nearest to the right-hand side.

    With sum 1 the right-hand side may be put into the columns: what is left is the point of a
    convex hull that is nearest to the origin, which non-negative least squares yields (Lawson and
    Hanson 1974, chapter 23.4): for u of ``min |M u|^2 + (1 - sum u)^2`` the answer is u / sum u.

    Args:
        matrix: float64.
        right: float64.

    Returns:
        float64, on the device of the right-hand side.
    """
    columns = (matrix - right[:, None]).cpu().numpy()
    scale = np.abs(columns).max() or 1.0
    system = np.vstack([columns / scale, np.ones(columns.shape[1])])
    unit = np.zeros(len(system))
    unit[-1] = 1.0
    solution, _ = nnls(system, unit, maxiter=30 * columns.shape[1])
    return torch.from_numpy(solution / solution.sum()).to(right)


class _Simulation:
    """Local steps as they move the logits of the auxiliary samples."""

    def __init__(
        self,
        observation: Observation,
        logits: Float[Tensor, "samples classes"],
        labels: Int[Tensor, " samples"],
    ) -> None:
        if observation.training.step_sizes is None:
            raise MissingKnowledge(
                f"attack 'rlu' on several steps needs {Need.LEARNING_RATES.value}"
            )
        self._observation, self._logits, self._labels = observation, logits, labels
        bias = bias_gradient(observation) * mean_divisor(observation)
        embedding = observation.gradient.weight.double().T @ bias / bias.square().sum()
        self._reach = (float(embedding.square().sum()) + 1.0) * mean_divisor(observation)

    def predictions(
        self,
        shares: Float[Tensor, " classes"],
        end: Float[Tensor, " classes"] | None,
        searches: int,
    ) -> Float[Tensor, "classes classes"]:
        """Mean predictions of every class, averaged over the steps.

        Args:
            shares: Shares of the classes to begin with.
            end: How far the mean logits moved in all, as far as it is known.
            searches: How often the shares are corrected by it.
        """
        mean, drift = self._run(shares)
        if end is None:
            return mean
        unit = 1.0 / (self._observation.num_instances or 100)
        for _ in range(searches):
            excess = drift - end
            giver = torch.where(shares >= unit, excess, -torch.inf).argmax()
            taker = excess.argmin()
            if not excess[giver] > 0 > excess[taker]:
                break
            shares = shares.clone()
            shares[giver] -= unit
            shares[taker] += unit
            mean, drift = self._run(shares)
        return mean

    def _run(
        self, shares: Float[Tensor, " classes"]
    ) -> tuple[Float[Tensor, "classes classes"], Float[Tensor, " classes"]]:
        """Predictions averaged over the steps, and how far the mean logits moved in all of them."""
        classes = self._observation.classes
        rates = self._observation.training.step_sizes or ()
        parts = (
            shares
            / (
                shares * self._observation.loss.divisor_weights(self._observation.classes, shares)
            ).sum()
        )
        drift, total = (
            torch.zeros_like(shares),
            torch.zeros(classes, classes, dtype=shares.dtype, device=shares.device),
        )
        for rate in rates:
            now = torch.softmax(self._logits + drift, dim=1)
            predictions = class_means(now, self._labels, classes)
            total += rate * predictions
            drift = drift - rate * self._reach * (
                parts @ expected_mistakes(self._observation, predictions)
            )
        return total / sum(rates), drift
