"""Forward passes with the model in the client's modes: logits, and what enters a layer."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from jaxtyping import Float, Num
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from labelleak.attacks.probe import passages
from labelleak.errors import MissingKnowledge
from labelleak.hooks import hooked
from labelleak.isolation import isolated
from labelleak.observation import Observation


@contextmanager
def as_the_client(model: nn.Module) -> Iterator[None]:
    """Evaluation mode, except for BatchNorm that the client trains; afterward as before."""
    with isolated(model):
        normalizing = [m for m in model.modules() if isinstance(m, _BatchNorm) and m.training]
        model.eval()
        for module in normalizing:
            module.training = True
        yield


def head_of(observation: Observation, model: nn.Module) -> nn.Module:
    """The final linear layer."""
    return model.get_submodule(observation.head.name or "")


def logits_of(
    observation: Observation, model: nn.Module, inputs: Num[Tensor, "samples ..."]
) -> Float[Tensor, "samples classes"]:
    """Logits of the head, float64, whatever the model puts out after it.

    Raises:
        MissingKnowledge: The head does not put out one vector of finite logits per input.
    """
    runs = passages(model, head_of(observation, model), inputs)
    logits = torch.cat([run.left for run in runs]).double()
    if logits.shape != (len(inputs), observation.classes) or not torch.isfinite(logits).all():
        raise MissingKnowledge(
            "attack 'calibrated' needs a model whose head puts out one vector of finite logits per "
            "input"
        )
    return logits.to(observation.head.weight.device)


def entering(
    model: nn.Module, layer: nn.Module, inputs: Num[Tensor, "samples ..."]
) -> Float[Tensor, "samples features"]:
    """What enters a fully connected layer, float64."""
    return torch.cat([run.entered for run in passages(model, layer, inputs)]).flatten(1).double()


@contextmanager
def mean_set(
    layer: nn.Module, before: Float[Tensor, " features"], after: Float[Tensor, " features"]
) -> Iterator[None]:
    """Give what enters a layer another mean: by scaling if both are positive, else by shifting."""
    positive = (before > 0) & (after > 0)
    factor = torch.where(positive, after / before.clamp_min(1e-30), 1.0).clamp(max=4.0)
    shift = torch.where(positive, 0.0, after.clamp_min(0.0) if bool((before >= 0).all()) else after)
    shift = shift - torch.where(positive, 0.0, before)

    def move(_: nn.Module, entered: Tensor) -> Tensor:
        return entered * factor.to(entered) + shift.to(entered)

    with hooked(layer, entering=move):
        yield


def first_layer(model: nn.Module) -> nn.Module:
    """The first layer that is fully connected or a convolution of images.

    Raises:
        MissingKnowledge: There is none.
    """
    for module in model.modules():
        if isinstance(module, (nn.Linear, nn.Conv2d)):
            return module
    raise MissingKnowledge(
        "attack 'calibrated' makes inputs for a first layer that is fully connected or a "
        "convolution of images, and this model has neither: give auxiliary inputs (auxiliary=...)"
    )


def first_vector_layer(
    observation: Observation, model: nn.Module, inputs: Num[Tensor, "samples ..."]
) -> tuple[str, nn.Linear] | None:
    """Name and module of the first fully connected layer that takes one vector per sample.

    Layers that run on every token of a sample are left out, and so are those that never run
    because another module uses their weights, as in `nn.MultiheadAttention`.
    """
    layers = {m: name for name, m in model.named_modules() if isinstance(m, nn.Linear)}
    shapes: dict[nn.Module, list[torch.Size]] = {layer: [] for layer in layers}

    def note(layer: nn.Module, entered: Tensor) -> None:
        shapes[layer].append(entered.shape)

    with hooked(*layers, entering=note):
        logits_of(observation, model, inputs)
    for layer, name in layers.items():
        if shapes[layer] == [torch.Size((len(inputs), layer.in_features))]:
            return name, layer
    return None
