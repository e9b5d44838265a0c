"""Changes that need the client: a larger batch, more local steps, a later round."""

from collections.abc import Iterator
from copy import deepcopy
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Int, Shaped
from torch import Tensor, nn

from labelleak.advice.trials import Change, Judging, Untried, cosine_of
from labelleak.audit.ceiling import moment_ceiling
from labelleak.errors import InvalidObservation, LabelLeakError
from labelleak.federated.local_training import train_locally
from labelleak.loss import Loss
from labelleak.metrics import counts_of
from labelleak.observation import Observation
from labelleak.training import LocalTraining
from labelleak.updates import capture
from labelleak.updates.one_logit import loss_of_one, training_of_one

# How many times more samples in a batch, epochs, and rounds.
_LARGER, _MORE_EPOCHS, _LATER = (2, 4), (5,), (1, 5)
# Into how many local steps a batch is divided.
_SMALLER = 4
# An update made again has this cosine with the one that was sent, or its recipe is another one.
_SAME = 0.99
RETRAINED = "batch size, local steps, a later round"
"""Name of all changes for which the client is trained again."""


@dataclass(frozen=True, eq=False)
class LocalClient:
    """The model and the data behind an update, which a site has and a server does not.

    Attributes:
        model: The network with the weights that the server handed out, in the mode that the client
            trains in.
        inputs: Inputs of the site's samples, shape (samples, ...); those of the update first.
        labels: Their classes, int64, shape (samples,); or zeros and ones for every label, shape
            (samples, labels).

    Raises:
        InvalidObservation: There is not one label, or one set of labels, for each input.

    Examples:
        >>> client = LocalClient(nn.Linear(3, 2), torch.rand(4, 3), torch.tensor([0, 1, 1, 1]))
        >>> len(client.labels)
        4
    """

    model: nn.Module
    inputs: Tensor
    labels: Shaped[Tensor, "samples *labels"]

    def __post_init__(self) -> None:
        if len(self.inputs) != len(self.labels):
            raise InvalidObservation(
                f"{len(self.inputs)} inputs and {len(self.labels)} labels: one label per input is "
                "needed"
            )

    def counts(self, number: int, classes: int) -> Int[Tensor, " classes"]:
        """How many of the first samples are of each class, or have each label.

        Args:
            number: Number of those samples.
            classes: Number of classes, or of labels.

        Raises:
            InvalidObservation: The labels are not those of so many classes.
        """
        try:
            return counts_of(self.labels[:number].cpu(), classes)
        except ValueError as error:
            raise InvalidObservation(f"labels of the client: {error}") from None


def ceiling_of(
    plain: Observation, client: LocalClient, true_counts: Int[Tensor, " classes"]
) -> dict[str, Any]:
    """The ceiling of an update by the client's samples, or why there is none, as plain data.

    Args:
        plain: The update.
        client: The model and the data behind it.
        true_counts: Its counts, int64, shape (classes,).

    Returns:
        The fields of `labelleak.audit.Ceiling` and its sentence, ``text``; or that sentence alone.
    """
    if plain.head.per_pixel:
        return {"text": "There is no ceiling for attacks of moments on a head of pixels."}
    if plain.is_one_logit or plain.loss.is_multi_label:
        return {"text": "There is no ceiling for attacks of moments under a sigmoid."}
    try:
        seen = replace(plain, model=client.model)
        return moment_ceiling(seen, true_counts, client.inputs, client.labels).as_dict()
    except LabelLeakError as error:
        return {"text": f"There is no ceiling for attacks of moments here: {error}"}


def retrainings(
    judging: Judging, client: LocalClient, true_counts: Int[Tensor, " classes"]
) -> Iterator[Change | Untried]:
    """Make the update anew, with other recipes, and audit each.

    Args:
        judging: The plain update, and how to audit it.
        client: The model and the data.
        true_counts: The counts behind the plain update, int64, shape (classes,).

    Yields:
        Each change, and what could not be tried.

    Raises:
        InvalidObservation: The client's first samples are not those of the update.
    """
    plain = judging.plain
    if plain.head.per_pixel:
        yield Untried(RETRAINED, "a client with a head of pixels is not trained again here")
        return
    if plain.is_one_logit and plain.loss.kind in ("custom", "cox", "mse"):
        why = f"a client with one logit and the loss {plain.loss.kind!r} is not trained again here"
        yield Untried(RETRAINED, why)
        return
    # Labels that a sample may have several of do not add up to the samples.
    number = plain.num_instances if plain.loss.is_multi_label else int(true_counts.sum())
    if number is None:
        yield Untried(RETRAINED, "they need the number of samples behind the update: tell it")
        return
    if len(client.labels) < number or not torch.equal(
        client.counts(number, plain.classes), true_counts.cpu()
    ):
        raise InvalidObservation(
            f"the first {number} samples do not have the labels of the update: put its samples "
            "first"
        )
    again = _made_again(plain, client, number)
    cosine = cosine_of(plain, again)
    if cosine < _SAME:
        yield Untried(
            RETRAINED,
            f"the update made again from the model and data has a cosine of {cosine:.2f} with the "
            "one that was sent: the recipe, the samples or the model's mode are others",
        )
        return
    yield from _larger_batches(judging, client, number)
    yield from _more_steps(judging, client, number)
    yield from _later_rounds(judging, client, number, true_counts)


