"""The options that tell of a client's loss."""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import click

from labelleak.cli.options import PathOption, option

if TYPE_CHECKING:
    from labelleak.loss import Loss

_FILE = PathOption("file")
_KINDS = ("cross_entropy", "focal", "bce", "sigmoid_focal", "cox")
_NUMBERS = "a text file of positive numbers, separated by spaces, commas or line breaks."


class _LossName(click.Choice):  # type: ignore[type-arg]  # click 8.1 has no such argument
    """A kind of loss, or a plug-in."""

    def __init__(self) -> None:
        super().__init__(_KINDS)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """The name, unless there is no such loss."""
        from labelleak.plugins import plugin_names

        if value not in _KINDS and (":" in value or value in plugin_names("losses")):
            return str(value)
        return str(super().convert(value, param, ctx))


@dataclass(frozen=True)
class LossOptions:
    """What is known of the client's loss; None where an option was not given."""

    loss: Annotated[
        str | None,
        option(
            "--loss",
            type=_LossName(),
            help="The client's loss. bce: a sigmoid for every label, or one logit, as "
            "BCEWithLogitsLoss. Also MODULE:FUNCTION, which returns a labelleak.Loss (it is "
            "imported and run), or such a plug-in of an installed package; it takes the options "
            "below as its arguments. Default: cross_entropy",
        ),
    ]
    reduction: Annotated[
        Literal["mean", "sum", "sample_mean"] | None,
        option(
            "--reduction",
            type=click.Choice(["mean", "sum", "sample_mean"]),
            help="Whether the client's loss averages as torch does, adds up, or divides the sum by "
            "the number of samples alone. Default: mean",
        ),
    ]
    label_smoothing: Annotated[
        float | None,
        option(
            "--label-smoothing",
            type=float,
            metavar="F",
            help="Label smoothing of the client's loss. Default: 0",
        ),
    ]
    class_weights: Annotated[
        Path | None,
        option(
            "--class-weights",
            type=_FILE,
            help="Class weights of the client's loss: a text file of positive numbers, one per "
            "class, separated by spaces, commas or line breaks.",
        ),
    ]
    temperature: Annotated[
        float | None,
        option(
            "--temperature",
            type=float,
            metavar="F",
            help="What the loss divides the logits by. Default: 1",
        ),
    ]
    positive_weights: Annotated[
        Path | None,
        option(
            "--positive-weights",
            type=_FILE,
            help=f"bce: weight of a label that is there, pos_weight, one per label: {_NUMBERS}",
        ),
    ]
    label_weights: Annotated[
        Path | None,
        option(
            "--label-weights",
            type=_FILE,
            help=f"bce: weight of each label, one per label: {_NUMBERS}",
        ),
    ]
    gamma: Annotated[
        float | None,
        option("--gamma", type=float, metavar="F", help="Exponent of a focal loss. Default: 2"),
    ]
    alpha: Annotated[
        float | None,
        option(
            "--alpha",
            type=float,
            metavar="F",
            help="sigmoid_focal: weight of a label that is there, the rest being that of one that "
            "is not. Default: equal weights",
        ),
    ]

    pixels: Annotated[
        int | None,
        option(
            "--pixels",
            type=int,
            metavar="N",
            help="Of a model that ends in a 1x1 convolution: how many pixels of a sample have a "
            "target each, height times width of what it puts out; 0 if not known, which leaves "
            "shares.",
        ),
    ]

    @property
    def files(self) -> list[Path]:
        """The files of weights that were given."""
        given = (self.class_weights, self.positive_weights, self.label_weights)
        return [path for path in given if path is not None]

    @property
    def is_plugin(self) -> bool:
        """Whether the loss is of another package or module."""
        return self.loss is not None and self.loss not in _KINDS

    @cached_property
    def made(self) -> "Loss":
        """The client's loss; made once, so that every update of a command has the same object."""
        from labelleak.loss import Loss
        from labelleak.loss_plugins import plugged_loss
        from labelleak.updates.class_weights import read_class_weights

        told: dict[str, Any] = {
            "reduction": self.reduction,
            "label_smoothing": self.label_smoothing,
            "temperature": self.temperature,
            "gamma": self.gamma,
            "alpha": self.alpha,
            "pixels": self.pixels,
        }
        for name in ("class_weights", "positive_weights", "label_weights"):
            path = getattr(self, name)
            if path is not None:
                told[name] = read_class_weights(path, name.replace("_", " "))
        given = {name: value for name, value in told.items() if value is not None}
        if self.is_plugin:
            return plugged_loss(str(self.loss), given)
        return Loss(self.loss or "cross_entropy", **given)  # type: ignore[arg-type]
