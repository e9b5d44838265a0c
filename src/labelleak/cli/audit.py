"""``labelleak audit``: what one update file gives away."""

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import click

from labelleak.cli.console import console
from labelleak.cli.options import (
    PathOption,
    attack_option,
    format_option,
    gathered,
    option,
    time_limit_option,
)
from labelleak.cli.tables import print_record
from labelleak.storage import check_writable, write_json

if TYPE_CHECKING:
    from torch import Tensor

    from labelleak.observation import Observation

_FILE = PathOption("file")
# A larger count would not be exact in double precision.
_MOST_SAMPLES = 2**53 - 1


@dataclass(frozen=True)
class UpdateOptions:
    """The update to audit, and what is known of the local training."""

    before: Annotated[
        Path,
        option("--before", type=_FILE, required=True, help="The model handed out: its state dict."),
    ]
    update: Annotated[
        Path, option("--update", type=_FILE, required=True, help="What the client sends back.")
    ]
    kind: Annotated[
        Literal["gradients", "weights"] | None,
        option(
            "--kind",
            type=click.Choice(["gradients", "weights"]),
            help="What the update holds. Default: weights where a learning rate is given, else "
            "gradients.",
        ),
    ]
    batch_size: Annotated[
        int | None,
        option(
            "--batch-size",
            type=int,
            metavar="K",
            help="Samples in one local step. Default: the number of --labels; without them it is "
            "unknown, and shares are restored instead of counts.",
        ),
    ]
    head: Annotated[
        str | None,
        option("--head", metavar="NAME", help="The final linear layer, where it is not found."),
    ]
    learning_rate: Annotated[
        float | None,
        option(
            "--learning-rate",
            type=float,
            metavar="F",
            help="Learning rate of the local steps; needed for weights.",
        ),
    ]
    local_steps: Annotated[
        int,
        option(
            "--local-steps",
            type=int,
            metavar="N",
            default=1,
            show_default=True,
            help="Optimizer steps that the update adds up.",
        ),
    ]

    def check(self) -> None:
        """Check the options before a file is read.

        Raises:
            UsageError: Two options contradict each other, or a number is impossible.
        """
        if self.kind == "gradients" and self.learning_rate is not None:
            raise click.UsageError(
                "--kind gradients has no use for --learning-rate: leave one of them out"
            )
        for name, value in (("--batch-size", self.batch_size), ("--local-steps", self.local_steps)):
            if value is not None and value < 1:
                raise click.UsageError(f"{name} {value}: it must be at least 1")
        if (self.batch_size or 1) * self.local_steps > _MOST_SAMPLES:
            raise click.UsageError(
                f"--batch-size times --local-steps is more than {_MOST_SAMPLES} (2**53 - 1) samples"
            )

    @property
    def holds(self) -> Literal["gradients", "weights"]:
        """What the update holds: as given, or weights where there is a learning rate."""
        return self.kind or ("gradients" if self.learning_rate is None else "weights")

    def read(self) -> "Observation":
        """Read the files: what the server sees of the client."""
        from labelleak.training import LocalTraining
        from labelleak.updates import read_observation

        return read_observation(
            self.before,
            self.update,
            kind=self.holds,
            training=LocalTraining(
                learning_rate=self.learning_rate,
                batch_size=self.batch_size,
                steps=self.local_steps,
            ),
            head=self.head,
        )

    def sized_by(self, observation: "Observation", labels: "Tensor", path: Path) -> "Observation":
        """The observation, with a batch size from the number of labels where none was given."""
        if self.batch_size is not None:
            return observation
        if labels.numel() % self.local_steps:
            raise click.UsageError(
                f"{path} has {labels.numel()} labels, which are not {self.local_steps} batches of "
                "one size: give --batch-size or the right --local-steps"
            )
        told = replace(observation.training, batch_size=labels.numel() // self.local_steps)
        return replace(observation, training=told)


@click.command("audit")
@gathered(UpdateOptions, "update")
@attack_option(
    "One of `labelleak attacks`. auto: proven counts where there can be a proof, else the estimate "
    "that can be trusted most."
)
@time_limit_option
@click.option(
    "--labels",
    type=_FILE,
    help="Your own labels, to score the attack: a text file of integers from 0, separated by "
    "spaces, commas or line breaks.",
)
@click.option(
    "--threshold",
    type=float,
    metavar="F",
    help="Accuracy, from 0 to 1, above which the exit status is 1; needs --labels.",
)
@format_option
@click.option("--output", type=_FILE, help="Write the record there, as JSON.")
def audit_command(
    update: UpdateOptions,
    attack: str,
    time_limit: float | None,
    labels: Path | None,
    threshold: float | None,
    output_format: str,
    output: Path | None,
) -> int:
    """Restore the labels that one update gives away.

    Files are .safetensors, or .pt with a state dict. Only the head's tensors are read.

    With --labels (a site that audits its own update) the restored counts are scored. Exit status: 0
    audited, with an accuracy at or under the --threshold if there is one; 1 over it; 3
    inconclusive.

    \b
    Examples:
      labelleak audit --before model.safetensors --update grads.safetensors \\
        --batch-size 24
      labelleak audit --before model.safetensors --update after.safetensors \\
        --learning-rate 0.1 --labels labels.txt --threshold 0.5
    """  # noqa: D301
    from labelleak.audit.labels import read_labels
    from labelleak.audit.running import audit_observation
    from labelleak.metrics import counts_of

    update.check()
    if threshold is not None and labels is None:
        raise click.UsageError("--threshold needs --labels, the truth to measure accuracy by")
    if output is not None:
        inputs = (update.before, update.update, labels)
        check_writable(output, [path for path in inputs if path is not None])
    observation = update.read()
    true_counts = None
    if labels is not None:
        own = read_labels(labels, observation.classes)
        true_counts = counts_of(own, observation.classes)
        observation = update.sized_by(observation, own, labels)
    record = audit_observation(
        observation,
        attack,
        true_counts=true_counts,
        threshold=threshold,
        time_limit=time_limit,
        source={
            "before": str(update.before),
            "update": str(update.update),
            "kind": update.holds,
            "learning_rate": update.learning_rate,
        },
    )
    content = record.as_dict()
    if output is not None:
        # It may hold the true counts.
        write_json(output, content, private=True)
    if output_format == "json":
        click.echo(json.dumps(content, indent=2))
    else:
        print_record(content, console())
    return record.exit_status
