"""What the honest-but-curious server sees of one client's update: frozen and validated."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from jaxtyping import Float, Integer
from torch import Tensor, nn

from labelleak.checks import (
    INDICES,
    check_layer,
    check_tensor,
    shape_of,
    whole_number,
)
from labelleak.displays import facts_html, observation_facts
from labelleak.errors import InvalidObservation
from labelleak.loss import Loss
from labelleak.numerics import implied_rounding, root_mean_square
from labelleak.training import LocalTraining

# Counts are computed in float64, which holds every integer below this one.
_TOO_MANY = 2**53
# The least magnitude that is no zero: that of single precision. Powers of smaller ones leave double
# precision.
_LEAST = torch.finfo(torch.float32).smallest_normal


@dataclass(frozen=True, eq=False)
class Head:
    """The final linear layer, ``logits = weight @ embedding + bias``, that the server handed out.

    Args:
        weight: Weight matrix, shape (classes, features), any floating dtype.
        bias: Bias, shape (classes,), or None for a layer without one.
        name: Where the layer sits in the model, ``"fc"`` say; for messages and records only.
        per_pixel: Whether it is a 1x1 convolution, so that every pixel is a sample.

    Raises:
        InvalidObservation: The shapes do not belong together, a value is NaN, infinite or outside
            single precision, or there are fewer than two classes.

    Examples:
        >>> import torch
        >>> head = Head(torch.zeros(10, 300), torch.zeros(10), name="fc")
        >>> head.classes, head.features
        (10, 300)
    """

    weight: Float[Tensor, "classes features"]
    bias: Float[Tensor, " classes"] | None = None
    name: str | None = None
    per_pixel: bool = False

    def __post_init__(self) -> None:
        check_layer("head", self.weight, self.bias)
        _detach(self)

    @property
    def classes(self) -> int:
        """Number of classes C."""
        return self.weight.shape[0]

    @property
    def features(self) -> int:
        """Width m of the embedding."""
        return self.weight.shape[1]


@dataclass(frozen=True, eq=False)
class HeadGradient:
    """Gradient of the loss with respect to the final linear layer.

    For several local steps this is the mean of the steps' gradients, which is what
    ``(before - after) / (learning_rate * steps)`` gives.

    Args:
        weight: Gradient of the weight, shape (classes, features), any floating dtype; zeros where
            it was not sent, and only that of the bias was.
        bias: Gradient of the bias, shape (classes,), or None; zeros count as not sent.
        rounding: Typical rounding error of one entry of the weight, in the gradient's unit; NaN
            for `implied_rounding`, which then stands here. A difference of weights carries more.
        zeros_are_sent: Whether a bias gradient of zeros counts as sent: that of one logit may
            vanish, where as many samples pull it up as down.

    Attributes:
        has_weight: Whether the gradient of the weight was sent.
        size: Root mean square of the weight's entries.

    Raises:
        InvalidObservation: The shapes do not belong together, a value is NaN, infinite or outside
            single precision, or every entry is zero.

    Examples:
        >>> import torch
        >>> HeadGradient(torch.ones(10, 300), torch.ones(10)).rounding > 0
        True
    """

    weight: Float[Tensor, "classes features"]
    bias: Float[Tensor, " classes"] | None = None
    rounding: float = math.nan
    zeros_are_sent: bool = False
    has_weight: bool = field(init=False, default=True)
    size: float = field(init=False, default=math.nan)

    def __post_init__(self) -> None:
        largest = check_layer("gradient", self.weight, self.bias)
        _detach(self)
        vanished = self.bias is not None and largest["bias"] < _LEAST
        if vanished and not self.zeros_are_sent:
            # The bias is frozen: no batch has predictions that are right on average in every class.
            object.__setattr__(self, "bias", None)
        object.__setattr__(self, "has_weight", largest["weight"] >= _LEAST)
        if (self.bias is None or vanished) and not self.has_weight:
            raise InvalidObservation(
                "the head's gradient is zero everywhere: nothing was sent for this layer "
                "(is it frozen, or is the update the model itself?)"
            )
        object.__setattr__(self, "size", root_mean_square(self.weight))
        if math.isnan(self.rounding):
            object.__setattr__(self, "rounding", implied_rounding(self.weight, self.size))


@dataclass(frozen=True, eq=False)
class Auxiliary:
    """Labeled samples that the server holds itself; none of them is the client's.

    Args:
        inputs: What the model takes in, preprocessed as the client does, shape (samples, ...).
        labels: Their classes, any integer dtype (kept as int64), shape (samples,); or zeros and
            ones for every label, shape (samples, labels).

    Raises:
        InvalidObservation: There are none, not one label for each input, or an input is NaN or
            infinite.

    Examples:
        >>> import torch
        >>> Auxiliary(torch.rand(4, 3, 32, 32), torch.tensor([0, 1, 1, 2])).labels.tolist()
        [0, 1, 1, 2]
    """

    inputs: Tensor
    labels: Integer[Tensor, "samples *labels"]

    def __post_init__(self) -> None:
        check_tensor("auxiliary inputs", self.inputs)
        check_tensor("auxiliary labels", self.labels)
        lone = self.labels.ndim == 2 and self.labels.shape[1] < 2
        if self.labels.ndim not in (1, 2) or lone or not self.labels.numel():
            raise InvalidObservation(
                "auxiliary data needs samples, and their labels in a row, or zeros and ones of "
                "shape (samples, labels)"
            )
        if self.inputs.shape[:1] != self.labels.shape[:1]:
            raise InvalidObservation(
                f"auxiliary inputs are {shape_of(self.inputs)} and labels {shape_of(self.labels)}: "
                "one label per input is needed"
            )
        if self.labels.dtype not in INDICES or int(self.labels.min()) < 0:
            raise InvalidObservation("auxiliary labels must be class indices (int64), 0 and above")
        if self.labels.ndim == 2 and int(self.labels.max()) > 1:
            raise InvalidObservation(
                "auxiliary labels of shape (samples, labels) are zeros and ones"
            )
        if not torch.isfinite(self.inputs).all():
            raise InvalidObservation("auxiliary inputs have NaN or infinite entries")
        object.__setattr__(self, "labels", self.labels.long())


@dataclass(frozen=True, eq=False)
class Observation:
    """Everything that an attack may know about one update; true labels are no part of it.

    Args:
        head: The final layer before the client's step.
        gradient: The gradient the client's update holds for that layer.
        loss: The client's loss.
        training: How the client trained: batch size, steps, epochs, rates. Kept `resolved`; where
            nothing else is said, the update is one step an epoch.
        instances: Number of different samples, where it is not ``batch_size * steps / epochs``
            because the last batch of an epoch is smaller.
        present_classes: Classes that the server knows to be in the batch, and no others, int64,
            shape (present,); None when it does not know them.
        model: The whole model before the step, when the server has it. Its mode, training or
            evaluation, is the one that the client ran it in.
        gradients: The whole update by parameter name, when the server has it.
        after: The state dict that the client sent back, where it sent weights.
        input_shape: Shape of one input of the model, ``(channels, height, width)`` of an image,
            when the server knows it.
        auxiliary: Labeled samples of its own that the server holds, as far as it has any.

    Raises:
        InvalidObservation: A value is impossible or two of them contradict each other.

    Examples:
        >>> import torch
        >>> head = Head(torch.zeros(3, 2), torch.zeros(3))
        >>> gradient = HeadGradient(torch.ones(3, 2), torch.tensor([-0.5, 0.2, 0.3]))
        >>> training = LocalTraining(batch_size=8, steps=6, epochs=2)
        >>> seen = Observation(head, gradient, training=training)
        >>> seen.classes, seen.num_instances
        (3, 24)
    """

    head: Head
    gradient: HeadGradient
    loss: Loss = field(default_factory=Loss)
    training: LocalTraining = field(default_factory=LocalTraining)
    instances: int | None = None
    present_classes: Integer[Tensor, " present"] | None = None
    model: nn.Module | None = field(default=None, repr=False)
    gradients: Mapping[str, Tensor] | None = field(default=None, repr=False)
    after: Mapping[str, Tensor] | None = field(default=None, repr=False)
    input_shape: tuple[int, ...] | None = None
    auxiliary: Auxiliary | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        head, gradient = self.head, self.gradient
        if gradient.weight.shape != head.weight.shape:
            raise InvalidObservation(
                f"the gradient is {shape_of(gradient.weight)} and the head "
                f"{shape_of(head.weight)}: they are not of the same layer"
            )
        if gradient.bias is not None and head.bias is None:
            raise InvalidObservation(
                "there is a bias gradient, and the head has no bias: they are not of the same layer"
            )
        if head.weight.device != gradient.weight.device:
            raise InvalidObservation(
                f"the head is on {head.weight.device} and the gradient on "
                f"{gradient.weight.device}: move one to the other"
            )
        self._check_sizes()
        self.loss.check_classes(self.classes)
        self._check_present_classes()
        self._check_inputs()

    def _check_sizes(self) -> None:
        if self.instances is not None:
            number = whole_number("number of instances", self.instances)
            if number >= _TOO_MANY:
                raise InvalidObservation(f"{number} instances: fewer than 2**53 can be counted")
            object.__setattr__(self, "instances", number)
        training = self.training.resolved(self.instances, one_step=True)
        object.__setattr__(self, "training", training)
        if (training.batch_size or 0) * self.local_steps >= _TOO_MANY:
            raise InvalidObservation(
                f"batch size {training.batch_size} times {training.steps} local steps: fewer than "
                "2**53 instances can be counted"
            )

    def _check_present_classes(self) -> None:
        present = self.present_classes
        if present is None:
            return
        check_tensor("present_classes", present)
        if present.ndim != 1 or not present.numel() or present.dtype not in INDICES:
            raise InvalidObservation(
                f"present_classes is {shape_of(present)} of {present.dtype}: a non-empty list of "
                "class indices is needed (int64)"
            )
        if int(present.min()) < 0 or int(present.max()) >= self.classes:
            raise InvalidObservation(
                f"present_classes holds {int(present.min())}..{int(present.max())}, and the head "
                f"has classes 0..{self.classes - 1}"
            )
        if len(set(present.tolist())) != present.numel():
            raise InvalidObservation("present_classes names a class twice")
        if self.num_instances is not None and present.numel() > self.num_instances:
            raise InvalidObservation(
                f"{present.numel()} classes are said to be present among {self.num_instances} "
                "instances: the batch size is too small"
            )
        # torch indexes with int64; uint8 would be read as a mask.
        object.__setattr__(self, "present_classes", present.long())

    def _check_inputs(self) -> None:
        shape, auxiliary = self.input_shape, self.auxiliary
        if shape is not None and (not shape or min(shape) < 1):
            raise InvalidObservation(f"input shape {shape}: sizes must be positive")
        if auxiliary is None:
            return
        if shape is not None and tuple(auxiliary.inputs.shape[1:]) != tuple(shape):
            raise InvalidObservation(
                f"auxiliary inputs are {shape_of(auxiliary.inputs[0])} each, and the model's "
                f"inputs {'x'.join(map(str, shape))}"
            )
        if self.loss.is_multi_label != (auxiliary.labels.ndim == 2) or (
            auxiliary.labels.ndim == 2 and auxiliary.labels.shape[1] != self.classes
        ):
            needed = f"(samples, {self.classes})" if self.loss.is_multi_label else "(samples,)"
            raise InvalidObservation(
                f"auxiliary labels are {shape_of(auxiliary.labels)}, and the loss "
                f"{self.loss.kind!r} has targets of shape {needed}"
            )
        if int(auxiliary.labels.max()) >= self.classes:
            raise InvalidObservation(
                f"auxiliary labels run to {int(auxiliary.labels.max())}, and the head has "
                f"classes 0..{self.classes - 1}"
            )

    @property
    def classes(self) -> int:
        """Number of classes C."""
        return self.head.classes

    @property
    def batch_size(self) -> int | None:
        """Number of samples K in one local step; None when nobody told the server."""
        return self.training.batch_size

    @property
    def local_steps(self) -> int:
        """Number of optimizer steps S that the update adds up."""
        steps = self.training.steps
        assert steps is not None, "resolved"
        return steps

    @property
    def num_instances(self) -> int | None:
        """Number of different samples that the update is made of, or None.

        ``batch_size * local_steps / local_epochs``, unless `instances` says otherwise: the client's
        whole local data set.
        """
        return self.training.took_part if self.instances is None else self.instances

    @property
    def scale(self) -> float:
        """How many times larger the gradient is than that of the mean loss; 1 if not known."""
        return self.loss.scale(self.batch_size)

    @property
    def is_one_logit(self) -> bool:
        """Whether the head is one logit, read as two classes."""
        return self.gradient.zeros_are_sent

    @property
    def has_bias(self) -> bool:
        """Whether the bias and its gradient are there."""
        return self.head.bias is not None and self.gradient.bias is not None

    def __repr__(self) -> str:
        """What was seen, in a line."""
        facts = ", ".join(f"{name}: {value}" for name, value in observation_facts(self).items())
        return f"Observation({facts})"

    def _repr_html_(self) -> str:
        """A table for notebooks: what an attack may know."""
        return facts_html("What the server sees", observation_facts(self))


def _detach(layer: Head | HeadGradient) -> None:
    """Keep the numbers alone: attacks differentiate nothing, and parameters would have them try."""
    for name in ("weight", "bias"):
        tensor = getattr(layer, name)
        if tensor is not None and tensor.requires_grad:
            object.__setattr__(layer, name, tensor.detach())
