"""``labelleak advise``: what a change would cost and buy, measured on one update."""

from pathlib import Path

import click

from labelleak.cli.audit_options import TrainingOptions, UpdateOptions, scored_by, told
from labelleak.cli.client_options import ClientOptions
from labelleak.cli.console import deliver, progress_bar
from labelleak.cli.loss_options import LossOptions
from labelleak.cli.options import (
    PathOption,
    Seconds,
    attack_option,
    format_option,
    gathered,
    module_dir_option,
)
from labelleak.cli.rule_options import RuleOptions
from labelleak.cli.verdicts import print_advice
from labelleak.storage import check_writable

_FILE = PathOption("file")


@click.command("advise")
@gathered(UpdateOptions, "update")
@gathered(TrainingOptions, "training")
@gathered(LossOptions, "loss")
@attack_option("One of `labelleak attacks`.")
@click.option(
    "--time-limit",
    type=Seconds(),
    metavar="SECONDS",
    default=1.0,
    show_default=True,
    help="Time after which a search of each audit ends.",
)
@click.option(
    "--labels", type=_FILE, help="The labels of the update, to score by: a text file as of `audit`."
)
@gathered(RuleOptions, "rule")
@gathered(ClientOptions, "client")
@module_dir_option
@format_option
@click.option("--output", type=_FILE, help="Write the advice there, as JSON.")
def advise_command(
    update: UpdateOptions,
    training: TrainingOptions,
    loss: LossOptions,
    attack: str,
    time_limit: float,
    labels: Path | None,
    rule: RuleOptions,
    client: ClientOptions,
    output_format: str,
    output: Path | None,
) -> int:
    """Audit an update again after each change that a site could make.

    Noise, clipping, sparsification, quantization and a final layer kept local are tried on the
    update alone. Larger batches, more local steps and later rounds need --model, --data and
    --labels. Each change is shown with its price, the cosine to the plain update, and with what it
    buys: what the attack still restores. The limit is half of what a guess leaves open, unless
    --measure and --threshold say otherwise.

    The exit status is that of the update as it is: 0, 1 over the limit, or 3 inconclusive.

    \b
    Examples:
      labelleak advise --before model.safetensors --update weights.safetensors \\
        --learning-rate 0.1 --labels labels.txt
    """  # noqa: D301
    from labelleak.advice import advise

    training.check()
    kind = update.holds(training)
    rule.check(labels)
    client.check(labels, needs_data=True)
    if update.update.is_dir():
        raise click.UsageError(f"--update {update.update}: is a folder, of which audit is for")
    if output is not None:
        check_writable(output, update.inputs(loss, labels, rule.prior, client.data))
    observation, true_counts = scored_by(labels, update.read(training, loss), training)
    with progress_bar() as bar:
        task = bar.add_task("Trying changes", total=None)
        advice = advise(
            observation,
            true_counts,
            client=client.make(update.before),
            attack=attack,
            time_limit=time_limit,
            source={**told(update), "kind": kind, **told(training), **told(loss)},
            progress=lambda: bar.advance(task),
            **rule.make(),
        )
    deliver(advice.as_dict(), output, output_format, print_advice)
    return advice.plain.exit_status
