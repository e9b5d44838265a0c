"""The simulated client of a trial: its samples, and what the server sees of its update."""

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import cast

import torch
from jaxtyping import Int64
from torch import Tensor, nn
from torch.func import functional_call

from labelleak import defenses
from labelleak.attacks import Need
from labelleak.errors import BrokenPlugin
from labelleak.federated import train_locally
from labelleak.federated.local_training import LocalUpdate
from labelleak.hooks import recorded
from labelleak.lab.datasets import Dataset, draw
from labelleak.lab.definition import DefenseSetting, Experiment
from labelleak.lab.materials import training_of
from labelleak.lab.measures import ClassSums
from labelleak.lab.pretraining import training_samples
from labelleak.lab.tasks import Local
from labelleak.loss import CUSTOM, Loss
from labelleak.metrics import counts_of
from labelleak.observation import Observation
from labelleak.plugins import Plugin, filled_in, what_went_wrong
from labelleak.training import LocalTraining
from labelleak.updates import find_head, observe
from labelleak.updates.ends import Accepted
from labelleak.updates.heads import module_shapes

SeedFor = Callable[[str], int]
"""Gives the seed for one purpose of a trial."""

# Pixels in one chunk through the network: few enough for the memory of a ResNet without pooling,
# and enough for full speed.
_CHUNK_PIXELS = 200_000
_CHUNK_IMAGES = 64


