"""What an attack will cost: counted beforehand, so that no clock decides what is tried."""

import math
from dataclasses import dataclass

from torch import Tensor, nn

from labelleak.errors import MissingKnowledge
from labelleak.hooks import hooked
from labelleak.isolation import isolated
from labelleak.observation import Observation

# Multiplications per second in forward passes on one core: measured, 7e9 in the small convolutions
# of LeNet-5 and 3e10 to 4e10 in larger layers.
_WORK_PER_SECOND = 1e10
# Classes, to the third power, of equations solved per second on one core: measured, 4e10.
_SOLVED_PER_SECOND = 3e10
# Classes whose mean prediction is pooled in a second on one core, with and without a bias gradient:
# the least of those measured, 3e5 to 7e5 and 1.5e5 to 4e5.
_POOLED_PER_SECOND, _POOLED_WITHOUT_BIAS = 3e5, 1.5e5
# What pooling takes with what judges its counts, over what it takes alone: measured, 1.4.
_WITH_JUDGING = 1.5
# min(C, m)^2 max(C, m) of singular values per second on one core: measured, 2e9 to 4e9.
_DECOMPOSED_PER_SECOND = 2e9
# A float64 matrix of this many rows and columns takes 2 GB.
_DENSE_CLASSES = 16_384
# Largest min(C, m)^2 max(C, m) of C classes and m features: one decomposition takes seconds.
_MOST_DECOMPOSED = 4e9
# Dummies that `calibrated` sends through the model: 1,536 twice, and 2,200 for the mean that they
# should have and its errors; rounded up.
_DUMMIES = 6_000


def check_room(observation: Observation, attack: str) -> None:
    """Refuse more classes than there is memory for where an attack relates all of them.

    Args:
        observation: What the server sees.
        attack: Name of the attack, for the message.

    Raises:
        MissingKnowledge: There are too many.
    """
    if not Budget(observation, math.inf).has_room:
        gigabytes = 8 * observation.classes**2 / 1e9
        raise MissingKnowledge(
            f"attack {attack!r} relates all classes to each other: {observation.classes} of them "
            f"take {gigabytes:.0f} GB, and {_DENSE_CLASSES} are the most (use 'pooled' or 'llbg')"
        )


def check_time(observation: Observation, attack: str, seconds: float) -> None:
    """Refuse equations between all classes that would take longer than a time limit.

    Args:
        observation: What the server sees.
        attack: Name of the attack, for the message.
        seconds: The time limit.

    Raises:
        MissingKnowledge: They would. Once begun, a decomposition cannot be stopped.
    """
    expected = observation.classes**3 / _SOLVED_PER_SECOND
    if expected > seconds:
        raise MissingKnowledge(
            f"attack {attack!r} solves equations between all classes: {observation.classes} of "
            f"them take about {expected:.0f} s, and the time limit is {seconds:g} s (give a longer "
            "one, or use 'pooled')"
        )


def check_pooling(observation: Observation, attack: str, seconds: float) -> None:
    """Refuse more classes than their mean prediction can be pooled for within a time limit.

    Args:
        observation: What the server sees.
        attack: Name of the attack, for the message.
        seconds: The time limit.

    Raises:
        MissingKnowledge: There are more.
    """
    expected = _pooling_seconds(observation)
    if expected > seconds:
        raise MissingKnowledge(
            f"attack {attack!r} estimates the prediction for every class: {observation.classes} of "
            f"them take about {expected:.1f} s, and the time limit is {seconds:g} s (give a longer "
            "one, or use 'llbg')"
        )


def check_decomposition(observation: Observation, attack: str, seconds: float) -> None:
    """Refuse a head's gradient whose singular vectors would take longer than a time limit.

    With about as many features as classes, those of its complement are asked for, too.

    Args:
        observation: What the server sees.
        attack: Name of the attack, for the message.
        seconds: The time limit.

    Raises:
        MissingKnowledge: They would.
    """
    classes, features = observation.classes, observation.head.features
    few, many = sorted((classes, features))
    complement = classes**3 if 2 * features > classes else 0
    expected = (few**2 * many + complement) / _DECOMPOSED_PER_SECOND
    if expected > seconds:
        raise MissingKnowledge(
            f"attack {attack!r} decomposes the gradient of {classes} classes and {features} "
            f"features, which takes about {expected:.0f} s, and the time limit is {seconds:g} s "
            "(give a longer one, or use 'pooled')"
        )


@dataclass(frozen=True, eq=False)
class Budget:
    """What memory and time allow.

    Args:
        observation: What the server sees.
        seconds: About as long an attack may take.
    """

    observation: Observation
    seconds: float

    @property
    def has_room(self) -> bool:
        """Whether there is memory for a matrix of classes x classes."""
        return self.observation.classes <= _DENSE_CLASSES

    @property
    def allows_equations(self) -> bool:
        """Whether there is room and time for equations between all classes."""
        return self.has_room and self._allows(self.observation.classes**3)

    @property
    def allows_pooling(self) -> bool:
        """Whether there is time for the mean prediction of all classes, and to judge it."""
        return _WITH_JUDGING * _pooling_seconds(self.observation) <= self.seconds

    @property
    def allows_search(self) -> bool:
        """Whether the head's gradient is small enough for `exact` to decompose again and again."""
        few, many = sorted((self.observation.classes, self.observation.head.features + 1))
        return few**2 * many <= _MOST_DECOMPOSED

    @property
    def allows_calibrated(self) -> bool:
        """Whether the inputs of `calibrated` can go through the model in that time."""
        model, auxiliary = self.observation.model, self.observation.auxiliary
        if model is None:
            return False
        inputs = _DUMMIES if auxiliary is None else len(auxiliary.inputs)
        return self._allows(inputs * _work(model, self.observation.input_shape))

    def _allows(self, multiplications: float) -> bool:
        return multiplications <= _WORK_PER_SECOND * self.seconds


def _pooling_seconds(observation: Observation) -> float:
    rate = _POOLED_PER_SECOND if observation.gradient.bias is not None else _POOLED_WITHOUT_BIAS
    return observation.classes / rate


def _work(model: nn.Module, shape: tuple[int, ...] | None) -> float:
    """Multiplications of a forward pass of one input; infinite where that cannot be told."""
    layers = [m for m in model.modules() if isinstance(m, (nn.Linear, nn.Conv2d))]
    if shape is None:
        plain = all(isinstance(layer, nn.Linear) for layer in layers)
        return float(sum(p.numel() for p in model.parameters())) if plain else math.inf
    total = 0.0

    def count(layer: nn.Module, _: Tensor, output: Tensor) -> None:
        nonlocal total
        weight = layer.get_parameter("weight")
        total += output.numel() * weight.numel() / weight.shape[0]

    try:
        with isolated(model), hooked(*layers, leaving=count):
            model.eval()(next(model.parameters()).new_zeros(1, *shape))
    except RuntimeError:
        return math.inf
    return total
