"""iLRG: the number of instances of every class by one linear system."""

from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor

from labelleak.attacks.conclusion import are_integral, conclude
from labelleak.attacks.cost import check_room, check_time
from labelleak.attacks.evidence import bias_gradient, mean_divisor
from labelleak.attacks.presence import believable
from labelleak.attacks.registry import Gives, Need, register
from labelleak.numerics import (
    minimum_norm_least_squares,
    product_of_low_rank,
    solve_square,
)
from labelleak.observation import Observation
from labelleak.restoration import Flag, Restoration

# The quotient of a class whose bias gradient is (nearly) zero has no meaning; the published
# implementation bounds it at ten orders of magnitude, and so does this one.
_QUOTIENT_BOUND = 1e10
_ILL_CONDITIONED = 1e6


@register(
    "ilrg",
    title="iLRG (instance-wise label restoration)",
    needs=(Need.WEIGHT, Need.BIAS),
    gives=(Gives.COUNTS, Gives.EMBEDDINGS, Gives.PROBABILITIES),
    assumes="samples of one class have nearly the same embedding and prediction; best untrained",
    reference="Ma et al., ICLR 2023 (Instance-wise Batch Label Restoration via Gradients in "
    "Federated Learning), Algorithm 1",
    losses=("cross_entropy", "focal"),
    pixels=True,
)
def ilrg(observation: Observation, *, time_limit: float | None = None) -> Restoration:
    """Restore the number of instances of every class (Ma et al., ICLR 2023, Algorithm 1).

    The quotient of weight and bias gradient of class i is taken for its mean embedding (equation
    7), the head turns it into the mean prediction p_i (equation 8), and the numbers of instances n
    solve ``sum_j n_j = K`` and ``sum_j n_j p_j[i] - n_i = K db_i`` for every class i in the
    least-squares sense (equation 10). Time O(C^2 m + C^3), memory O(C m + C^2), float64.

    Where the observation names the present classes, the other unknowns and their equations are
    left out, as in the paper's variant, and no other class is given a count. Label smoothing and
    class weights, when the observation holds them, enter the equations exactly.

    Args:
        observation: Needs the bias and its gradient. Without a batch size, proportions only.
        time_limit: Seconds; more classes than can be solved for in that time are refused. None for
            any time.

    Returns:
        ``raw``, ``rounded`` (the paper's: clipped at zero and K, rounded), ``counts`` (projected to
        the sum K), class embeddings and class probabilities.

    Raises:
        MissingKnowledge: A summed loss and no batch size: the gradient has no scale. Or more
            classes than there is memory or time for.
    """
    check_room(observation, "ilrg")
    if time_limit is not None:
        check_time(observation, "ilrg", time_limit)
    right = bias_gradient(observation)
    embeddings, logits = _embeddings_and_logits(observation, right)
    probabilities = torch.softmax(logits, dim=1)

    raw, flags = _solve(observation, _System.of(observation, probabilities), right)
    known, total = observation.present_classes, observation.num_instances
    if total is not None and not are_integral(raw if known is None else raw[known]):
        flags = (*flags, Flag.NOT_INTEGRAL)
    errors = None if total is not None else _errors(observation, probabilities, raw)
    return replace(
        conclude(observation, raw, total, among=known, errors=errors, flags=flags),
        class_embeddings=embeddings,
        class_probabilities=probabilities,
    )


def _embeddings_and_logits(
    observation: Observation, bias_gradient: Float[Tensor, " classes"]
) -> tuple[Float[Tensor, "classes features"], Float[Tensor, "classes classes"]]:
    """Rows of the weight gradient over the bias gradient, and what the head makes of them.

    Quotients are bounded; zero over zero is zero.
    """
    assert observation.head.bias is not None
    head, bias = observation.head.weight.double(), observation.head.bias.double()
    gradient = observation.gradient.weight.double()
    divisor = mean_divisor(observation) * bias_gradient
    divisor = torch.where(divisor == 0, torch.finfo(torch.float64).tiny, divisor)[:, None]
    quotients = gradient / divisor
    largest = torch.linalg.vector_norm(gradient, torch.inf)
    if float(largest) > _QUOTIENT_BOUND * float(divisor.abs().min()):
        quotients.clamp_(-_QUOTIENT_BOUND, _QUOTIENT_BOUND)
        return quotients, torch.addmm(bias, quotients, head.T)
    product = product_of_low_rank(
        gradient, head.T, observation.num_instances, observation.gradient.rounding
    )
    return quotients, product.div_(divisor).add_(bias)


