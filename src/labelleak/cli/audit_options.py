"""The options of ``labelleak audit`` in groups, and the objects that each group describes."""

from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import click

from labelleak.cli.loss_options import LossOptions
from labelleak.cli.options import PathOption, option

if TYPE_CHECKING:
    from torch import Tensor

    from labelleak.observation import Observation
    from labelleak.training import LocalTraining

_FILE = PathOption("file")
# A larger count would not be exact in double precision.
_MOST_SAMPLES = 2**53 - 1

Kind = Literal["gradients", "weights", "difference"]


def told(group: Any) -> dict[str, Any]:
    """What the options of a group say, as plain data; those that were not given are left out."""
    values = {one.name: getattr(group, one.name) for one in fields(group)}
    return {
        name: str(value) if isinstance(value, Path) else value
        for name, value in values.items()
        if value is not None
    }


@dataclass(frozen=True)
class TrainingOptions:
    """What is known of the local training; None where an option was not given."""

    batch_size: Annotated[
        int | None,
        option(
            "--batch-size",
            type=int,
            metavar="K",
            help="Samples in one local step. Default: told by --labels or --instances; without "
            "them it is unknown, and shares are restored instead of counts.",
        ),
    ]
    learning_rate: Annotated[
        float | None,
        option(
            "--learning-rate",
            type=float,
            metavar="F",
            help="Learning rate of the local steps; needed for weights and a difference.",
        ),
    ]
    optimizer: Annotated[
        Literal["sgd", "adam", "adamw", "rmsprop", "adagrad"] | None,
        option(
            "--optimizer",
            type=click.Choice(["sgd", "adam", "adamw", "rmsprop", "adagrad"]),
            help="The client's optimizer, as torch has it. Default: not known, and read as sgd",
        ),
    ]
    local_steps: Annotated[
        int | None,
        option(
            "--local-steps",
            type=int,
            metavar="N",
            help="Optimizer steps that the update adds up, in all epochs. Default: counted from "
            "--instances and --batch-size, or one in an epoch.",
        ),
    ]
    local_epochs: Annotated[
        int | None,
        option(
            "--local-epochs",
            type=int,
            metavar="N",
            help="Passes over the local samples. Default: 1",
        ),
    ]
    instances: Annotated[
        int | None,
        option(
            "--instances",
            type=int,
            metavar="N",
            help="Number of local samples, where the last batch of an epoch is smaller or the "
            "steps are to be counted.",
        ),
    ]
    momentum: Annotated[
        float | None,
        option("--momentum", type=float, metavar="F", help="Momentum of SGD. Default: 0"),
    ]
    weight_decay: Annotated[
        float | None,
        option("--weight-decay", type=float, metavar="F", help="Weight decay of SGD. Default: 0"),
    ]
    proximal: Annotated[
        float | None,
        option(
            "--proximal",
            type=float,
            metavar="MU",
            help="Factor of FedProx's proximal term. Default: 0",
        ),
    ]

    def check(self) -> None:
        """Check the numbers before a file is read.

        Raises:
            UsageError: A number is impossible.
        """
        numbers = {
            "--batch-size": self.batch_size,
            "--local-steps": self.local_steps,
            "--local-epochs": self.local_epochs,
            "--instances": self.instances,
        }
        for name, value in numbers.items():
            if value is not None and value < 1:
                raise click.UsageError(f"{name} {value}: it must be at least 1")
            if value is not None and value > _MOST_SAMPLES:
                raise click.UsageError(f"{name}: more than {_MOST_SAMPLES} (2**53 - 1)")
        if (self.batch_size or 1) * (self.local_steps or 1) > _MOST_SAMPLES:
            raise click.UsageError(
                f"--batch-size times --local-steps is more than {_MOST_SAMPLES} (2**53 - 1) samples"
            )

    def make(self) -> "LocalTraining":
        """The client's recipe."""
        from labelleak.training import LocalTraining

        epochs, steps = self.local_epochs or 1, self.local_steps
        if steps is None and (self.instances is None or self.batch_size is None):
            steps = epochs
        return LocalTraining(
            self.optimizer,
            learning_rate=self.learning_rate,
            batch_size=self.batch_size,
            steps=steps,
            epochs=epochs,
            momentum=self.momentum,
            weight_decay=self.weight_decay or 0.0,
            proximal=self.proximal or 0.0,
        )

    def sized_by(self, observation: "Observation", labels: "Tensor", path: Path) -> "Observation":
        """The observation, with the sizes that the number of labels tells where no option did."""
        total, size = labels.shape[0], observation.batch_size
        steps = observation.local_steps // observation.training.epochs
        if size is not None:
            has_smaller_last = (steps - 1) * size < total < steps * size
            if observation.instances is None and steps > 1 and has_smaller_last:
                return replace(observation, instances=total)
            return observation
        if total % steps:
            raise click.UsageError(
                f"{path} has {total} labels, which are not {steps} batches of one size: give "
                "--batch-size, the size of all batches but a smaller last one, or the right "
                "--local-steps"
            )
        sized = replace(observation.training, batch_size=total // steps)
        return replace(observation, training=sized)


def scored_by(
    labels: Path | None, observation: "Observation", training: TrainingOptions
) -> tuple["Observation", "Tensor | None"]:
    """The observation with the sizes that a site's own labels tell, and their counts.

    Args:
        labels: The file of labels, or label sets; None where there is none.
        observation: What was read of the update.
        training: What was told of the training.
    """
    from labelleak.audit.labels import read_label_sets, read_labels
    from labelleak.metrics import counts_of

    if labels is None:
        return observation, None
    read = read_label_sets if observation.loss.is_multi_label else read_labels
    own = read(labels, observation.classes)
    counts = counts_of(own, observation.classes)
    return training.sized_by(observation, own, labels), counts


@dataclass(frozen=True)
class UpdateOptions:
    """The update to audit."""

    before: Annotated[
        Path,
        option("--before", type=_FILE, required=True, help="The model handed out: its state dict."),
    ]
    update: Annotated[
        Path,
        option(
            "--update",
            type=PathOption("file or folder"),
            required=True,
            help="What the client sends back; of audit also a folder of what several clients of a "
            "round sent.",
        ),
    ]
    kind: Annotated[
        Kind | None,
        option(
            "--kind",
            type=click.Choice(["gradients", "weights", "difference"]),
            help="What the update holds; a difference is weights after less weights before. "
            "Default: weights where a learning rate is given, else gradients.",
        ),
    ]
    head: Annotated[
        str | None,
        option("--head", metavar="NAME", help="The final linear layer, where it is not found."),
    ]

    def holds(self, training: TrainingOptions) -> Kind:
        """What the update holds: as given, or weights where there is a learning rate.

        Raises:
            UsageError: A gradient, and options that only weights have a use for.
        """
        kind = self.kind or ("gradients" if training.learning_rate is None else "weights")
        if kind != "gradients":
            return kind
        useless = {
            "--learning-rate": training.learning_rate,
            "--optimizer": training.optimizer,
            "--momentum": training.momentum,
            "--weight-decay": training.weight_decay,
            "--proximal": training.proximal,
        }
        for name, value in useless.items():
            if value is not None and self.kind is None:
                raise click.UsageError(
                    f"{name} is of weights or of a difference: they need --learning-rate, too"
                )
            if value is not None:
                raise click.UsageError(
                    f"--kind gradients has no use for {name}: leave one of them out"
                )
        return kind

    def read(self, training: TrainingOptions, loss: LossOptions) -> "Observation":
        """Read the files: what the server sees of the client."""
        from labelleak.updates import read_observation

        return read_observation(
            self.before,
            self.update,
            kind=self.holds(training),
            loss=loss.made,
            training=training.make(),
            instances=training.instances,
            head=self.head,
        )

    def inputs(self, loss: LossOptions, *others: Path | None) -> list[Path]:
        """The files that an audit reads: the update's, the loss's, and others that were given."""
        files = (self.before, self.update, *loss.files, *others)
        return [path for path in files if path is not None]
