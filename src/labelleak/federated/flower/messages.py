"""Reading Flower's messages: the weights in them, and what they say of the local training."""

import logging
import math
import warnings
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
import torch
from flwr.app import Array, Error, Message
from torch import Tensor

from labelleak.federated.buffers import is_counter
from labelleak.federated.flower.contents import header_of
from labelleak.federated.occasion import Decision
from labelleak.training import LocalTraining

KEYS: Mapping[str, tuple[str, ...]] = {
    "learning_rate": ("lr", "learning-rate"),
    "batch_size": ("batch-size",),
    "steps": ("local-steps",),
    "epochs": ("local-epochs",),
    "instances": ("num-examples",),
    "optimizer": ("optimizer",),
    "momentum": ("momentum",),
    "weight_decay": ("weight-decay",),
    "proximal": ("proximal-mu",),
}
"""Where a field of `LocalTraining` stands in Flower's records; ``_`` is as ``-``.

The first name that is there counts. ``instances``, the number of local samples, is looked up in the
metrics of the reply; all others in the configuration that came with the message, then in the
run's."""


REFUSED = 1001
"""Code of the `flwr.app.Error` that is sent in place of weights that a policy refuses to send."""

FRAMEWORK = "flower"

REFUSALS = {
    verdict: f"labelleak refused to send: {reason}"
    for verdict, reason in {
        "over": "the update gives away more labels than the site's policy allows",
        "inconclusive": "the audit is inconclusive, and the site's policy sends only what it could "
        "judge",
        "failed": "not all of the reply could be audited, or is allowed by the site's policy; the "
        "site's records say why",
        "within": "the record of the audit could not be written",
    }.items()
}
"""What the server is told of a refusal, by the verdict."""

_log = logging.getLogger(__name__)


def all_keys(others: Mapping[str, tuple[str, ...]] | None) -> dict[str, tuple[str, ...]]:
    """`KEYS` with other names for some fields.

    Raises:
        ValueError: There is no such field.
    """
    for field in others or ():
        if field not in KEYS:
            raise ValueError(f"keys: {field!r} is no field of these: {', '.join(KEYS)}")
    return {**KEYS, **(others or {})}


def is_train(message_type: str) -> bool:
    """Whether a type of message is ``train``, or one of its actions (``train.action``)."""
    return message_type.split(".", maxsplit=1)[0] == "train"


def arrays_in(message: Message) -> list[dict[str, Array]]:
    """The records of arrays in a message, as they are now; none where it is an error."""
    if not message.has_content():
        return []
    return [dict(record) for record in message.content.array_records.values()]


def round_of(message: Message) -> int:
    """Number of the round: ``server-round`` of its configuration, or the message's group; or 0."""
    if message.has_content():
        for config in message.content.config_records.values():
            number = config.get("server-round")
            if isinstance(number, int) and not isinstance(number, bool):
                return number
    group = message.metadata.group_id
    return int(group) if group.isascii() and group.isdigit() and len(group) < 10 else 0


def weights_in(
    records: list[dict[str, Array]],
    whose: str,
    received: Mapping[str, Tensor | None] | None = None,
) -> dict[str, Tensor | None]:
    """The weights by name; None where an array is no tensor of numbers.

    Tensors share the memory of the message and are to be read only.

    Args:
        records: All records of arrays in a message.
        whose: Name of the message, for the error.
        received: The weights that these are an update of. An average makes floats of integers, and
            an app goes on to send integers: BatchNorm's counters, and integers that are still the
            same, are made floats, too.

    Raises:
        ValueError: There is not exactly one record: what is in a second one, nobody would audit.
    """
    if len(records) != 1:
        raise ValueError(f"{whose} holds {len(records)} records of arrays: 1 can be audited")
    weights = {name: _tensor(array) for name, array in records[0].items()}
    for name, value in weights.items():
        before = None if received is None else received.get(name)
        if value is None or before is None or value.is_floating_point():
            continue
        if before.is_floating_point() and (is_counter(name) or _is_cut_off(before, value)):
            weights[name] = value.to(before.dtype)
    return weights


