"""What the honest-but-curious server sees of one client's update: frozen and validated."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from labelleak.errors import InvalidObservation

Reduction = Literal["mean", "sum"]


@dataclass(frozen=True, eq=False)
class Head:
    """The final linear layer, ``logits = weight @ embedding + bias``, that the server handed out.

    Args:
        weight: Weight matrix, shape (classes, features), any floating dtype.
        bias: Bias, shape (classes,), or None for a layer without one.
        name: Where the layer sits in the model, ``"fc"`` say; for messages and records only.

    Raises:
        InvalidObservation: The shapes do not belong together, a value is NaN or infinite, or there
            are fewer than two classes.
    """

    weight: Float[Tensor, "classes features"]
    bias: Float[Tensor, " classes"] | None = None
    name: str | None = None

    def __post_init__(self) -> None:
        _check_layer("head", self.weight, self.bias)

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
        weight: Gradient of the weight, shape (classes, features), any floating dtype.
        bias: Gradient of the bias, shape (classes,), or None.
        rounding: Typical rounding error of one entry of the weight, in the gradient's unit; NaN
            for what its dtype implies, which then stands here. A difference of weights carries
            more than its dtype says.

    Raises:
        InvalidObservation: The shapes do not belong together, a value is NaN or infinite, or every
            entry is zero.
    """

    weight: Float[Tensor, "classes features"]
    bias: Float[Tensor, " classes"] | None = None
    rounding: float = math.nan

    def __post_init__(self) -> None:
        _check_layer("gradient", self.weight, self.bias)
        if not self.weight.any() and (self.bias is None or not self.bias.any()):
            raise InvalidObservation(
                "the head's gradient is zero everywhere: nothing was sent for this layer "
                "(is it frozen, or is the update the model itself?)"
            )
        if math.isnan(self.rounding):
            # A few machine epsilons of a typical entry, as sums of products leave.
            implied = 4 * torch.finfo(self.weight.dtype).eps * root_mean_square(self.weight)
            object.__setattr__(self, "rounding", implied)


@dataclass(frozen=True, eq=False)
class Auxiliary:
    """Labelled samples that the server holds itself; none of them is the client's.

    Args:
        inputs: What the model takes in, preprocessed as the client does, shape (samples, ...).
        labels: Their classes, int64, shape (samples,).

    Raises:
        InvalidObservation: There are none, or not one label for each input.
    """

    inputs: Tensor
    labels: Int[Tensor, " samples"]

    def __post_init__(self) -> None:
        if self.labels.ndim != 1 or not self.labels.numel():
            raise InvalidObservation("auxiliary data needs samples, and their labels in a row")
        if self.inputs.shape[:1] != self.labels.shape:
            raise InvalidObservation(
                f"auxiliary inputs are {_shape(self.inputs)} and labels {_shape(self.labels)}: one "
                "label per input is needed"
            )
        if self.labels.dtype != torch.int64 or int(self.labels.min()) < 0:
            raise InvalidObservation("auxiliary labels must be class indices (int64), 0 and above")


