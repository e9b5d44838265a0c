"""``labelleak audit``: what one update file gives away."""

from pathlib import Path

import click

from labelleak.cli.audit_folder import audit_folder, watched
from labelleak.cli.audit_options import TrainingOptions, UpdateOptions
from labelleak.cli.audit_request import AuditRequest
from labelleak.cli.client_options import ClientOptions
from labelleak.cli.console import deliver, progress_bar
from labelleak.cli.loss_options import LossOptions
from labelleak.cli.options import (
    PathOption,
    attack_option,
    format_option,
    gathered,
    module_dir_option,
    time_limit_option,
)
from labelleak.cli.rule_options import RuleOptions
from labelleak.cli.verdicts import print_record
from labelleak.storage import check_writable

_EITHER = PathOption("file or folder")


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
    type=_EITHER,
    help="Your own labels, to score the attack: a text file of integers from 0, separated by "
    "spaces, commas or line breaks. Of several labels with a sigmoid each: a line for every "
    "sample, with a 0 or 1 for every label. Of a folder of updates: a folder, with NAME.txt for "
    "NAME.safetensors.",
)
@gathered(RuleOptions, "rule")
@gathered(ClientOptions, "client")
@module_dir_option
@click.option(
    "--auxiliary",
    type=PathOption("file"),
    help="Samples that a server could have, none of them the client's: .safetensors or .npz with "
    "inputs and labels. Needs --model; the whole update is read then.",
)
@format_option
@click.option(
    "--output",
    type=_EITHER,
    help="Write the record there, as JSON. Of a folder of updates: a folder of records, after "
    "which an interrupted command goes on.",
)
def audit_command(
    update: UpdateOptions,
    training: TrainingOptions,
    loss: LossOptions,
    attack: str,
    time_limit: float | None,
    labels: Path | None,
    rule: RuleOptions,
    client: ClientOptions,
    auxiliary: Path | None,
    output_format: str,
    output: Path | None,
) -> int:
    """Restore the labels that one update gives away.

    Files are .safetensors, .npz, or .pt with a state dict. Only the head's tensors are read, unless
    there are samples of the server's. What is known of the client's training and loss is told by
    options, and not guessed. A folder of updates has a verdict for each; the exit status is the
    gravest one.

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
      labelleak audit --before model.safetensors --update received/ --learning-rate 0.1 \\
        --batch-size 32 --instances 640 --model my_app:Net --module-dir . \\
        --auxiliary validation.npz --attack virtual --output records/
    """  # noqa: D301
    request = AuditRequest(training, loss, attack, time_limit, rule, client, auxiliary)
    request.check(labels)
    update.holds(training)
    if update.update.is_dir():
        return audit_folder(request, update, labels, output, output_format)
    if output is not None:
        check_writable(output, request.inputs(update, labels))
    with progress_bar() as bar:
        record = request.run(update, labels, **watched(attack, bar))
    deliver(record.as_dict(), output, output_format, print_record)
    return record.exit_status
