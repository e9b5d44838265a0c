"""Activations between a layer and the head, by their values and slopes."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

Function = Callable[[Tensor], Tensor]

# Between these inputs activations are compared, and values that differ by less are the same: those
# that a module computes in single precision.
_WIDEST, _PROBES, _SAME = 6.0, 41, 1e-5
# Step of the difference quotient of the slopes: the cube root of double precision's epsilon.
_STEP = 6e-6


@dataclass(frozen=True)
class Activation:
    """A function of single entries.

    Attributes:
        values: The function.
        slopes: Its derivative.
    """

    values: Function
    slopes: Function

    @property
    def is_smooth(self) -> bool:
        """Whether its slopes are no steps, as those of the ReLU are."""
        return self is not RELU

    def curvatures(self, inputs: Tensor) -> Tensor:
        """The second derivative, by differences of the slopes."""
        change: Tensor = self.slopes(inputs + _STEP) - self.slopes(inputs - _STEP)
        return change / (2.0 * _STEP)


def _tanh_slopes(inputs: Tensor) -> Tensor:
    return 1.0 - torch.tanh(inputs).square()


def _sigmoid_slopes(inputs: Tensor) -> Tensor:
    return torch.sigmoid(inputs) * torch.sigmoid(-inputs)


def _relu_slopes(inputs: Tensor) -> Tensor:
    return (inputs > 0).to(inputs.dtype)


def _gelu_slopes(inputs: Tensor) -> Tensor:
    density = torch.exp(-0.5 * inputs.square()) / math.sqrt(2.0 * math.pi)
    slopes: Tensor = torch.special.ndtr(inputs) + inputs * density
    return slopes


def _gated(linear: float, cubic: float = 0.0) -> Activation:
    """``x * sigmoid(linear * x + cubic * x^3)``."""

    def gates(inputs: Tensor) -> Tensor:
        return linear * inputs + cubic * inputs**3

    def slopes(inputs: Tensor) -> Tensor:
        steepness = linear + 3.0 * cubic * inputs.square()
        return torch.sigmoid(gates(inputs)) + inputs * steepness * _sigmoid_slopes(gates(inputs))

    return Activation(lambda inputs: inputs * torch.sigmoid(gates(inputs)), slopes)


RELU = Activation(torch.relu, _relu_slopes)
TANH = Activation(torch.tanh, _tanh_slopes)
SIGMOID = Activation(torch.sigmoid, _sigmoid_slopes)
GELU = Activation(lambda inputs: inputs * torch.special.ndtr(inputs), _gelu_slopes)
# GELU's approximation by tanh (Hendrycks and Gimpel 2016) as a sigmoid, and by a plain sigmoid.
GELU_BY_TANH = _gated(math.sqrt(8.0 / math.pi), 0.044715 * math.sqrt(8.0 / math.pi))
GELU_BY_SIGMOID = _gated(1.702)
SILU = _gated(1.0)

SMOOTH = (TANH, GELU, GELU_BY_TANH, GELU_BY_SIGMOID, SILU, SIGMOID)


def activation_of(module: nn.Module) -> Activation | None:
    """The activation that a module computes, or None if it is none of those known here.

    Anything but a ReLU is told by its values, since libraries have classes of their own for the
    same function.

    Args:
        module: A module of the model without modules inside.
    """
    if isinstance(module, nn.ReLU):
        return RELU
    if [*module.parameters(), *module.buffers()]:
        return None
    probe = torch.linspace(-_WIDEST, _WIDEST, _PROBES, dtype=torch.float64)
    try:
        # Not a call, which would run hooks of the model's owner.
        values = module.forward(probe[None])
    except Exception:
        # Modules of all kinds stand before a head, and most do not take this input.
        return None
    if not isinstance(values, Tensor) or values.shape != (1, _PROBES):
        return None
    gaps = [float((known.values(probe) - values[0]).abs().max()) for known in SMOOTH]
    nearest = min(range(len(SMOOTH)), key=gaps.__getitem__)
    return SMOOTH[nearest] if gaps[nearest] < _SAME else None
