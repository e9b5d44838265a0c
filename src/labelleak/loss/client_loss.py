"""The loss that a client minimizes, as far as the server knows it."""

from collections.abc import Callable, Mapping
from dataclasses import fields
from typing import Any, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from labelleak.errors import InvalidObservation
from labelleak.loss.formulas import focal_factor
from labelleak.loss.options import (
    CUSTOM,
    Kind,
    Reduction,
    check_number_of_weights,
    check_targets_of_own,
    from_plain,
)
from labelleak.loss.own import own_class_residuals, own_residual, own_sums_vanish, own_value
from labelleak.loss.pixels import by_pixel
from labelleak.loss.sigmoids import residuals_of_labels, sigmoids_value
from labelleak.loss.softmax import (
    softmax_residual,
    softmax_targets,
    softmax_value,
    weights_of_classes,
)
from labelleak.loss.targets import MASKED, class_indices, is_kept, label_sets, real_numbers
from labelleak.loss.told import Told

_COX = (
    "Cox's partial likelihood is no sum over samples: its gradient can be observed, and not made "
    "here"
)


class Loss(Told):
    """The loss that a client minimizes, as far as the server knows it.

    The final layer sees a sample only through its residual ``r = dL / d logits``. The gradient of
    that layer is ``(1 / D) sum_k r_k [e_k, 1]^T``, with the embeddings e and the divisor D of the
    loss. An attack needs of a loss the residual, the targets that a sample may have, and D.

    Args:
        kind: ``"cross_entropy"``: softmax cross-entropy, as ``torch.nn.CrossEntropyLoss``.
            ``"focal"``: the same times ``(1 - p)^gamma`` for the probability p of the class.
            ``"bce"``: a sigmoid for every label, as ``torch.nn.BCEWithLogitsLoss``; also of one
            logit. ``"sigmoid_focal"``: as ``torchvision.ops.sigmoid_focal_loss``. ``"mse"``: mean
            squared error, of numbers, see `labelleak.mean_targets`. ``"cox"``: Cox's partial
            likelihood, of one output; it is no sum over samples, and its bias has no gradient.
        reduction: ``"mean"`` as torch averages: over samples; with class weights, over these; and
            over samples *and* labels. ``"sum"`` when the loss adds up. ``"sample_mean"``: the sum
            divided by the number of samples, whatever their weights and labels.
        label_smoothing: As of ``torch.nn.CrossEntropyLoss``, in [0, 1).
        class_weights: The positive weight of each class, shape (classes,), any floating dtype, as
            ``weight`` of ``torch.nn.CrossEntropyLoss``; None for equal weights. A focal loss
            calls it alpha, and its mean is one over samples.
        temperature: What the logits are divided by, positive.
        ignore_index: Class index of samples that are left out; None where there are none.
        positive_weights: The weight of a target of 1, shape (labels,), as ``pos_weight`` of
            ``torch.nn.BCEWithLogitsLoss``.
        label_weights: The weight of each label, shape (labels,), as its ``weight``.
        masked: Whether a target of -1 is left out. A mean is then one over the targets that count.
        gamma: Exponent of a focal loss, 0 or above; 2 unless told otherwise.
        alpha: Weight of a target of 1 in a sigmoid focal loss, in (0, 1), that of 0 being
            ``1 - alpha``; None for equal weights.
        pixels: Number of pixels of one sample that have a target each, of a model that ends in a
            1x1 convolution: pixels are the samples then, in everything that is restored. 0 where
            the model tells, or nobody does. None for one target a sample.
        function: A loss of your own, see `custom`.

    Raises:
        InvalidObservation: A value is impossible, or the kind has no such option.

    Examples:
        >>> import torch
        >>> loss = Loss(label_smoothing=0.1)
        >>> loss.residual(torch.zeros(1, 2), torch.tensor([0])).tolist()
        [[-0.44999998807907104, 0.44999998807907104]]
        >>> Loss("bce").residual(torch.zeros(1, 3), torch.tensor([[1, 0, 0]])).tolist()
        [[-0.5, 0.5, 0.5]]
    """

    @classmethod
    def of(cls, loss: "Loss | str | Mapping[str, Any]") -> "Loss":
        """The loss, or the plain one of that kind, or that of plain data.

        Args:
            loss: A loss, the name of a kind, or the arguments by name with lists for tensors, as a
                file of settings holds them.

        Raises:
            InvalidObservation: No such loss can be read.

        Examples:
            >>> Loss.of({"kind": "bce", "positive_weights": [1.0, 4.0]}).positive_weights.tolist()
            [1.0, 4.0]
        """
        if isinstance(loss, Mapping):
            return cls(**from_plain(loss, [one.name for one in fields(cls) if one.init]))
        return loss if isinstance(loss, Loss) else cls(loss)  # type: ignore[arg-type]

    @classmethod
    def custom(
        cls,
        function: Callable[[Tensor, Tensor], Tensor],
        *,
        targets: Literal["classes", "label_sets"] = "classes",
        reduction: Reduction = "mean",
        pixels: int | None = None,
    ) -> "Loss":
        """A loss of your own; its residual is computed by autograd.

        Args:
            function: Called as ``function(logits, targets)`` with logits of shape (samples,
                outputs) in the dtype of the caller, often double precision. Returns the loss of the
                batch, or one number for each sample.
            targets: ``"classes"``: class indices, int64, shape (samples,), one for each sample.
                ``"label_sets"``: zeros and ones of the logits' shape and dtype, where the function
                decides about every label by itself; also of one logit.
            reduction: How the function puts samples together: ``"mean"`` or ``"sum"``.
            pixels: As of every loss.

        Returns:
            The loss. What a function has to be is checked where the number of outputs is known: the
            sum or mean of its samples' losses, with finite derivatives that depend on the targets.

        Raises:
            InvalidObservation: It is no function, or targets or reduction are none of these.

        Examples:
            >>> import torch
            >>> from torch.nn import functional
            >>> twice = Loss.custom(lambda z, y: functional.cross_entropy(z.softmax(1), y))
            >>> twice.residual(torch.zeros(1, 2), torch.tensor([0])).tolist()
            [[-0.25, 0.25]]
        """
        check_targets_of_own(targets)
        kind: Kind = "custom" if targets == "classes" else "custom_labels"
        return cls(kind, reduction, pixels=pixels, function=function)

    def check_classes(self, classes: int) -> None:
        """Refuse a number of classes, or of labels, that this loss is not made for.

        Raises:
            InvalidObservation: There is not one weight for each, or a function of the user's is no
                loss that attacks can read.
        """
        if self.kind in CUSTOM:
            self.sums_vanish(classes)
        names = ("class_weights", "positive_weights", "label_weights")
        check_number_of_weights({name: getattr(self, name) for name in names}, classes)

    def sums_vanish(self, outputs: int) -> bool:
        """Whether the residuals of a sample sum to zero over so many outputs, as of a softmax.

        Raises:
            InvalidObservation: A function of the user's is no loss that attacks can read.
        """
        if self.kind not in CUSTOM:
            return not self.is_multi_label and self.kind != "mse"
        if outputs not in self._known:
            self._known[outputs] = own_sums_vanish(self, outputs)
        return self._known[outputs] and self.kind == "custom"

    def check_targets(self, targets: Tensor, samples: int, outputs: int) -> Tensor:
        """The targets of a batch, after making sure that they are what this loss takes.

        Args:
            targets: Class indices, shape (samples,); or zeros and ones, shape (samples, labels),
                where every label is decided by itself (of one logit also shape (samples,)).
            samples: Number of samples.
            outputs: Number of logits of each.

        Returns:
            int64, shape (samples,); or float64, shape (samples, labels).

        Raises:
            InvalidObservation: They are not.
        """
        if self.kind == "cox":
            raise InvalidObservation(_COX)
        if self.kind == "mse":
            return real_numbers(targets, samples, outputs)
        if self.is_multi_label:
            return label_sets(targets, samples, outputs, masked=self.masked)
        return class_indices(targets, samples, outputs, self.ignore_index)

    def kept(self, targets: Tensor) -> Tensor:
        """Which targets take part in the loss, bool, in their shape."""
        ignored = (MASKED if self.masked else None) if self.is_multi_label else self.ignore_index
        return is_kept(targets, ignored)

    def num_samples(self, targets: Tensor) -> int:
        """Number of samples that take part in the loss."""
        if self.is_multi_label or self.ignore_index is None:
            return len(targets)
        return int(self.kept(targets).sum())

    def weights(self, classes: int, like: Tensor) -> Float[Tensor, " classes"]:
        """The weight of each class.

        Args:
            classes: Number of classes C.
            like: A tensor whose dtype and device are the result's.

        Returns:
            Shape (classes,).
        """
        return weights_of_classes(self, classes, like)

    def sample_weights(
        self, probabilities: Float[Tensor, "classes estimates"]
    ) -> Float[Tensor, "classes _"]:
        """How much a sample of each class weighs that has these predictions.

        It is the class weight, times the `focal_factor` of the class's own probability.

        Args:
            probabilities: A mean prediction in every column, shape (classes, estimates).

        Returns:
            The same shape, or one column where predictions do not matter.
        """
        weights = self.weights(len(probabilities), probabilities)[:, None]
        if not self.gamma:
            return weights
        own = probabilities.clamp(1e-12, 1.0 - 1e-12)
        return weights * focal_factor(own, 1.0 - own, self.gamma)

    def divisor_weights(self, classes: int, like: Tensor) -> Float[Tensor, " classes"]:
        """What a sample of each class adds to the divisor of a mean loss, 1 of a sum.

        Args:
            classes: Number of classes C.
            like: A tensor whose dtype and device are the result's.

        Returns:
            Shape (classes,).
        """
        return self.weights(classes, like) if self.divides_by_weights else like.new_ones(classes)

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
        return softmax_targets(self, labels, classes, like)

    def mistakes(
        self, predictions: Float[Tensor, "samples classes"], labels: Int[Tensor, " samples"]
    ) -> Float[Tensor, "samples classes"]:
        """The residual of samples of which the predictions are known, under a softmax.

        It is ``prediction - one-hot`` for the plain loss. With weights or smoothing the mass of the
        target stands in place of 1.

        Args:
            predictions: Probabilities, any floating dtype, shape (samples, classes).
            labels: Their labels, int64, shape (samples,).

        Returns:
            In the dtype of the predictions, shape (samples, classes).
        """
        return softmax_residual(self, predictions, labels)

    def predict(self, logits: Float[Tensor, "samples outputs"]) -> Float[Tensor, "samples outputs"]:
        """What the loss takes for probabilities: softmax of the logits, or their sigmoids."""
        if self.is_multi_label:
            return torch.sigmoid(logits)
        return torch.softmax(logits / self.temperature, dim=1)

    def binary_residuals(
        self, logits: Float[Tensor, "*shape labels"]
    ) -> tuple[Float[Tensor, "*shape labels"], Float[Tensor, "*shape labels"]]:
        """The residual of every label that is absent, and of every one that is there.

        Args:
            logits: Of a loss with a sigmoid for each label, labels last.

        Returns:
            Two tensors of the shape of the logits.
        """
        if self.kind != "custom_labels":
            return residuals_of_labels(self, logits)
        rows = logits.reshape(-1, logits.shape[-1])
        zero, one = (self.residual(rows, torch.full_like(rows, value)) for value in (0.0, 1.0))
        return zero.reshape(logits.shape), one.reshape(logits.shape)

    def class_residuals(
        self, logits: Float[Tensor, "samples outputs"]
    ) -> Float[Tensor, "samples classes outputs"]:
        """Residual of a sample of every class at these logits, for a function of the user's.

        Args:
            logits: Any floating dtype, shape (samples, outputs); there are as many classes.
        """
        return own_class_residuals(self, logits)

    def residual(
        self, logits: Float[Tensor, "samples outputs"], targets: Tensor
    ) -> Float[Tensor, "samples outputs"]:
        """Derivative of every sample's loss by its logits, before the divisor.

        Args:
            logits: Any floating dtype, shape (samples, classes) or (samples, labels).
            targets: As of `check_targets`.

        Returns:
            In the dtype and shape of the logits. Under a softmax every row sums to zero.
        """
        if self.kind == "cox":
            raise InvalidObservation(_COX)
        if self.kind == "mse":
            return 2.0 * (logits - targets.to(logits).reshape(logits.shape))
        if self.kind in CUSTOM:
            return own_residual(self, logits, targets, self.divisor(targets))
        if self.is_multi_label:
            targets = targets.reshape(logits.shape)
            zero, one = self.binary_residuals(logits)
            found = torch.where(targets == 1, one, zero)
            return found.masked_fill(~self.kept(targets), 0.0)
        if self.ignore_index is None:
            return self.mistakes(self.predict(logits), targets)
        kept = self.kept(targets)
        found = self.mistakes(self.predict(logits), targets.masked_fill(~kept, 0))
        return found.masked_fill(~kept[:, None], 0.0)

    def divisor(self, targets: Tensor) -> float:
        """What the sum of the samples' losses is divided by: their weights together, or 1.

        Args:
            targets: Of the batch, as of `check_targets`.
        """
        if not self.averages:
            return 1.0
        if self.is_multi_label or self.kind == "mse":
            whole = self.reduction == "sample_mean"
            return float(len(targets)) if whole else float(self.kept(targets).sum())
        kept = targets if self.ignore_index is None else targets[self.kept(targets)]
        if self.class_weights is None or not self.divides_by_weights:
            return float(len(kept))
        return float(self.class_weights[kept.to(self.class_weights.device)].double().sum())

    def divisor_of_labels(self, samples: float, labels: int) -> float:
        """What a sum over that many samples and labels, none of them masked, is divided by."""
        if not self.averages:
            return 1.0
        over_labels = self.is_multi_label or self.kind == "mse"
        return samples * labels if over_labels and self.reduction == "mean" else samples

    def scale(self, batch_size: float | None) -> float:
        """How many times larger a gradient is than that of the mean loss; 1 where it is not known.

        Args:
            batch_size: Number of samples K of one step, or None.
        """
        return 1 if self.averages else batch_size or 1

    def value(
        self, logits: Float[Tensor, "samples outputs *size"], targets: Tensor
    ) -> Float[Tensor, ""]:
        """The loss itself, to differentiate.

        Args:
            logits: Any floating dtype, shape (samples, classes) or (samples, labels); a map of them
                where every pixel has a target, and maps of these then.
            targets: As of `check_targets`; or, of a cross-entropy, probabilities, shape
                (samples, classes).
        """
        logits, targets = by_pixel(logits, targets)
        if self.kind == "cox":
            raise InvalidObservation(_COX)
        if self.kind == "mse":
            squares = (logits - targets.to(logits).reshape(logits.shape)).square()
            return squares.sum() / self.divisor(targets)
        if self.kind == "custom":
            return own_value(self, logits, targets)
        if self.is_multi_label:
            targets = targets.reshape(logits.shape).to(logits)
            if self.kind == "custom_labels":
                return own_value(self, logits, targets)
            return sigmoids_value(self, logits, targets, self.kept(targets), self.divisor(targets))
        whole = self.kind == "cross_entropy" and self.reduction != "sample_mean"
        return softmax_value(self, logits, targets, None if whole else self.divisor(targets))
