"""A literal iLRG (Ma et al., ICLR 2023, Algorithm 1): the baselines of the benchmarks.

It takes one class after the other, and solves all equations by the Moore-Penrose inverse. It is
here for comparison only.
"""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


def entry_by_entry(row: Array, divisor: float) -> Array:
    """The quotient of the published procedure: decimal mantissas and exponents separately.

    The difference of the exponents is limited to ten in either direction.
    """
    mantissa, _, exponent = f"{divisor:e}".partition("e")
    quotients = []
    for entry in row:
        top, _, power = f"{entry:e}".partition("e")
        difference = min(10, max(-10, int(power) - int(exponent)))
        quotients.append(float(top) / float(mantissa) * 10.0**difference)
    return np.array(quotients)


def row_by_row(row: Array, divisor: float) -> Array:
    """The quotient by NumPy: one division per class."""
    return row / divisor


def plain_ilrg(
    weight: Array,
    bias: Array,
    weight_gradient: Array,
    bias_gradient: Array,
    batch_size: int,
    quotient: Callable[[Array, float], Array],
) -> NDArray[np.int64]:
    """Rounded counts, shape (classes,)."""
    classes = len(bias)
    predictions = []
    for i in range(classes):
        embedding = quotient(weight_gradient[i], float(bias_gradient[i]))
        logits = weight @ embedding + bias
        exponentials = np.exp(logits - logits.max())
        predictions.append(exponentials / exponentials.sum())
    coefficients = [[1.0] * classes]
    values = [float(batch_size)]
    for i in range(classes):
        coefficients.append([predictions[j][i] - float(i == j) for j in range(classes)])
        values.append(batch_size * float(bias_gradient[i]))
    solution: Array = np.linalg.pinv(np.array(coefficients)) @ np.array(values)
    rounded: NDArray[np.int64] = np.clip(solution, 0.0, None).round().astype(np.int64)
    return rounded