@dataclass(frozen=True, eq=False)
class Observation:
    """Everything that an attack may know about one update; true labels are no part of it.

    Args:
        head: The final layer before the client's step.
        gradient: The gradient the client's update holds for that layer.
        batch_size: Number of samples in one local step; None when nobody told the server.
        reduction: ``"mean"`` when the loss averages over the batch, ``"sum"`` when it adds up.
        label_smoothing: The loss's label smoothing, in [0, 1).
        class_weights: The loss's positive weight of each class, shape (classes,), as in
            ``torch.nn.CrossEntropyLoss(weight=...)``; None for equal weights.
        present_classes: Classes that the server knows to be in the batch, int64, shape (present,);
            None when it knows nothing.
        local_steps: Number of optimiser steps S that the update adds up.
        local_epochs: How often each sample takes part in those steps.
        learning_rates: How far each step's gradient moved the weights, positive, one per step;
            None when the server does not know.
        model: The whole model before the step, when the server has it. Its mode, training or
            evaluation, is the one that the client ran it in.
        gradients: The whole update by parameter name, when the server has it.
        after: The state dict that the client sent back, where it sent weights.
        input_shape: Shape of one input of the model, when the server knows it.
        auxiliary: Labelled samples of its own that the server holds, as far as it has any.

    Raises:
        InvalidObservation: A value is impossible or two of them contradict each other.
    """

    head: Head
    gradient: HeadGradient
    batch_size: int | None = None
    reduction: Reduction = "mean"
    label_smoothing: float = 0.0
    class_weights: Float[Tensor, " classes"] | None = None
    present_classes: Int[Tensor, " present"] | None = None
    local_steps: int = 1
    local_epochs: int = 1
    learning_rates: tuple[float, ...] | None = None
    model: nn.Module | None = field(default=None, repr=False)
    gradients: Mapping[str, Tensor] | None = field(default=None, repr=False)
    after: Mapping[str, Tensor] | None = field(default=None, repr=False)
    input_shape: tuple[int, ...] | None = None
    auxiliary: Auxiliary | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        head, gradient = self.head, self.gradient
        if gradient.weight.shape != head.weight.shape:
            raise InvalidObservation(
                f"the gradient is {_shape(gradient.weight)} and the head {_shape(head.weight)}: "
                "they are not of the same layer"
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
        if self.batch_size is not None and self.batch_size < 1:
            raise InvalidObservation(f"batch size {self.batch_size}: it must be at least 1")
        if self.local_steps < 1:
            raise InvalidObservation(f"{self.local_steps} local steps: there must be at least 1")
        if self.local_epochs < 1 or self.local_steps % self.local_epochs:
            raise InvalidObservation(
                f"{self.local_epochs} local epochs in {self.local_steps} local steps: every epoch "
                "has the same number of steps, at least 1"
            )
        self._check_learning_rates()
        if self.reduction not in ("mean", "sum"):
            raise InvalidObservation(f"reduction {self.reduction!r}: use 'mean' or 'sum'")
        if not 0.0 <= self.label_smoothing < 1.0:
            raise InvalidObservation(
                f"label smoothing {self.label_smoothing}: it must be at least 0 and below 1"
            )
        self._check_class_weights()
        self._check_present_classes()
        if self.auxiliary is not None and int(self.auxiliary.labels.max()) >= self.classes:
            raise InvalidObservation(
                f"auxiliary labels run to {int(self.auxiliary.labels.max())}, and the head has "
                f"classes 0..{self.classes - 1}"
            )

    def _check_learning_rates(self) -> None:
        rates = self.learning_rates
        if rates is None:
            return
        if len(rates) != self.local_steps:
            raise InvalidObservation(
                f"{len(rates)} learning rates for {self.local_steps} local steps: one per step"
            )
        if not all(0.0 < rate < math.inf for rate in rates):
            raise InvalidObservation("learning rates must be positive and finite")

    def _check_class_weights(self) -> None:
        weights = self.class_weights
        if weights is None:
            return
        if weights.shape != (self.classes,):
            raise InvalidObservation(
                f"class weights {_shape(weights)} for {self.classes} classes: one weight per class"
            )
        if not (torch.isfinite(weights).all() and (weights > 0).all()):
            raise InvalidObservation("class weights must be positive and finite")

    def _check_present_classes(self) -> None:
        present = self.present_classes
        if present is None:
            return
        if present.ndim != 1 or not present.numel():
            raise InvalidObservation("present_classes must be a non-empty list of class indices")
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

    @property
    def classes(self) -> int:
        """Number of classes C."""
        return self.head.classes

    @property
    def num_instances(self) -> int | None:
        """Number of different samples that the update is made of, or None.

        ``batch_size * local_steps / local_epochs``: the client's whole local data set.
        """
        if self.batch_size is None:
            return None
        return self.batch_size * self.local_steps // self.local_epochs

    @property
    def has_bias(self) -> bool:
        """Whether the bias and its gradient are there."""
        return self.head.bias is not None and self.gradient.bias is not None

    def with_gradient(self, gradient: HeadGradient) -> "Observation":
        """The same observation with another head gradient, as after a defence.

        The whole-model gradients are dropped, and so is the client's model: they would still be
        the undefended ones.
        """
        return replace(self, gradient=gradient, gradients=None, after=None)


def root_mean_square(tensor: Tensor) -> float:
    """Root of the mean square of all entries, computed in double precision."""
    norm = float(torch.linalg.vector_norm(tensor, dtype=torch.float64))
    return norm / math.sqrt(max(tensor.numel(), 1))


def _shape(tensor: Tensor) -> str:
    return "x".join(str(size) for size in tensor.shape) or "a single number"


def _check_layer(what: str, weight: Tensor, bias: Tensor | None) -> None:
    if weight.ndim != 2:
        raise InvalidObservation(
            f"the {what}'s weight is {_shape(weight)}: a matrix classes x features is needed"
        )
    if weight.shape[0] < 2 or weight.shape[1] < 1:
        raise InvalidObservation(
            f"the {what}'s weight is {_shape(weight)}: at least two classes and one feature are "
            "needed"
        )
    tensors = {"weight": weight}
    if bias is not None:
        if bias.shape != weight.shape[:1]:
            raise InvalidObservation(
                f"the {what}'s bias is {_shape(bias)} beside a weight of {_shape(weight)}: "
                f"{weight.shape[0]} entries are needed"
            )
        if bias.device != weight.device:
            raise InvalidObservation(
                f"the {what}'s weight is on {weight.device} and its bias on {bias.device}"
            )
        tensors["bias"] = bias
    for name, tensor in tensors.items():
        if not tensor.is_floating_point():
            raise InvalidObservation(
                f"the {what}'s {name} is {tensor.dtype}: floating-point numbers are needed"
            )
        # A sum is finite only if every term is, and needs no second copy of a large head; an
        # overflowing sum of finite terms is looked at entry by entry.
        if not torch.isfinite(tensor.sum(dtype=torch.float64)) and not torch.isfinite(tensor).all():
            raise InvalidObservation(
                f"the {what}'s {name} has NaN or infinite entries: the update is broken"
            )
