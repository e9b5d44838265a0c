"""What a client of an experiment learns, and how: loss, targets made of classes, local steps."""

from collections.abc import Callable
from typing import Annotated, Any, Literal

import torch
from jaxtyping import Float64
from pydantic import (
    ConfigDict,
    Field,
    model_serializer,
    model_validator,
)
from torch import Tensor

from labelleak.lab.datasets import Dataset
from labelleak.lab.fields import (
    Definition,
    Fraction,
    NonNegative,
    Positive,
    PositiveInt,
    SeedNumber,
)
from labelleak.lab.parts import given_fields, labeled, refuse_further
from labelleak.loss import NAMED, Loss, Reduction
from labelleak.loss_plugins import loss_plugin, plugged_loss
from labelleak.plugins import Plugin

# Roughly how often a finding is there among the classes that have it.
_WITHIN = 0.6


class LossSetting(Definition):
    """The loss of the client, which the server knows: the arguments of `labelleak.Loss`.

    A name alone stands for a loss of that kind.

    Attributes:
        kind: As of `labelleak.Loss`, as are all others; or a plug-in, ``module:name`` of a function
            that returns a `labelleak.Loss`, or an entry point of another package. Of a plug-in any
            further field is a keyword argument.
        reduction: ``mean``, ``sum`` or ``sample_mean``.
        label_smoothing: Of a cross-entropy.
        class_weights: Of a cross-entropy or a focal loss, one for each class.
        temperature: Of the same.
        positive_weights: Of ``bce``, one for each label.
        label_weights: The same.
        masked: Whether a target of -1 is left out.
        gamma: Of a focal loss.
        alpha: Of a sigmoid focal loss.
    """

    model_config = ConfigDict(frozen=True, extra="allow")

    kind: str
    reduction: Reduction = "mean"
    label_smoothing: Fraction = 0.0
    class_weights: tuple[Positive, ...] | None = None
    temperature: Positive = 1.0
    positive_weights: tuple[Positive, ...] | None = None
    label_weights: tuple[Positive, ...] | None = None
    masked: bool = False
    gamma: NonNegative | None = None
    alpha: Annotated[float, Field(gt=0, lt=1)] | None = None

    @model_validator(mode="before")
    @classmethod
    def _named(cls, given: object) -> object:
        return {"kind": given} if isinstance(given, str) else given

    @model_validator(mode="after")
    def _exists(self) -> "LossSetting":
        if self.is_own:
            refuse_further(self)
        _ = self.told
        return self

    @model_serializer(mode="wrap")
    def _plain(self, plain: Callable[[Any], dict[str, Any]]) -> dict[str, Any]:
        """Of a plug-in what was given alone: its function has none of the other fields."""
        whole = plain(self)
        given = {"kind", *self.further}
        return whole if self.is_own else {name: whole[name] for name in whole if name in given}

    @property
    def is_own(self) -> bool:
        """Whether the loss is one of labelleak's own."""
        return self.kind in NAMED

    @property
    def label(self) -> str:
        """The kind, with the keyword arguments of a plug-in in brackets."""
        return self.kind if self.is_own else labeled(self.kind, self.further)

    @property
    def further(self) -> dict[str, Any]:
        """Keyword arguments of a plug-in; those of its own fields that are given are among them."""
        return given_fields(self, but=("kind",))

    @property
    def plugin(self) -> Plugin | None:
        """Where it comes from; None for a loss of labelleak."""
        return None if self.is_own else loss_plugin(self.kind, self.further)

    @property
    def told(self) -> Loss:
        """The loss itself.

        Raises:
            InvalidObservation: The kind has not one of the options.
            BrokenPlugin: There is no such plug-in, or it gives no loss.
        """
        if not self.is_own:
            return plugged_loss(self.kind, self.further)
        told = self.model_dump(exclude_defaults=True)
        return Loss.of(
            {
                name: list(value) if isinstance(value, tuple) else value
                for name, value in told.items()
            }
        )


class Targets(Definition):
    """Targets that are made of the classes of a data set, for losses with a sigmoid.

    Attributes:
        positive: For one logit: the classes whose samples have a target of 1, all others 0.
        findings: For several labels: how many. Each is of some classes, drawn at random, and of
            a random half or so of their samples.
        rarest: Share of the samples with the first finding, if classes are even.
        commonest: The same of the last; those between are at even distances.
        left_out: Share of the targets, drawn at random, that are -1: for a loss that is masked.
        seed: Seed of what is drawn.
    """

    positive: Annotated[tuple[Annotated[int, Field(ge=0)], ...], Field(min_length=1)] | None = None
    findings: Annotated[int, Field(ge=2)] | None = None
    rarest: Annotated[float, Field(gt=0, le=_WITHIN)] = 0.06
    commonest: Annotated[float, Field(gt=0, le=_WITHIN)] = 0.25
    left_out: Fraction = 0.0
    seed: SeedNumber = 0

    @model_validator(mode="after")
    def _one_of_both(self) -> "Targets":
        if (self.positive is None) == (self.findings is None):
            raise ValueError("either positive (one logit) or findings (several labels) is needed")
        if self.left_out and self.findings is None:
            raise ValueError("left_out goes with findings")
        return self