def _own_loss(plain: Observation) -> Loss:
    """The client's loss, which an update of one logit has as that of two classes."""
    return loss_of_one(plain.loss) if plain.is_one_logit else plain.loss


def _own_training(plain: Observation) -> LocalTraining:
    """The client's recipe, the same way."""
    return training_of_one(plain.training) if plain.is_one_logit else plain.training


def _made_again(plain: Observation, client: LocalClient, number: int) -> Observation:
    """The update by the recipe that was told."""
    inputs, labels = client.inputs[:number], client.labels[:number]
    if plain.local_steps == 1:
        return capture(client.model, inputs, labels, loss=_own_loss(plain))
    return _trained(plain, client.model, inputs, labels, _own_training(plain))


def _trained(
    plain: Observation, model: nn.Module, inputs: Tensor, labels: Tensor, recipe: LocalTraining
) -> Observation:
    told = replace(recipe, steps=None)
    update = train_locally(
        model, inputs, labels, told, classes=plain.classes, loss=_own_loss(plain), seed=0
    )
    return update.observe(model if plain.model is not None else None)


def _larger_batches(
    judging: Judging, client: LocalClient, number: int
) -> Iterator[Change | Untried]:
    plain = judging.plain
    size = plain.batch_size or number
    for times in _LARGER:
        setting = f"{times * size} instead of {size}"
        if plain.local_steps > 1:
            if times * size > number:
                yield Untried(f"batch size, {setting}", f"there are {number} local samples")
                continue
            recipe = replace(_own_training(plain), batch_size=times * size, steps=None)
            yield _again(judging, client, number, "batch size", setting, recipe)
            continue
        if times * size > len(client.labels):
            yield Untried(
                f"batch size, {setting}",
                f"the data hold {len(client.labels)} samples: give more of them, those of the "
                "update first",
            )
            continue

        def make(samples: int = times * size) -> tuple[Observation, Tensor]:
            inputs, labels = client.inputs[:samples], client.labels[:samples]
            seen = capture(client.model, inputs, labels, loss=_own_loss(plain))
            return seen, client.counts(samples, plain.classes)

        yield judging.try_change("batch size", setting, make)


def _more_steps(judging: Judging, client: LocalClient, number: int) -> Iterator[Change | Untried]:
    plain, own = judging.plain, _own_training(judging.plain)
    if own.learning_rate is None:
        yield Untried(
            "local steps", "they need the learning rate: audit the weights, and tell their rate"
        )
        return
    size = plain.batch_size or number
    if size >= _SMALLER:
        recipe = replace(own, batch_size=size // _SMALLER, steps=None)
        setting = f"batches of {size // _SMALLER}, {_SMALLER} times as many steps"
        yield _again(judging, client, number, "local steps", setting, recipe)
    for times in _MORE_EPOCHS:
        epochs = times * own.epochs
        recipe = replace(own, epochs=epochs, steps=None)
        yield _again(judging, client, number, "local steps", f"{epochs} epochs", recipe)


def _again(
    judging: Judging,
    client: LocalClient,
    number: int,
    name: str,
    setting: str,
    recipe: LocalTraining,
) -> Change | Untried:
    plain, recipe = judging.plain, _at_first_rate(recipe)

    def make() -> tuple[Observation, Tensor]:
        inputs, labels = client.inputs[:number], client.labels[:number]
        seen = _trained(plain, client.model, inputs, labels, recipe)
        # What does not fill a last batch takes no part.
        used = seen.training.took_part or number
        if used < number:
            seen = replace(seen, instances=number)
        return seen, client.counts(number, plain.classes)

    return judging.try_change(name, setting, make)


def _at_first_rate(recipe: LocalTraining) -> LocalTraining:
    """The recipe for another number of steps, of which nobody told the rates."""
    rates = recipe.learning_rate
    return replace(recipe, learning_rate=rates[0]) if isinstance(rates, tuple | list) else recipe


def _later_rounds(
    judging: Judging, client: LocalClient, number: int, true_counts: Tensor
) -> Iterator[Change | Untried]:
    plain = judging.plain
    if plain.training.learning_rate is None:
        yield Untried("a later round", "it needs the learning rate of the local steps")
        return
    recipe = _at_first_rate(replace(_own_training(plain), steps=None))
    model = deepcopy(client.model)
    inputs, labels = client.inputs[:number], client.labels[:number]
    rounds = 0
    for later in _LATER:
        while rounds < later:
            update = train_locally(
                model,
                inputs,
                labels,
                recipe,
                classes=plain.classes,
                loss=_own_loss(plain),
                seed=rounds,
            )
            model.load_state_dict(update.after)
            rounds += 1

        there = LocalClient(deepcopy(model), client.inputs, client.labels)

        def make(there: LocalClient = there) -> tuple[Observation, Tensor]:
            return _made_again(plain, there, number), true_counts

        setting = f"{later} {'round' if later == 1 else 'rounds'} of this client alone"
        yield judging.try_change("a later round", setting, make)
