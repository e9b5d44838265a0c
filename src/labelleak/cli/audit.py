"""``labelleak audit``: what one update file gives away."""

from pathlib import Path

import click

from labelleak.cli.audit_options import TrainingOptions, UpdateOptions, scored_by, told
from labelleak.cli.client_options import ClientOptions
from labelleak.cli.console import deliver
from labelleak.cli.loss_options import LossOptions
from labelleak.cli.options import (
    PathOption,
    attack_option,
    format_option,
    gathered,
    time_limit_option,
)
from labelleak.cli.rule_options import RuleOptions
from labelleak.cli.verdicts import print_record
from labelleak.storage import check_writable

_FILE = PathOption("file")


@click.command("audit")
@gathered(UpdateOptions, "update")
@gathered(TrainingOptions, "training")
@gathered(LossOptions, "loss")
@attack_option(
    "One of `labelleak attacks`. auto: proven counts where there can be a proof, else the estimate "
    "that can be trusted most."
)
@time_limit_option
@click.option(
    "--labels",
    type=_FILE,
    help="Your own labels, to score the attack: a text file of integers from 0, separated by "
    "spaces, commas or line breaks. Of several labels with a sigmoid each: a line for every "
    "sample, with a 0 or 1 for every label.",
)
@gathered(RuleOptions, "rule")
@gathered(ClientOptions, "client")
@format_option
@click.option("--output", type=_FILE, help="Write the record there, as JSON.")
def audit_command(
    update: UpdateOptions,
    training: TrainingOptions,
    loss: LossOptions,
    attack: str,
    time_limit: float | None,
    labels: Path | None,
    rule: RuleOptions,
    client: ClientOptions,
    output_format: str,
    output: Path | None,
) -> int:
    """Restore the labels that one update gives away.

    Files are .safetensors, .npz, or .pt with a state dict. Only the head's tensors are read. What
    is known of the client's training and loss is told by options, and not guessed.

    With --labels (a site that audits its own update) the restored counts are scored, and judged by
    the --measure. Exit status: 0 audited, at or under the limit if there is one; 1 over it; 3
    inconclusive. With --model and --data it says, too, what attacks of this kind can reach at best.

    \b
    Examples:
      labelleak audit --before model.safetensors --update gradients.safetensors \\
        --batch-size 24
      labelleak audit --before model.safetensors --update weights.safetensors \\
        --learning-rate 0.1 --labels labels.txt --measure advantage --threshold 0.5
      labelleak audit --before model.safetensors --update weights.safetensors \\
        --learning-rate 0.1 --momentum 0.9 --batch-size 8 --instances 24 --local-epochs 2
      labelleak audit --before model.safetensors --update gradients.safetensors \\
        --batch-size 32 --loss bce --positive-weights weights.txt
    """  # noqa: D301
    from labelleak.audit.running import audit_observation

    training.check()
    kind = update.holds(training)
    rule.check(labels)
    client.check(labels)
    if output is not None:
        check_writable(output, update.inputs(loss, labels, rule.prior, client.data))
    observation, true_counts = scored_by(labels, update.read(training, loss), training)
    ceiling = None
    if true_counts is not None:
        ceiling = client.ceiling(update.before, observation, true_counts)
    record = audit_observation(
        observation,
        attack,
        true_counts=true_counts,
        ceiling=ceiling,
        **rule.make(),
        time_limit=time_limit,
        source={**told(update), "kind": kind, **told(training), **told(loss)},
    )
    deliver(record.as_dict(), output, output_format, print_record)
    return record.exit_status
