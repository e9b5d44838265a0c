"""The options that give a site's own model and data, which no server has."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import click

from labelleak.cli.options import PathOption, option

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor, nn

    from labelleak.advice import LocalClient
    from labelleak.observation import Observation


@dataclass(frozen=True)
class ClientOptions:
    """The model and the data behind an update; None where an option was not given."""

    model: Annotated[
        str | None,
        option(
            "--model",
            metavar="MODULE:FUNCTION",
            help="A function of yours, without arguments, that returns the network in the mode "
            "that clients train it in; it is imported and run. Goes with --data; in audit also "
            "alone, for attacks that need the whole model, or with --auxiliary.",
        ),
    ]
    data: Annotated[
        Path | None,
        option(
            "--data",
            type=PathOption("file"),
            help="The site's samples: .safetensors or .npz with inputs and labels, those of the "
            "update first.",
        ),
    ]

    def check(self, labels: Path | None, *, needs_data: bool) -> None:
        """Check the options before a file is read.

        Args:
            labels: The file of labels, or None.
            needs_data: Whether the model is of no use without data.

        Raises:
            UsageError: One of them is there without the other, or without labels.
        """
        if self.model is None and self.data is not None:
            raise click.UsageError("--data needs --model, the network that clients train")
        if self.model is not None and self.data is None and needs_data:
            raise click.UsageError("--model needs --data, the samples of the update")
        if self.data is not None and labels is None:
            raise click.UsageError("--model and --data need --labels, those of the update")

    def make(self, before: Path) -> "LocalClient | None":
        """The site's own network with the weights that were handed out, and its samples."""
        if self.model is None or self.data is None:
            return None
        return _client(self.model, self.data, before)

    def ceiling(
        self, before: Path, observation: "Observation", true_counts: "Tensor"
    ) -> dict[str, Any] | None:
        """What attacks of moments can reach by these samples; None where there are none."""
        from labelleak.advice import ceiling_of

        client = self.make(before)
        return None if client is None else ceiling_of(observation, client, true_counts)


def _client(model: str, data: Path, before: Path) -> "LocalClient":
    from labelleak.advice import LocalClient

    return LocalClient(network_at(model, before), *read_samples(data))


def network_at(model: str, before: Path) -> "nn.Module":
    """The network of ``--model`` with the weights that were handed out.

    Args:
        model: The module and the function of it.
        before: File of the state dict. Its integers, such as BatchNorm's counts, are not read.

    Raises:
        UsageError: It returns no network.
        BrokenPlugin: There is no such function, or it fails.
        UnreadableFile: The file is damaged, or is of another network.
    """
    from labelleak.errors import UnreadableFile
    from labelleak.updates import open_tensors

    network = built_network(model)
    state, own = open_tensors(before), network.state_dict()
    weights = {
        name: state.tensor(name) if value.is_floating_point() else value
        for name, value in own.items()
        if name in state.shapes
    }
    try:
        network.load_state_dict(weights)
    except RuntimeError as error:
        reason = " ".join(str(error).split())
        raise UnreadableFile(f"{before}: is not of the network {model}: {reason}") from None
    return network


def read_samples(data: Path) -> tuple["Tensor", "Tensor"]:
    """Inputs and labels of a file of samples.

    Raises:
        UnreadableFile: It is damaged, lacks one of them, or they are of other types.
    """
    from labelleak.errors import UnreadableFile
    from labelleak.updates.files import open_stored

    stored = open_stored(data)
    missing = [name for name in ("inputs", "labels") if name not in stored.shapes]
    if missing:
        raise UnreadableFile(f"{data}: holds no {' and no '.join(missing)}")
    inputs, labels = stored.read("inputs"), stored.read("labels")
    if labels.is_floating_point() or labels.ndim not in (1, 2) or not inputs.is_floating_point():
        raise UnreadableFile(
            f"{data}: inputs must be floating-point numbers, and labels one whole number for each, "
            "or a row of zeros and ones"
        )
    return inputs, labels.long()


def built_network(model: str) -> "nn.Module":
    """What the function of ``--model`` returns.

    Raises:
        UsageError: It returns no network.
        BrokenPlugin: There is no such function, or it fails.
    """
    from typing import cast

    from torch import nn

    from labelleak.errors import BrokenPlugin
    from labelleak.plugins import load_object, what_went_wrong

    make = cast("Callable[[], object]", load_object(model, "network"))
    try:
        network = make()
    except Exception as error:  # whatever other people's code raises
        raise BrokenPlugin(f"--model {model}: {what_went_wrong(error)}") from None
    if not isinstance(network, nn.Module):
        raise click.UsageError(f"--model {model}: returns a {type(network).__name__}, no network")
    return network
