"""``labelleak audit``: what one update file gives away."""

import json
import sys
from dataclasses import replace
from pathlib import Path

import click

from labelleak.attacks import list_attacks
from labelleak.audit.labels import read_labels
from labelleak.audit.running import audit_observation
from labelleak.cli.output import PathOption, console, format_option, print_record, time_limit_option
from labelleak.metrics import counts_of
from labelleak.storage import check_writable, write_json
from labelleak.training import LocalTraining
from labelleak.updates import read_observation

_FILE = PathOption("file")
# Above, the counts would not be exact in double precision.
_MOST_SAMPLES = 2**53 - 1


@click.command()
@click.option("--before", type=_FILE, required=True, help="The model handed out: its state dict.")
@click.option("--update", type=_FILE, required=True, help="What the client sends back.")
@click.option(
    "--kind",
    type=click.Choice(["gradients", "weights"]),
    help="What the update holds. Default: weights where a learning rate is given, else gradients.",
)
@click.option(
    "--batch-size",
    type=int,
    metavar="K",
    help="Samples in one local step. Default: as many as --labels has; else unknown, and shares "
    "are restored instead of numbers.",
)
@click.option("--head", metavar="NAME", help="The final linear layer, if it is not found.")
@click.option(
    "--learning-rate", type=float, metavar="F", help="Of the local steps; needed for weights."
)
@click.option(
    "--local-steps",
    type=int,
    metavar="N",
    default=1,
    show_default=True,
    help="Optimiser steps that the update adds up.",
)
@click.option(
    "--attack",
    type=click.Choice(["auto", *list_attacks()]),
    metavar="NAME",
    default="auto",
    show_default=True,
    help="One of `labelleak attacks`; auto: counts that are proven where they can be, else the "
    "estimate that can be trusted most.",
)
@time_limit_option
@click.option(
    "--labels",
    type=_FILE,
    help="Your own labels, to score the attack: integers from 0, apart by spaces, commas or line "
    "breaks.",
)
@click.option(
    "--threshold",
    type=float,
    metavar="F",
    help="Accuracy, from 0 to 1, above which the exit status is 1; needs --labels.",
)
@format_option
@click.option("--output", type=_FILE, help="Write the record there, as JSON.")
def audit(
    before: Path,
    update: Path,
    kind: str | None,
    batch_size: int | None,
    head: str | None,
    learning_rate: float | None,
    local_steps: int,
    attack: str,
    time_limit: float | None,
    labels: Path | None,
    threshold: float | None,
    output_format: str,
    output: Path | None,
) -> None:
    """Restore the labels that one update gives away.

    Files are .safetensors, or .pt with a state dict; only the head's tensors are read. With
    --labels (a site auditing its own update) the restored counts are scored, and the threshold on
    accuracy decides the exit status: 0 at or under it, 1 over it, 3 inconclusive.

    \b
    Examples:
      labelleak audit --before model.safetensors --update grads.safetensors \\
        --batch-size 24
      labelleak audit --before model.safetensors --update after.safetensors \\
        --learning-rate 0.1 --labels labels.txt --threshold 0.5
    """  # noqa: D301
    _check_options(kind, batch_size, learning_rate, local_steps, labels, threshold)
    if output is not None:
        check_writable(output, [path for path in (before, update, labels) if path is not None])
    kind = kind or ("gradients" if learning_rate is None else "weights")
    observation = read_observation(
        before,
        update,
        kind="weights" if kind == "weights" else "gradients",
        training=LocalTraining(
            learning_rate=learning_rate, batch_size=batch_size, steps=local_steps
        ),
        head=head,
    )
    true_counts = None
    if labels is not None:
        own = read_labels(labels, observation.classes)
        true_counts = counts_of(own, observation.classes)
        if batch_size is None:
            if own.numel() % local_steps:
                raise click.UsageError(
                    f"{labels} has {own.numel()} labels, which are not {local_steps} batches of "
                    "one size: give --batch-size or the right --local-steps"
                )
            told = replace(observation.training, batch_size=own.numel() // local_steps)
            observation = replace(observation, training=told)
    record = audit_observation(
        observation,
        attack,
        true_counts=true_counts,
        threshold=threshold,
        time_limit=time_limit,
        source={
            "before": str(before),
            "update": str(update),
            "kind": kind,
            "learning_rate": learning_rate,
        },
    )
    content = record.as_dict()
    if output is not None:
        write_json(output, content)
    if output_format == "json":
        click.echo(json.dumps(content, indent=2))
    else:
        print_record(content, console())
    sys.exit(record.exit_status)


def _check_options(
    kind: str | None,
    batch_size: int | None,
    learning_rate: float | None,
    local_steps: int,
    labels: Path | None,
    threshold: float | None,
) -> None:
    """Refuse what contradicts itself before anything is read.

    Raises:
        UsageError: Two options do not go together, or there cannot be so many samples.
    """
    if kind == "gradients" and learning_rate is not None:
        raise click.UsageError(
            "--kind gradients has no use for --learning-rate: leave one of them out"
        )
    if threshold is not None and labels is None:
        raise click.UsageError("--threshold needs --labels, the truth to measure accuracy by")
    for option, value in (("--batch-size", batch_size), ("--local-steps", local_steps)):
        if value is not None and value < 1:
            raise click.UsageError(f"{option} {value}: it must be at least 1")
    if (batch_size or 1) * local_steps > _MOST_SAMPLES:
        raise click.UsageError(
            f"--batch-size times --local-steps is more than {_MOST_SAMPLES} (2**53 - 1) samples"
        )
