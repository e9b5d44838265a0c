"""What is known of a client's local training: one object from adapters to attacks."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, get_args

from labelleak.checks import whole_number
from labelleak.errors import InvalidObservation, MissingKnowledge

Optimizer = Literal["sgd", "adam", "adamw", "rmsprop", "adagrad"]
# The numbers beside the rate that each optimizer of torch takes; those of SGD are fields.
_OPTIONS: dict[Optimizer, frozenset[str]] = {
    "sgd": frozenset(),
    "adam": frozenset({"betas", "eps", "amsgrad"}),
    "adamw": frozenset({"betas", "eps", "amsgrad"}),
    "rmsprop": frozenset({"alpha", "eps", "centered"}),
    "adagrad": frozenset({"lr_decay", "eps", "initial_accumulator_value"}),
}

# A rate is kept for every step, and a client claims how many there were.
MOST_STEPS = 100_000


@dataclass(frozen=True)
class LocalTraining:
    """How a client trained between two models: the recipe, as far as the server knows it.

    Args:
        optimizer: ``"sgd"``, as ``torch.optim.SGD`` without dampening, ``"adam"``, ``"adamw"``,
            ``"rmsprop"`` or ``"adagrad"``. None: not known, and read as ``"sgd"``.
        learning_rate: Learning rate, positive: one for all steps, or one for each. None: not known.
        batch_size: Samples in one step, K; None: not known. A smaller last batch of an epoch is
            allowed for.
        steps: Number of optimizer steps in all epochs together; None to count them from
            `batch_size`, `epochs` and the number of local samples.
        epochs: Passes over the local data; a divisor of `steps`.
        momentum: In [0, 1). None: not known, and read as 0.
        weight_decay: On all parameters, at least 0.
        proximal: FedProx's factor mu of ``mu / 2 * |weights - before|^2``, at least 0.
        nesterov: Nesterov's momentum, of SGD with momentum.
        options: What else the optimizer of torch takes, by its name there: ``{"betas": (0.9,
            0.99)}`` of Adam; what is left out is as torch has it.

    Raises:
        InvalidObservation: A value is impossible, or two of them contradict each other.

    Examples:
        >>> recipe = LocalTraining(learning_rate=0.1, batch_size=32, epochs=2, momentum=0.5)
        >>> recipe.resolved(instances=64).steps
        4
        >>> [round(size, 4) for size in recipe.resolved(instances=64).step_sizes]
        [0.1875, 0.175, 0.15, 0.1]
    """

    optimizer: Optimizer | None = None
    learning_rate: float | Sequence[float] | None = None
    batch_size: int | None = None
    steps: int | None = None
    epochs: int = 1
    momentum: float | None = None
    weight_decay: float = 0.0
    proximal: float = 0.0
    nesterov: bool = False
    options: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.optimizer not in (None, *get_args(Optimizer)):
            raise InvalidObservation(
                f"optimizer {self.optimizer!r} cannot be read: use "
                f"{' or '.join(map(repr, get_args(Optimizer)))}"
            )
        for what, title in (("batch_size", "batch size"), ("steps", "local steps")):
            if (value := getattr(self, what)) is not None:
                object.__setattr__(self, what, whole_number(title, value))
        object.__setattr__(self, "epochs", whole_number("local epochs", self.epochs))
        self._check_rates()
        if self.steps is not None and self.steps % self.epochs:
            raise InvalidObservation(
                f"{self.epochs} local epochs in {self.steps} local steps: every epoch has the same "
                "number of steps, at least 1"
            )
        momentum = 0.0 if self.momentum is None else self.momentum
        if not (_is_number(momentum) and 0.0 <= momentum < 1.0):
            raise InvalidObservation(f"momentum {self.momentum}: it must be at least 0 and below 1")
        self._check_optimizer(momentum)
        for what, value in (
            ("weight decay", self.weight_decay),
            ("proximal term", self.proximal),
        ):
            if not (_is_number(value) and 0.0 <= value < math.inf):
                raise InvalidObservation(f"{what} {value}: it must be at least 0 and finite")

    def _check_optimizer(self, momentum: float) -> None:
        """Refuse what this optimizer does not have."""
        kind = self.optimizer or "sgd"
        if unknown := sorted(set(self.options) - _OPTIONS[kind]):
            known = ", ".join(sorted(_OPTIONS[kind])) or "none"
            raise InvalidObservation(
                f"optimizer {kind!r} has no option {unknown[0]!r}: there are these: {known}"
            )
        if momentum and kind not in ("sgd", "rmsprop"):
            raise InvalidObservation(
                f"momentum {momentum} of {kind}: only SGD and RMSprop have one (Adam's are "
                'options={"betas": (0.9, 0.999)})'
            )
        if self.nesterov and (kind != "sgd" or not momentum):
            raise InvalidObservation("Nesterov's momentum needs SGD with a momentum above 0")

    def _check_rates(self) -> None:
        rates = self.learning_rate
        if rates is None:
            return
        if isinstance(rates, Sequence) and not isinstance(rates, str):
            rates = tuple(rates)
            object.__setattr__(self, "learning_rate", rates)
            if not rates or self.steps not in (None, len(rates)):
                raise InvalidObservation(
                    f"{len(rates)} learning rates for {self.steps or 'the'} local steps: one per "
                    "step"
                )
        for rate in rates if isinstance(rates, tuple) else (rates,):
            if not (_is_number(rate) and 0.0 < rate < math.inf):
                raise InvalidObservation(f"learning rate {rate}: it must be positive and finite")

    def count_steps(self, instances: int | None) -> int | None:
        """Number of optimizer steps, as told or as counted; None where neither is possible.

        An epoch over N samples in batches of K is ``ceil(N / K)`` steps. Where that is not known, a
        rate for each step tells their number.

        Args:
            instances: Number of local samples N, or None.
        """
        if self.steps is not None:
            return self.steps
        if instances is not None and self.batch_size is not None:
            return math.ceil(instances / self.batch_size) * self.epochs
        return len(self.learning_rate) if isinstance(self.learning_rate, Sequence) else None

    def resolved(self, instances: int | None = None, *, one_step: bool = False) -> "LocalTraining":
        """The same with whatever follows from the number of local samples.

        Args:
            instances: Number of local samples, or None.
            one_step: The update is a gradient: one step an epoch, where nothing else is said.

        Returns:
            A recipe with a number of steps, and with a batch size that is at most the number of
            samples, if that is known.

        Raises:
            MissingKnowledge: The number of steps is not told and cannot be counted.
            InvalidObservation: More steps than can be audited, or another number of rates.
        """
        if instances is not None:
            instances = whole_number("number of instances", instances)
        steps = self.count_steps(instances)
        if steps is None:
            if not one_step:
                raise MissingKnowledge(
                    "the number of local steps is not known: give steps, or both batch_size and "
                    "the number of local samples (instances)"
                )
            steps = self.epochs
        if steps > MOST_STEPS:
            raise InvalidObservation(f"{steps} local steps: at most {MOST_STEPS} can be audited")
        size = self.batch_size
        if instances is not None:
            size = math.ceil(instances * self.epochs / steps) if size is None else size
            size = min(size, instances)
        if (steps, size) == (self.steps, self.batch_size):
            return self
        return replace(self, steps=steps, batch_size=size)

    @property
    def is_sgd(self) -> bool:
        """Whether every step moved the weights by a multiple of gradients, as far as is known."""
        return self.optimizer in (None, "sgd")

    @property
    def took_part(self) -> int | None:
        """Number of samples in full batches of one epoch, K S / E; None where it is not known."""
        if self.batch_size is None or self.steps is None:
            return None
        return self.batch_size * self.steps // self.epochs

    @property
    def step_sizes(self) -> tuple[float, ...] | None:
        """How far each step's gradient moves the weights in all the steps together.

        Without momentum that is the step's learning rate. With momentum a gradient goes on to move
        the weights in later steps: ``sum over s >= t of learning_rate[s] * momentum ** (s - t)``;
        Nesterov's moves them one step further at once. Adaptive optimizers are read as plain SGD.
        One number per step; None where the learning rate or the number of steps is not known.
        """
        rates, steps = self.learning_rate, self.count_steps(None)
        if rates is None or steps is None:
            return None
        sizes: list[float] = []
        momentum = (self.momentum or 0.0) if self.is_sgd else 0.0
        later = 0.0
        for step in reversed(range(steps)):
            rate = rates[step] if isinstance(rates, Sequence) else rates
            later = rate + momentum * later
            sizes.append(rate + momentum * later if self.nesterov else later)
        return tuple(reversed(sizes))

    @property
    def reach(self) -> float | None:
        """How far the mean of the steps' gradients moved the weights: the sum of `step_sizes`."""
        sizes = self.step_sizes
        return None if sizes is None else math.fsum(sizes)

    @property
    def mean_place(self) -> float | None:
        """Where the weights were during the steps, on average: 0 is before, 1 is after."""
        sizes = self.step_sizes
        if sizes is None:
            return None
        reach = math.fsum(sizes)
        return (1.0 - math.fsum((size / reach) ** 2 for size in sizes)) / 2


def _is_number(value: object) -> bool:
    """Whether it can be compared with numbers; what a client says may be anything."""
    return isinstance(value, int | float) and not isinstance(value, bool)
