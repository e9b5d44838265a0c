"""``labelleak audit``: what one update file gives away."""

import json
import sys
from pathlib import Path

import click
import torch
from torch import Tensor

from labelleak.attacks import attacks
from labelleak.capture import read_observation
from labelleak.cli.output import console, format_option, print_record
from labelleak.errors import UnreadableFile
from labelleak.metrics import counts_of
from labelleak.records import audit as audit_observation
from labelleak.records import write_json

_FILE = click.Path(dir_okay=False, path_type=Path)


@click.command()
@click.option("--before", type=_FILE, required=True, help="The model handed out: its state dict.")
@click.option("--update", type=_FILE, required=True, help="What the client sends back.")
@click.option(
    "--kind",
    type=click.Choice(["gradients", "weights"]),
    help="What the update holds. Default: weights where a learning rate is given, else gradients.",
)
@click.option("--batch-size", type=int, help="Samples in one local step, if the server knows it.")
@click.option("--head", help="Name of the final linear layer, if it is not found by itself.")
@click.option("--learning-rate", type=float, help="Of the local steps; needed for weights.")
@click.option("--local-steps", type=int, default=1, show_default=True, help="Optimiser steps.")
@click.option(
    "--attack",
    type=click.Choice(["auto", *attacks()]),
    default="auto",
    show_default=True,
    help="See `labelleak attacks`.",
)
@click.option("--labels", type=_FILE, help="Your own labels, to score the attack: integers.")
@click.option(
    "--threshold",
    type=click.FloatRange(0.0, 1.0),
    help="Accuracy above which the exit status is 1; needs --labels.",
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
    labels: Path | None,
    threshold: float | None,
    output_format: str,
    output: Path | None,
) -> None:
    """Restore the labels that one update gives away.

    Files are .safetensors, or .pt with a state dict; only the head's tensors are read. With
    --labels (a site auditing its own update) the restored counts are scored; the threshold on
    accuracy then decides the exit status: 0 at or under it, 1 over it, 3 inconclusive.
    """
    kind = kind or ("gradients" if learning_rate is None else "weights")
    observation = read_observation(
        before,
        update,
        kind="weights" if kind == "weights" else "gradients",
        head=head,
        learning_rate=learning_rate,
        local_steps=local_steps,
        batch_size=batch_size,
    )
    record = audit_observation(
        observation,
        attack,
        true_counts=None
        if labels is None
        else counts_of(read_labels(labels, observation.classes), observation.classes),
        threshold=threshold,
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


def read_labels(path: Path, classes: int) -> Tensor:
    """The labels of a text file: integers from 0, apart by spaces, commas or line breaks.

    Raises:
        UnreadableFile: There is no such file, or it holds anything else.
    """
    try:
        words = path.read_text(encoding="utf-8").replace(",", " ").split()
    except OSError as error:
        raise UnreadableFile(f"{path}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise UnreadableFile(f"{path}: is no text file of labels") from None
    if not words:
        raise UnreadableFile(f"{path}: holds no labels")
    labels = []
    for place, word in enumerate(words, start=1):
        if not (word.isascii() and word.isdigit() and int(word[:19]) < classes):
            raise UnreadableFile(
                f"{path}: label {place} is {word[:40]!r}: integers from 0 to {classes - 1} are "
                "needed"
            )
        labels.append(int(word))
    return torch.tensor(labels)