def _errors(
    observation: Observation,
    probabilities: Float[Tensor, "classes classes"],
    shares: Float[Tensor, " classes"],
) -> Float[Tensor, " classes"] | None:
    """How far the shares may be off, from how far the predictions of the classes differ.

    With the mean prediction m, row j of the weight gradient is ``m_j`` parts of samples of all
    classes less ``n_j / K`` parts of class j's own. The quotient takes the difference for the
    latter, so the prediction of class j is off by about ``m_j K / n_j`` of its distance from m, and
    m itself, with these errors weighted by ``n_j / K``, by the sum of ``m_j (p_j - m)``.
    """
    smoothing = observation.loss.label_smoothing
    weights = _weights_of(observation, probabilities)
    scale = (1.0 - smoothing) + smoothing * weights.mean() / weights
    weight = (shares * weights).sum()
    mean = (shares * weights / weight * scale) @ probabilities
    squares = mean.square() @ (probabilities - mean / mean.sum()).square_()
    return believable(squares.sqrt() * weight / weights / (1.0 - smoothing), mean)


def _weights_of(
    observation: Observation, probabilities: Float[Tensor, "classes classes"]
) -> Float[Tensor, " classes"]:
    """How much a sample of each class weighs that has the prediction of its class."""
    own = probabilities.diagonal()[:, None]
    return observation.loss.sample_weights(own)[:, 0]


@dataclass(frozen=True)
class _System:
    """The equations ``matrix @ x = K db`` and ``total_row @ x = K``; counts are x / weights.

    With class weights w and label smoothing a, one sample of class j adds
    ``w_j (1 - a)(p_j - y_j) + (a / C)(sum(w) p_j - w)`` to the loss's gradient; x_j stands for
    n_j w_j. A mean loss divides by sum_j n_j w_j, which x absorbs by summing to K itself. Every
    column of the matrix sums to zero.
    """

    matrix: Float[Tensor, "classes classes"]
    total_row: Float[Tensor, " classes"]
    weights: Float[Tensor, " classes"]

    @classmethod
    def of(
        cls, observation: Observation, probabilities: Float[Tensor, "classes classes"]
    ) -> "_System":
        classes, smoothing = observation.classes, observation.loss.label_smoothing
        weights = _weights_of(observation, probabilities)
        scale = (1.0 - smoothing) + smoothing * weights.mean() / weights
        matrix = (probabilities * scale[:, None]).T.contiguous()
        matrix.diagonal().sub_(1.0 - smoothing)
        if smoothing:
            matrix -= smoothing / classes * torch.outer(weights, 1.0 / weights)
        total_row = observation.loss.divisor_weights(observation.classes, probabilities) / weights
        return cls(matrix, total_row, weights)


def _solve(
    observation: Observation, system: _System, bias_gradient: Float[Tensor, " classes"]
) -> tuple[Float[Tensor, " classes"], tuple[Flag, ...]]:
    """The least-squares solution of all equations, as counts that may be negative or fractional."""
    present, total = observation.present_classes, observation.num_instances or 1
    if present is None:
        # The columns of the matrix sum to zero. Adding the total's equation, spread over all rows,
        # gives a square matrix with the same Gram matrix, hence the same least-squares solution.
        root = observation.classes**0.5
        square = system.matrix.addr_(
            torch.ones_like(system.total_row), system.total_row, alpha=1 / root
        )
        right = total * (bias_gradient - bias_gradient.mean() + 1 / root)
        solution, condition = solve_square(square, right)
        flags = (Flag.ILL_CONDITIONED,) if condition > _ILL_CONDITIONED else ()
    else:
        rows = torch.cat([system.total_row[present][None], system.matrix[present][:, present]])
        right = torch.cat([rows.new_tensor([total]), total * bias_gradient[present]])
        solution = torch.zeros_like(bias_gradient)
        solution[present] = minimum_norm_least_squares(rows, right)
        flags = ()
    counts = solution / system.weights
    if observation.loss.class_weights is not None and float(counts.sum()) > 0:
        counts = counts * (total / counts.sum())
    return counts, flags
