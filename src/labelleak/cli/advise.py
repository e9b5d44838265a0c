"""``labelleak advise``: what a change would cost and buy, measured on one update."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from labelleak.cli.audit_options import LossOptions, TrainingOptions, UpdateOptions, told
from labelleak.cli.console import console, progress_bar
from labelleak.cli.options import PathOption, attack_option, format_option, gathered
from labelleak.cli.rule_options import RuleOptions
from labelleak.cli.verdicts import print_advice
from labelleak.storage import check_writable, write_json

if TYPE_CHECKING:
    from torch import Tensor

    from labelleak.advice import LocalClient

_FILE = PathOption("file")


@click.command("advise")
@gathered(UpdateOptions, "update")
@gathered(TrainingOptions, "training")
@gathered(LossOptions, "loss")
@attack_option("One of `labelleak attacks`.")
@click.option(
    "--time-limit",
    type=click.FloatRange(min=0.0, min_open=True),
    metavar="SECONDS",
    default=1.0,
    show_default=True,
    help="Time after which a search of each audit ends.",
)
@click.option(
    "--labels", type=_FILE, help="The labels of the update, to score by: a text file of integers."
)
@gathered(RuleOptions, "rule")
@click.option(
    "--model",
    metavar="MODULE:FUNCTION",
    help="A function of yours, without arguments, that returns the network. It is imported and "
    "run. With --data: tries larger batches, more local steps and later rounds, too.",
)
@click.option(
    "--data",
    type=_FILE,
    help="The samples: .safetensors or .npz with inputs and labels, those of the update first.",
)
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
    model: str | None,
    data: Path | None,
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
    from labelleak.audit.labels import read_labels
    from labelleak.metrics import counts_of

    training.check()
    kind = update.holds(training)
    rule.check(labels)
    if (model is None) != (data is None):
        raise click.UsageError("--model and --data go together")
    if model is not None and labels is None:
        raise click.UsageError("--model and --data need --labels, those of the update")
    if output is not None:
        inputs = [*update.inputs(loss, labels), *filter(None, [rule.prior, data])]
        check_writable(output, inputs)
    observation = update.read(training, loss)
    true_counts = None
    if labels is not None:
        own = read_labels(labels, observation.classes)
        true_counts = counts_of(own, observation.classes)
        observation = training.sized_by(observation, own, labels)
    client = None if model is None or data is None else _client(model, data, update.before)
    with progress_bar() as bar:
        task = bar.add_task("Trying changes", total=None)
        advice = advise(
            observation,
            true_counts,
            client=client,
            attack=attack,
            time_limit=time_limit,
            source={**told(update), "kind": kind, **told(training), **told(loss)},
            progress=lambda: bar.advance(task),
            **rule.make(),
        )
    content = advice.as_dict()
    if output is not None:
        write_json(output, content, private=True)
    if output_format == "json":
        click.echo(json.dumps(content, indent=2))
    else:
        print_advice(content, console())
    return advice.plain.exit_status


def _client(model: str, data: Path, before: Path) -> "LocalClient":
    """The site's own network with the weights that were handed out, and its samples."""
    from labelleak.advice import LocalClient
    from labelleak.errors import UnreadableFile
    from labelleak.updates import open_tensors

    network = _built(model)
    state = open_tensors(before)
    weights = {name: state.tensor(name) for name in network.state_dict() if name in state.shapes}
    try:
        network.load_state_dict(weights)
    except RuntimeError as error:
        reason = " ".join(str(error).split())
        raise UnreadableFile(f"{before}: is not of the network {model}: {reason}") from None
    return LocalClient(network, *_samples(data))


def _samples(data: Path) -> tuple["Tensor", "Tensor"]:
    """Inputs and labels."""
    from labelleak.errors import UnreadableFile
    from labelleak.updates.files import open_stored

    stored = open_stored(data)
    missing = [name for name in ("inputs", "labels") if name not in stored.shapes]
    if missing:
        raise UnreadableFile(f"{data}: holds no {' and no '.join(missing)}")
    inputs, labels = stored.read("inputs"), stored.read("labels")
    if labels.is_floating_point() or labels.ndim != 1 or not inputs.is_floating_point():
        raise UnreadableFile(
            f"{data}: inputs must be floating-point numbers, and labels one whole number for each"
        )
    return inputs, labels.long()


def _built(model: str) -> Any:
    from importlib import import_module

    from torch import nn

    module, _, function = model.partition(":")
    try:
        network = getattr(import_module(module), function)()
    except (ImportError, AttributeError, TypeError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise click.UsageError(
            f"--model {model}: module.name:function is needed ({reason})"
        ) from None
    if not isinstance(network, nn.Module):
        raise click.UsageError(f"--model {model}: returns a {type(network).__name__}, no network")
    return network