@dataclass(frozen=True)
class ClientSamples:
    """A client's samples, decoded on demand, the same each time.

    Attributes:
        dataset: The data set of the samples.
        indices: Their indices in it, int64, shape (samples,).
        seed: Seed of the crops and flips; None for neither.
        device: Device of the batches.
    """

    dataset: Dataset
    indices: Int64[Tensor, " samples"]
    seed: int | None
    device: str

    def pieces(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Inputs and labels in chunks."""
        area = math.prod(self.dataset.input_shape[-2:]) if self.dataset.has_images else 1
        chunk = max(1, min(_CHUNK_IMAGES, _CHUNK_PIXELS // area))
        for inputs, labels in self.dataset.stream(self.indices, chunk, self._crops()):
            yield inputs.to(self.device), labels.to(self.device)

    def inputs(self) -> Tensor:
        """All inputs at once."""
        return self.dataset.batch(self.indices, self._crops())[0].to(self.device)

    def _crops(self) -> torch.Generator | None:
        return None if self.seed is None else torch.Generator().manual_seed(self.seed)

    @property
    def targets(self) -> Int64[Tensor, "samples *labels"]:
        """Their classes or label sets, on the device."""
        return self.dataset.targets[self.indices].to(self.device)

    @property
    def true_counts(self) -> Int64[Tensor, " classes"]:
        """Number of samples of each class, or with each label."""
        return counts_of(self.dataset.targets[self.indices], self.dataset.counted)


def draw_samples(
    experiment: Experiment, dataset: Dataset, seed: SeedFor, device: str
) -> ClientSamples:
    """Draw the client's samples.

    Raises:
        ValueError: The data set has no such batch.
    """
    indices = _draw(experiment, dataset, seed("batch"))
    crops = seed("crops") if dataset.lazy and experiment.batch.replacement else None
    return ClientSamples(dataset, indices, crops, device)


def observe_client(
    experiment: Experiment,
    model: nn.Module,
    batch: ClientSamples,
    seed: SeedFor,
    sums: ClassSums | None,
) -> Observation:
    """What the server sees of the client's update, as far as the attacks can use it.

    Args:
        experiment: The experiment.
        model: The network, in evaluation mode.
        batch: The client's samples.
        seed: Gives the seeds of the defense and of the order of local training.
        sums: Collects embeddings and predictions during the forward pass; None for no collection.

    Returns:
        The observation, on the batch's device.
    """
    # Attacks make up inputs of this shape, and no made-up number is a token.
    shape = None if batch.dataset.has_tokens else batch.dataset.input_shape
    loss = experiment.client_loss
    if experiment.local is not None:
        update = local_update(experiment, experiment.local, model, batch, seed("order"))
        return replace(update.observe(model), input_shape=shape)
    wanted = _wanted(experiment, model)
    whole = Need.GRADIENTS in wanted
    seen = observe(
        model,
        client_gradient(model, batch, loss, whole=whole, sums=sums),
        batch_size=len(batch.indices),
        loss=loss,
        input_shape=shape if Need.INPUT_SHAPE in wanted else None,
    )
    if not whole:
        seen = replace(seen, gradients=None)
    return _defend(experiment.defense, seen, batch, seed("defense"))


def client_gradient(
    model: nn.Module,
    batch: ClientSamples,
    loss: Loss,
    *,
    whole: bool,
    sums: ClassSums | None = None,
) -> dict[str, Tensor]:
    """The gradient as a client's autograd gives it, rounded as the network's dtype rounds.

    A batch of more than one piece is added up piece by piece, as micro-batches are.

    Args:
        model: The network, in evaluation mode.
        batch: The client's samples.
        loss: The client's loss.
        whole: Whether all parameters are asked for, or only those of the head.
        sums: Collects embeddings and predictions during the forward pass; None for no collection.

    Returns:
        Gradient of the loss by name of the parameter.
    """
    head = find_head(module_shapes(model), accepted=Accepted.by(loss))
    divisor = loss.divisor(batch.targets)
    values = {name: value.detach() for name, value in model.named_parameters()}
    asked = {
        name: value.requires_grad_()
        for name, value in values.items()
        if whole or name in (f"{head}.weight", f"{head}.bias")
    }
    total: dict[str, Tensor] = {}
    for inputs, labels in batch.pieces():
        with torch.enable_grad(), recorded(model.get_submodule(head)) as passages:
            logits = functional_call(model, values, (inputs,))
            value = _summed(loss, logits, labels)
            parts = torch.autograd.grad(value / divisor, list(asked.values()))
        for name, part in zip(asked, parts, strict=True):
            total[name] = total[name] + part if name in total else part
        if sums is not None:
            sums.add(passages[0].entered.detach(), passages[0].left.detach(), labels)
    return total


def _summed(loss: Loss, logits: Tensor, labels: Tensor) -> Tensor:
    """The sum of the samples' losses."""
    if loss.kind in CUSTOM:  # it may return the mean by itself
        return loss.value(logits, labels) * loss.divisor(labels)
    return replace(loss, reduction="sum").value(logits, labels)


def local_update(
    experiment: Experiment, local: Local, model: nn.Module, batch: ClientSamples, seed: int
) -> LocalUpdate:
    """What a client sends after its local training.

    Args:
        experiment: Of the loss and the size of a step's batch.
        local: The client's recipe.
        model: The network that the server handed out.
        batch: The client's samples.
        seed: Of their order.
    """
    return train_locally(
        model,
        batch.inputs(),
        batch.targets,
        LocalTraining(batch_size=experiment.batch.size, **local.training),
        classes=batch.dataset.counted,
        loss=experiment.client_loss,
        seed=seed,
    )


def _draw(experiment: Experiment, dataset: Dataset, seed: int) -> Int64[Tensor, " samples"]:
    """Indices of the client's samples, out of those that the network was trained on."""
    batch, training = experiment.batch, training_of(experiment)
    some = training is not None and training.samples_per_class is not None
    if not some or experiment.data_split != "train":
        return draw(batch.sampler, dataset.labels, experiment.samples, seed, **batch.options)
    pool = training_samples(training, dataset)
    return pool[
        draw(batch.sampler, dataset.labels[pool], experiment.samples, seed, **batch.options)
    ]


def _wanted(experiment: Experiment, model: nn.Module) -> set[Need]:
    """What the attacks can use; for auto, whatever is cheap enough to use."""
    entries = [setting.entry for setting in experiment.attack_settings]
    wanted = {
        need for entry in entries if entry is not None for need in (*entry.needs, *entry.uses)
    }
    if None in entries:
        layers = sum(isinstance(module, nn.Linear) for module in model.modules())
        # `exact` and `calibrated` use the layers before the head.
        wanted |= {Need.INPUT_SHAPE, *([Need.GRADIENTS] if layers > 1 else [])}
    return wanted


def empty_class_sums(model: nn.Module) -> ClassSums:
    """Empty sums by class for the embeddings and predictions of a network."""
    weight = model.get_parameter(f"{find_head(module_shapes(model))}.weight")
    classes, features = weight.shape
    return ClassSums(classes, features, weight.device)


def _defend(
    defense: DefenseSetting, observation: Observation, batch: ClientSamples, seed: int
) -> Observation:
    if defense.name == "none":
        return observation
    return defenses.defend(observation, _defense(defense, observation, batch, seed))


def _defense(
    defense: DefenseSetting, observation: Observation, batch: ClientSamples, seed: int
) -> defenses.Defense:
    if (plugin := defense.plugin) is not None:
        return _foreign(plugin, defense.parameters, seed)
    if defense.name == "sign":
        return defenses.sign
    value = defense.value
    assert value is not None, "the definition has been checked"
    generator = torch.Generator().manual_seed(seed)
    if defense.name == "gaussian_noise":
        return partial(defenses.gaussian_noise, std=value, generator=generator)
    if defense.name == "clip_norm":
        return partial(defenses.clip_norm, max_norm=value)
    if defense.name == "sparsify":
        return partial(defenses.sparsify, percent=value)
    if defense.name == "quantize":
        return partial(defenses.quantize, bits=int(value), generator=generator)
    model, head = observation.model, observation.head.name
    assert model is not None, "the simulated client's model is known"
    assert head is not None, "it has been found by name"
    mask = defenses.soteria_mask(model, batch.inputs(), value, head)
    return partial(defenses.soteria, mask=mask, weight_name=f"{head}.weight")


def _foreign(plugin: Plugin, parameters: Mapping[str, object], seed: int) -> defenses.Defense:
    """The defense of another package; whatever it raises is an error of it."""
    function = cast("Callable[..., Mapping[str, Tensor]]", plugin.target)
    generator = {"generator": torch.Generator().manual_seed(seed)}

    def defense(gradients: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        try:
            sent = function(gradients, **parameters, **filled_in(function, generator))
            wrong = [name for name, one in gradients.items() if sent[name].shape != one.shape]
        except Exception as error:  # whatever other people's code raises
            raise BrokenPlugin(
                f"the defense {plugin.name!r} failed: {what_went_wrong(error)}"
            ) from None
        if wrong:
            raise BrokenPlugin(f"the defense {plugin.name!r} changes the shape of {wrong[0]!r}")
        return sent

    return defense
