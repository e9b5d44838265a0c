"""What a gradient tells of the loss that it is of."""

from labelleak.observation import Observation

# Sums over the classes are made of samples if they are this much like what the mean embedding makes
# of the sum of the bias gradient: cosine, and the factor between their lengths.
_ALIKE, _FACTOR = 0.9, 2.0
# Entries of the bias gradient pull up and down under a softmax: as much as this apart is neither.
_UNEVEN = 0.1


def sums_are_of_samples(observation: Observation) -> bool:
    """Whether sums over the classes that do not vanish are those of samples, and no noise.

    With a sigmoid for each label, the sum of the rows is ``sum_k R_k e_k`` with R_k the sum of a
    sample's residuals, and that of the bias gradient ``sum_k R_k``. The sum of the rows then lies
    along the mean embedding, which the rows show, and is as long as the sum of the bias gradient
    makes it. Noise lies along nothing.

    Args:
        observation: What the server sees; nothing is known without a bias gradient.
    """
    gradient = observation.gradient
    if gradient.bias is None or not gradient.has_weight:
        return False
    bias = gradient.bias.double()
    together, squares = float(bias.sum()), float(bias.square().sum())
    if abs(together) < _UNEVEN * float(bias.abs().sum()):
        return False
    # The mean embedding from the differences of rows, which the sum has no part in.
    apart = bias - bias.mean()
    if not float(apart.abs().max()) > _UNEVEN * abs(together) / len(bias):
        apart = bias
    weight = gradient.weight
    embedding = (apart.to(weight.dtype) @ weight).double() / float(apart @ bias)
    summed = (weight.new_ones(len(weight)) @ weight).double()
    expected = together * embedding
    product = float(summed @ expected)
    lengths = float(summed.norm()), float(expected.norm())
    if not min(lengths) or not squares:
        return False
    close = 1.0 / _FACTOR < lengths[0] / lengths[1] < _FACTOR
    return close and product > _ALIKE * lengths[0] * lengths[1]