class Local(Definition):
    """Local training: the client sends its weights after several steps.

    Attributes:
        optimizer: What takes the steps.
        steps: Number of steps, each on `Batch.size` samples; a multiple of `epochs`.
        epochs: Number of passes over the client's samples.
        learning_rate: Learning rate of all steps.
        momentum: Momentum of SGD, without dampening.
        weight_decay: Weight decay.
        proximal: FedProx's factor mu; 0 for FedAvg.
        round: Number of the federation's round, from 1. Before a later one, other clients have
            trained in every round (FedAvg), on samples drawn in the same way.
        clients: Number of those clients; without a later round there are none.
    """

    optimizer: Literal["sgd", "adam", "adamw"] = "sgd"
    steps: PositiveInt
    epochs: PositiveInt = 1
    learning_rate: Positive
    momentum: Fraction = 0.0
    weight_decay: NonNegative = 0.0
    proximal: NonNegative = 0.0
    round: PositiveInt = 1
    clients: PositiveInt = 10

    @property
    def training(self) -> dict[str, Any]:
        """The recipe as arguments of `LocalTraining`, without the batch size."""
        return self.model_dump(exclude={"steps", "round", "clients"})

    @model_validator(mode="after")
    def _whole_epochs(self) -> "Local":
        if self.steps % self.epochs:
            raise ValueError(
                f"steps {self.steps} is not a multiple of epochs {self.epochs}: each epoch has the "
                "same number of steps"
            )
        if self.momentum and self.optimizer != "sgd":
            raise ValueError(f"momentum is one of sgd, and the optimizer is {self.optimizer}")
        return self


def check_task(loss: LossSetting | None, targets: Targets | None) -> None:
    """Refuse a loss without its kind of targets.

    Raises:
        ValueError: One of them is there without the other, or targets are left out that the loss
            takes.
    """
    told = Loss() if loss is None else loss.told
    if told.kind in ("mse", "cox"):
        raise ValueError(f"the loss {told.kind!r} has no counts of classes to restore")
    sigmoids = told.is_multi_label
    if sigmoids and targets is None:
        raise ValueError("a loss with a sigmoid needs targets: positive or findings")
    if targets is None:
        return
    if not sigmoids:
        raise ValueError("targets are for a loss with a sigmoid: loss = { kind = 'bce' }")
    if targets.left_out and not told.masked:
        raise ValueError("targets.left_out needs a loss that leaves them out: masked = true")


def task_title(loss: LossSetting, targets: Targets | None) -> str:
    """Loss and targets in a few words."""
    if loss.is_own:
        told = loss.model_dump(mode="json", exclude_defaults=True, exclude={"kind"})
        text = [name.replace("_", " ") for name in (loss.kind, *told)]
    else:
        text = [loss.label]
    if targets is not None:
        text.append(f"{targets.findings} labels" if targets.findings else "one logit")
    return ", ".join(text)


def relabeled(dataset: Dataset, targets: Targets) -> Dataset:
    """The data set with targets in place of, or beside, its classes.

    Args:
        dataset: The data set.
        targets: What its samples have.

    Returns:
        The data set. Of one logit its classes are 0 and 1. Of several labels samples keep their
        classes, which batches are drawn by, and have label sets as `Dataset.label_sets`.

    Raises:
        ValueError: A positive class is none of the data set's, or all are.
    """
    what = f"{targets.findings}-findings-{targets.seed}" if targets.findings else "one-logit"
    name = f"{dataset.name}-{what}"
    if targets.positive is not None:
        given = set(targets.positive)
        if not given < set(range(dataset.classes)):
            raise ValueError(
                f"targets.positive: some of the classes 0 to {dataset.classes - 1}, and not all, "
                "are needed"
            )
        labels = torch.isin(dataset.labels, torch.tensor(sorted(given))).long()
        return dataset.relabeled(name, labels)
    shares = shares_of_findings(targets, dataset.classes)
    random = torch.Generator().manual_seed(targets.seed)
    shape = (len(dataset), shares.shape[1])
    drawn = torch.rand(shape, generator=random, dtype=torch.float64)
    sets = (drawn < shares[dataset.labels]).long()
    if targets.left_out:
        hidden = torch.rand(shape, generator=random, dtype=torch.float64) < targets.left_out
        sets = sets.masked_fill(hidden, -1)
    return dataset.relabeled(name, sets)


def shares_of_findings(targets: Targets, classes: int) -> Float64[Tensor, "classes labels"]:
    """How often samples of each class have each finding.

    Args:
        targets: With findings.
        classes: Number of classes.

    Returns:
        Shares, float64, shape (classes, labels). Their mean over the classes is what `targets` say.
    """
    assert targets.findings is not None, "the caller has checked"
    random = torch.Generator().manual_seed(targets.seed)
    wanted = torch.linspace(
        targets.rarest, targets.commonest, targets.findings, dtype=torch.float64
    )
    shares = torch.zeros(classes, targets.findings, dtype=torch.float64)
    for label, share in enumerate(wanted.tolist()):
        number = min(classes, max(1, round(share * classes / _WITHIN)))
        having = torch.randperm(classes, generator=random)[:number]
        shares[having, label] = min(1.0, share * classes / number)
    return shares
