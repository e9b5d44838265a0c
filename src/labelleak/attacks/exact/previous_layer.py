"""The fully connected layer before the head, where the observation holds the whole update."""

from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from labelleak.attacks.exact.activation import RELU, SMOOTH, Activation, activation_of
from labelleak.attacks.exact.logit_gradient import logit_gradients
from labelleak.numerics import implied_rounding
from labelleak.observation import Head, Observation

# More classes than these have the head's equations, and only a ReLU is searched there.
_FEW_CLASSES = 4


@dataclass(frozen=True)
class PreviousLayer:
    """A fully connected layer before the head, with an activation between them; all float64.

    Attributes:
        weight: [W, b], shape (outputs, inputs + 1).
        gradient: Gradient of [W, b], of the same shape.
        rounding: Typical rounding error of one entry of the gradient.
        head: [W, b] of the head, shape (classes, outputs + 1).
        class_weights: Weight of each class in the loss, shape (classes,).
        epsilon: Machine epsilon of the client's arithmetic.
        behind_relu: Whether a ReLU makes the layer's inputs, so that they are zero or above.
        activation: The activation.
        is_guess: Whether the model does not name the activation, so that only a proof counts.
    """

    weight: Float[Tensor, "outputs columns"]
    gradient: Float[Tensor, "outputs columns"]
    rounding: float
    head: Float[Tensor, "classes width"]
    class_weights: Float[Tensor, " classes"]
    epsilon: float
    behind_relu: bool
    activation: Activation = RELU
    is_guess: bool = False

    def outputs(self, inputs: Float[Tensor, "samples columns"]) -> Float[Tensor, "samples outputs"]:
        """The layer's outputs for [h, 1], before the activation."""
        return inputs @ self.weight.T

    def embed(self, inputs: Float[Tensor, "samples columns"]) -> Float[Tensor, "samples width"]:
        """[e, 1] of [h, 1]."""
        rows = self.activation.values(self.outputs(inputs))
        return torch.cat([rows, rows.new_ones(len(rows), 1)], dim=1)

    def logit_gradients(
        self, inputs: Float[Tensor, "samples columns"], labels: Int[Tensor, " samples"]
    ) -> Float[Tensor, "samples classes"]:
        """The q of samples with these inputs and labels."""
        return logit_gradients(self.embed(inputs) @ self.head.T, labels, self.class_weights)

    def pull_back(
        self,
        inputs: Float[Tensor, "samples columns"],
        by_logits: Float[Tensor, "vectors classes"],
    ) -> Float[Tensor, "vectors outputs"]:
        """Backpropagate gradients from the logits to the layer's outputs.

        Args:
            inputs: [h, 1] of one sample for all gradients, or of one sample each.
            by_logits: Gradients with respect to the logits.

        Returns:
            Gradients with respect to the outputs; zero where a ReLU is closed.
        """
        slopes = self.activation.slopes(self.outputs(inputs))
        pulled: Tensor = slopes * (by_logits @ self.head[:, :-1])
        return pulled


def previous_layers(observation: Observation) -> list[PreviousLayer]:
    """The layer before the head, if the observation holds the model, its update and such a layer.

    Modules are assumed to run in the order in which the model names them. If they do not, no
    samples fit.

    Args:
        observation: What the server sees.

    Returns:
        One, or none; where the model computes the activation by a function that it has no module
        for, one for each activation that it may be.
    """
    gradients, head = observation.gradients, observation.head
    found = _layer_before_head(observation)
    if gradients is None or head.bias is None or found is None:
        return []
    by_weight, by_bias = (gradients.get(f"{found.name}.{kind}") for kind in ("weight", "bias"))
    if found.module.bias is None or by_weight is None or by_bias is None:
        return []
    weight = torch.cat([found.module.weight, found.module.bias[:, None]], dim=1).detach()
    gradient = torch.cat([by_weight, by_bias[:, None]], dim=1).detach()
    if gradient.shape != weight.shape or not bool(torch.isfinite(gradient).all()):
        return []
    place = head.weight.device
    layer = PreviousLayer(
        weight.to(place).double(),
        gradient.to(place).double(),
        implied_rounding(by_weight),
        torch.cat([head.weight, head.bias[:, None]], dim=1).double(),
        observation.loss.weights(head.classes, head.bias.double()),
        float(torch.finfo(head.weight.dtype).eps),
        behind_relu=found.behind_relu,
        is_guess=len(found.activations) > 1,
    )
    return [replace(layer, activation=activation) for activation in found.activations]


class _Found(NamedTuple):
    """A fully connected layer before the head."""

    name: str
    module: nn.Linear
    behind_relu: bool
    activations: tuple[Activation, ...]


def _layer_before_head(observation: Observation) -> _Found | None:
    """The fully connected layer before the head, and what may be between them."""
    model, head = observation.model, observation.head
    # A layer of one unit can show no sample.
    if model is None or not observation.has_bias or head.features < 2:
        return None
    leaves = [(name, module) for name, module in model.named_modules() if not [*module.children()]]
    names = [name for name, _ in leaves]
    if head.name not in names:
        return None
    before = [leaf for leaf in leaves[: names.index(head.name)] if not _passes_on(leaf[1])]
    if not before:
        return None
    if isinstance(before[-1][1], nn.Linear):
        activations = _unnamed(model, before[-1][0], head)
    else:
        activation = activation_of(before.pop()[1])
        few = head.classes <= _FEW_CLASSES
        activations = (activation,) if activation is RELU or (activation and few) else ()
    if not before or not activations:
        return None
    name, module = before[-1]
    if not isinstance(module, nn.Linear) or module.out_features != head.features:
        return None
    behind_relu = len(before) > 1 and isinstance(before[-2][1], nn.ReLU)
    return _Found(name, module, behind_relu, activations)


def _unnamed(model: nn.Module, before: str, head: Head) -> tuple[Activation, ...]:
    """What a model may compute between two layers that no module stands between.

    Nothing at all in a sequence of modules. Otherwise a function, as in RoBERTa's head.
    """
    parents = {name.rpartition(".")[0] for name in (before, head.name or "")}
    if head.classes > _FEW_CLASSES:
        return ()
    if len(parents) == 1 and isinstance(model.get_submodule(parents.pop()), nn.Sequential):
        return ()
    return (RELU, *SMOOTH)


def _passes_on(module: nn.Module) -> bool:
    """Whether a module passes on the entries that it is given."""
    if isinstance(module, nn.Dropout):
        return not (module.training and module.p)
    return isinstance(module, (nn.Identity, nn.Flatten))
