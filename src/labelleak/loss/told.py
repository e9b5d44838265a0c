"""What is told of a loss: its options, checked, and what follows from them alone."""

from collections.abc import Callable
from dataclasses import dataclass, field, fields

from jaxtyping import Float
from torch import Tensor

from labelleak.loss.options import MULTI_LABEL, Kind, Reduction, check_options

_USUAL_GAMMA = 2.0


@dataclass(frozen=True, eq=False)
class Told:
    """The options of a `labelleak.Loss`, which says what each of them is."""

    kind: Kind = "cross_entropy"
    reduction: Reduction = "mean"
    label_smoothing: float = 0.0
    class_weights: Float[Tensor, " classes"] | None = None
    temperature: float = 1.0
    ignore_index: int | None = None
    positive_weights: Float[Tensor, " labels"] | None = None
    label_weights: Float[Tensor, " labels"] | None = None
    masked: bool = False
    gamma: float | None = None
    alpha: float | None = None
    pixels: int | None = None
    function: Callable[[Tensor, Tensor], Tensor] | None = None
    # Whether the sums of a function's residuals vanish, by the number of outputs.
    _known: dict[int, bool] = field(init=False, repr=False, default_factory=dict)

    def __post_init__(self) -> None:
        told = {
            one.name: value
            for one in fields(self)[2:]
            if one.init
            and (isinstance(value := getattr(self, one.name), Tensor) or value != one.default)
        }
        check_options(self.kind, self.reduction, told)
        if self.gamma is None and self.kind in ("focal", "sigmoid_focal"):
            object.__setattr__(self, "gamma", _USUAL_GAMMA)

    @property
    def is_plain(self) -> bool:
        """Whether all samples weigh the same, all targets are one-hot, and p is the softmax."""
        return (
            self.kind == "cross_entropy"
            and not self.label_smoothing
            and self.class_weights is None
            and self.temperature == 1.0
        )

    @property
    def is_multi_label(self) -> bool:
        """Whether every label has a sigmoid of its own, so that a sample has a set of labels."""
        return self.kind in MULTI_LABEL

    @property
    def averages(self) -> bool:
        """Whether the loss is a mean over the batch, and not a sum."""
        return self.reduction != "sum"

    @property
    def divides_by_weights(self) -> bool:
        """Whether the divisor of a mean is the sum of the samples' class weights."""
        return (
            self.kind == "cross_entropy"
            and self.reduction == "mean"
            and self.class_weights is not None
        )

    @property
    def ignores_weights(self) -> bool:
        """Whether samples weigh differently under a softmax, and the divisor does not show it."""
        unequal = bool(self.gamma) or self.class_weights is not None
        return unequal and not self.divides_by_weights
