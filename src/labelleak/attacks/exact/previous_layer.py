"""The fully connected layer before the head, where the observation holds the whole update."""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from labelleak.attacks.exact.logit_gradient import logit_gradients
from labelleak.numerics import implied_rounding
from labelleak.observation import Observation


@dataclass(frozen=True)
class PreviousLayer:
    """A fully connected layer before the head, with a ReLU between them; all float64.

    Attributes:
        weight: [W, b], shape (outputs, inputs + 1).
        gradient: Gradient of [W, b], of the same shape.
        rounding: Typical rounding error of one entry of the gradient.
        head: [W, b] of the head, shape (classes, outputs + 1).
        class_weights: Weight of each class in the loss, shape (classes,).
        epsilon: Machine epsilon of the client's arithmetic.
        behind_relu: Whether a ReLU makes the layer's inputs, so that they are zero or above.
    """

    weight: Float[Tensor, "outputs columns"]
    gradient: Float[Tensor, "outputs columns"]
    rounding: float
    head: Float[Tensor, "classes width"]
    class_weights: Float[Tensor, " classes"]
    epsilon: float
    behind_relu: bool

    def embed(self, inputs: Float[Tensor, "samples columns"]) -> Float[Tensor, "samples width"]:
        """[e, 1] of [h, 1]."""
        rows = (inputs @ self.weight.T).relu()
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
            Gradients with respect to the outputs; zero where the ReLU is closed.
        """
        is_open = ((inputs @ self.weight.T) > 0).double()
        pulled: Tensor = is_open * (by_logits @ self.head[:, :-1])
        return pulled


def previous_layer(observation: Observation) -> PreviousLayer | None:
    """The layer before the head, if the observation holds the model, its update and such a layer.

    Modules are assumed to run in the order in which the model names them. If they do not, no
    samples fit.
    """
    gradients, head = observation.gradients, observation.head
    found = _layer_before_head(observation)
    if gradients is None or head.bias is None or found is None:
        return None
    name, module, behind_relu = found
    by_weight, by_bias = (gradients.get(f"{name}.{kind}") for kind in ("weight", "bias"))
    if module.bias is None or by_weight is None or by_bias is None:
        return None
    weight = torch.cat([module.weight, module.bias[:, None]], dim=1).detach()
    gradient = torch.cat([by_weight, by_bias[:, None]], dim=1).detach()
    if gradient.shape != weight.shape or not bool(torch.isfinite(gradient).all()):
        return None
    place = head.weight.device
    return PreviousLayer(
        weight.to(place).double(),
        gradient.to(place).double(),
        implied_rounding(by_weight),
        torch.cat([head.weight, head.bias[:, None]], dim=1).double(),
        observation.loss.weights(head.classes, head.bias.double()),
        float(torch.finfo(head.weight.dtype).eps),
        behind_relu=behind_relu,
    )


def _layer_before_head(observation: Observation) -> tuple[str, nn.Linear, bool] | None:
    """Name and module of the fully connected layer before the head, and whether a ReLU feeds it.

    Between that layer and the head there has to be a ReLU.
    """
    model, head = observation.model, observation.head
    # A layer of one unit can show no sample.
    if model is None or not observation.has_bias or head.features < 2:
        return None
    leaves = [(name, module) for name, module in model.named_modules() if not [*module.children()]]
    names = [name for name, _ in leaves]
    if head.name not in names:
        return None
    before = [leaf for leaf in leaves[: names.index(head.name)] if not _passes_on(leaf[1])]
    if len(before) < 2 or not isinstance(before[-1][1], nn.ReLU):
        return None
    name, module = before[-2]
    if not isinstance(module, nn.Linear) or module.out_features != head.features:
        return None
    return name, module, len(before) > 2 and isinstance(before[-3][1], nn.ReLU)


def _passes_on(module: nn.Module) -> bool:
    """Whether a module passes on the entries that it is given."""
    if isinstance(module, nn.Dropout):
        return not (module.training and module.p)
    return isinstance(module, (nn.Identity, nn.Flatten))
