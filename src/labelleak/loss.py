"""The client's loss, in the terms that attacks read an update in: residual, targets, divisor."""

from dataclasses import dataclass
from typing import Literal, get_args

import torch
from jaxtyping import Float, Int
from torch import Tensor

from labelleak.checks import check_tensor, shape_of
from labelleak.errors import InvalidObservation

Kind = Literal["cross_entropy"]
Reduction = Literal["mean", "sum"]


@dataclass(frozen=True, eq=False)
class Loss:
    """The loss that a client minimizes, as far as the server knows it.

    The final layer sees a sample only through its residual ``r = dL / d logits``. The gradient of
    that layer is ``(1 / D) sum_k r_k [e_k, 1]^T``, with the embeddings e and the divisor D of the
    loss. An attack needs of a loss the residual, the targets that a sample may have, and D.

    Args:
        kind: ``"cross_entropy"``: softmax cross-entropy, as ``torch.nn.CrossEntropyLoss``.
        reduction: ``"mean"`` when the loss averages over the batch, ``"sum"`` when it adds up.
        label_smoothing: As of ``torch.nn.CrossEntropyLoss``, in [0, 1).
        class_weights: The positive weight of each class, shape (classes,), any floating dtype, as
            ``weight`` of ``torch.nn.CrossEntropyLoss``; None for equal weights.

    Raises:
        InvalidObservation: A value is impossible.

    Examples:
        >>> import torch
        >>> loss = Loss(label_smoothing=0.1)
        >>> loss.residual(torch.zeros(1, 2), torch.tensor([0])).tolist()
        [[-0.44999998807907104, 0.44999998807907104]]
    """

    kind: Kind = "cross_entropy"
    reduction: Reduction = "mean"
    label_smoothing: float = 0.0
    class_weights: Float[Tensor, " classes"] | None = None

    def __post_init__(self) -> None:
        if self.kind not in get_args(Kind):
            raise InvalidObservation(
                f"loss {self.kind!r} cannot be read: use {' or '.join(map(repr, get_args(Kind)))}"
            )
        if self.reduction not in get_args(Reduction):
            raise InvalidObservation(f"reduction {self.reduction!r}: use 'mean' or 'sum'")
        if not 0.0 <= self.label_smoothing < 1.0:
            raise InvalidObservation(
                f"label smoothing {self.label_smoothing}: it must be at least 0 and below 1"
            )
        weights = self.class_weights
        if weights is None:
            return
        check_tensor("class_weights", weights)
        if weights.ndim != 1:
            raise InvalidObservation(f"class weights {shape_of(weights)}: one weight per class")
        if not (torch.isfinite(weights).all() and (weights > 0).all()):
            raise InvalidObservation("class weights must be positive and finite")

    @classmethod
    def of(cls, loss: "Loss | str") -> "Loss":
        """The loss, or the plain one of that kind.

        Raises:
            InvalidObservation: No loss of that kind can be read.
        """
        return loss if isinstance(loss, Loss) else cls(loss)  # type: ignore[arg-type]

    @property
    def is_plain(self) -> bool:
        """Whether all samples weigh the same and all targets are one-hot."""
        return not self.label_smoothing and self.class_weights is None

    @property
    def averages(self) -> bool:
        """Whether the loss is a mean over the batch, and not a sum."""
        return self.reduction == "mean"

    def check_classes(self, classes: int) -> None:
        """Refuse a number of classes that this loss is not made for.

        Raises:
            InvalidObservation: There is not one class weight per class.
        """
        if self.class_weights is not None and self.class_weights.shape != (classes,):
            raise InvalidObservation(
                f"class weights {shape_of(self.class_weights)} for {classes} classes: one weight "
                "per class"
            )

    def weights(self, classes: int, like: Tensor) -> Float[Tensor, " classes"]:
        """The weight of each class.

        Args:
            classes: Number of classes C.
            like: A tensor whose dtype and device are the result's.

        Returns:
            Shape (classes,).
        """
        if self.class_weights is None:
            return like.new_ones(classes)
        return self.class_weights.to(like)

    def divisor_weights(self, classes: int, like: Tensor) -> Float[Tensor, " classes"]:
        """What a sample of each class adds to the divisor of a mean loss, 1 of a sum.

        Args:
            classes: Number of classes C.
            like: A tensor whose dtype and device are the result's.

        Returns:
            Shape (classes,).
        """
        return self.weights(classes, like) if self.averages else like.new_ones(classes)

    def targets(
        self, labels: Int[Tensor, " samples"], classes: int, like: Tensor
    ) -> Float[Tensor, "samples classes"]:
        """The target of a sample with each label: one-hot, with class weights and smoothing.

        Those of all labels, ``torch.arange(classes)``, are all targets that a sample may have.

        Args:
            labels: int64, shape (samples,).
            classes: Number of classes C.
            like: A tensor whose dtype and device are the result's.

        Returns:
            Shape (samples, classes).
        """
        weights, smoothing = self.weights(classes, like), self.label_smoothing
        targets = weights.new_zeros(len(labels), classes)
        targets.scatter_(1, labels[:, None], ((1.0 - smoothing) * weights)[labels][:, None])
        targets += smoothing / classes * weights
        return targets

    def mistakes(
        self, predictions: Float[Tensor, "samples classes"], labels: Int[Tensor, " samples"]
    ) -> Float[Tensor, "samples classes"]:
        """The residual of samples of which the predictions are known.

        It is ``prediction - one-hot`` for the plain loss. With weights or smoothing the mass of the
        target stands in place of 1.

        Args:
            predictions: Probabilities, any floating dtype, shape (samples, classes).
            labels: Their labels, int64, shape (samples,).

        Returns:
            In the dtype of the predictions, shape (samples, classes).
        """
        targets = self.targets(labels, predictions.shape[1], predictions)
        return predictions * targets.sum(dim=1, keepdim=True) - targets

    def residual(
        self, logits: Float[Tensor, "samples classes"], labels: Int[Tensor, " samples"]
    ) -> Float[Tensor, "samples classes"]:
        """Derivative of every sample's loss by its logits, before the divisor.

        Args:
            logits: Any floating dtype, shape (samples, classes).
            labels: int64, shape (samples,).

        Returns:
            In the dtype of the logits, shape (samples, classes); every row sums to zero.
        """
        return self.mistakes(torch.softmax(logits, dim=1), labels)

    def divisor(self, labels: Int[Tensor, " samples"]) -> float:
        """What the sum of the samples' losses is divided by: their weights together, or 1.

        Args:
            labels: Labels of the batch, int64, shape (samples,).
        """
        if not self.averages:
            return 1.0
        if self.class_weights is None:
            return float(len(labels))
        return float(self.class_weights[labels.to(self.class_weights.device)].double().sum())

    def scale(self, batch_size: float | None) -> float:
        """How many times larger a gradient is than that of the mean loss; 1 where it is not known.

        Args:
            batch_size: Number of samples K of one step, or None.
        """
        return 1 if self.averages else batch_size or 1

    def value(
        self,
        logits: Float[Tensor, "samples classes"],
        labels: Int[Tensor, " samples"] | Float[Tensor, "samples classes"],
    ) -> Float[Tensor, ""]:
        """The loss itself, to differentiate.

        Args:
            logits: Any floating dtype, shape (samples, classes).
            labels: int64, shape (samples,); or probabilities, shape (samples, classes).
        """
        weights = self.class_weights
        return torch.nn.functional.cross_entropy(
            logits,
            labels,
            None if weights is None else weights.to(logits),
            reduction=self.reduction,
            label_smoothing=self.label_smoothing,
        )