def _is_cut_off(before: Tensor, value: Tensor) -> bool:
    """Whether integers are floats without their fractions."""
    return value.shape == before.shape and torch.equal(value, before.to(value.dtype))


@dataclass(frozen=True)
class Known:
    """What is known of clients' training where messages and the run's configuration say nothing.

    Attributes:
        training: The recipe.
        keys: As `KEYS`.
        run_config: The run's configuration.
    """

    training: LocalTraining
    keys: Mapping[str, tuple[str, ...]]
    run_config: Mapping[str, Any]

    def training_of(self, instruction: Message, reply: Message) -> tuple[LocalTraining, int | None]:
        """The local training that a reply comes from, and the number of local samples.

        Args:
            instruction: The message that asked for it.
            reply: The reply.

        Raises:
            ValueError: A value is no number.
            InvalidObservation: A number is impossible.
        """
        configs = [*instruction.content.config_records.values(), self.run_config]
        metrics = list(reply.content.metric_records.values())
        found = {
            field: value
            for field, names in self.keys.items()
            if (value := _look_up(metrics if field == "instances" else configs, names)) is not None
        }
        if "optimizer" in found:
            found["optimizer"] = str(found["optimizer"]).lower()
        instances = found.pop("instances", None)
        return replace(self.training, **found), instances


class Update(NamedTuple):
    """What an audit reads of a reply: weights before and after, recipe, number of samples."""

    before: dict[str, Tensor | None]
    after: dict[str, Tensor | None]
    training: LocalTraining
    instances: int | None


def update_in(
    reply: Message, received: list[dict[str, Array]], instruction: Message, known: Known
) -> Update:
    """What an audit reads of a reply.

    Args:
        reply: The reply.
        received: The records of arrays in the message that asked for it, as they were sent.
        instruction: That message.
        known: What holds for all messages.

    Returns:
        The weights before and after the local training, see `weights_in`, and what is known of it.

    Raises:
        ValueError: One of the messages cannot be read.
        InvalidObservation: What it says of the training is impossible.
    """
    check_content(reply)
    before = weights_in(received, "the message to the client")
    after = weights_in(arrays_in(reply), "the reply", before)
    return Update(before, after, *known.training_of(instruction, reply))


def _look_up(records: Iterable[Mapping[str, Any]], names: tuple[str, ...]) -> Any:
    for record in records:
        values = {str(key).replace("_", "-"): value for key, value in record.items()}
        for name in names:
            if (value := values.get(name.replace("_", "-"))) is not None:
                return value if isinstance(value, str) else _number(name, value)
    return None


def _number(name: str, value: Any) -> Any:
    """A number, or one for each step; whole ones as integers, as counts came through a float."""
    if isinstance(value, list):
        return [_number(name, entry) for entry in value]
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise ValueError(f"{name} = {value!r}: a number is needed")
    return int(value) if value == int(value) else value


def _tensor(array: Array) -> Tensor | None:
    """The array as a tensor on the message's own bytes, which ``Array.numpy`` would copy."""
    try:
        header = header_of(array)
        if array.stype != "numpy.ndarray" or header.dtype.hasobject:
            return None
        entries = math.prod(header.shape)
        flat = np.frombuffer(array.data, header.dtype, count=entries, offset=header.length)
        values = flat.reshape(header.shape, order="F" if header.by_columns else "C")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # that it is not to be written to
            return torch.from_numpy(np.asarray(values, header.dtype.newbyteorder("=")))
    except Exception:  # whatever a client sent
        return None


def check_content(reply: Message) -> None:
    """Make sure that a reply holds anything.

    Raises:
        ValueError: It is an error.
    """
    if reply.has_error():
        error = reply.error
        raise ValueError(f"the reply is an error of code {error.code}: {error.reason}")


def refusal(decision: Decision) -> Error:
    """The error in place of what a policy refuses to send.

    Its reason tells nothing that was measured by the labels, and nothing that an app wrote: the
    names of its tensors, say, which the site's record holds.
    """
    record = decision.record
    _log.warning(
        "round %s, client %s: refused to send: %s", record.round, record.client, decision.reason
    )
    return Error(REFUSED, REFUSALS[record.verdict])
