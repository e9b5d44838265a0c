"""The batch's mean input to a fully connected layer, from that layer's gradient."""

from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from labelleak.attacks.mean_prediction.mean_logits import MeanLogits
from labelleak.attacks.mean_prediction.passes import entering, head_of
from labelleak.errors import MissingKnowledge
from labelleak.hooks import hooked, recorded
from labelleak.observation import Observation

# Draws of the mean's error.
_ERRORS = 16
# Ridge, relative to the mean eigenvalue of the second moments of the layer's deltas.
_RIDGE = 0.1
# Shift of the limits between labels, above all rounding, so that no place lies on a limit.
_SAME_SHARE = 1e-6


class MeanInput(NamedTuple):
    """Mean input to a layer, float64, shape (inputs,), and draws of its error, a column each."""

    values: Float[Tensor, " inputs"]
    errors: Float[Tensor, "inputs draws"]


class LayerGradient(NamedTuple):
    """Gradient of a fully connected layer, float64."""

    weight: Float[Tensor, "outputs inputs"]
    bias: Float[Tensor, " outputs"]

    def simple_mean(self, noise: float) -> Float[Tensor, " inputs"]:
        """The layer's mean input by ordinary least squares over its rows, corrected for noise."""
        squares = float(self.bias.square().sum())
        corrected = max(squares - len(self.bias) * noise**2, 0.1 * squares)
        return self.weight.T @ self.bias / corrected


def gradient_of_layer(
    observation: Observation, name: str, layer: nn.Linear, *, needed: bool
) -> LayerGradient | None:
    """The gradient of a fully connected layer with a bias; None where there is none.

    Raises:
        MissingKnowledge: It is needed.
    """
    head = observation.head
    if layer.bias is None:
        return None
    gradients = observation.gradients or {}
    weight: Tensor | None = gradients.get(f"{name}.weight")
    bias: Tensor | None = gradients.get(f"{name}.bias")
    if name == (head.name or name) and layer.weight.shape == head.weight.shape:
        weight, bias = observation.gradient.weight, observation.gradient.bias
    if weight is None or bias is None:
        if not needed:
            return None
        raise MissingKnowledge(
            f"attack 'calibrated' needs the gradients of the first layer, {name!r}, or auxiliary "
            "inputs (gradients=..., auxiliary=...)"
        )
    return LayerGradient(weight.detach().double(), bias.detach().double())


def mean_input(
    observation: Observation,
    model: nn.Module,
    layer: nn.Linear,
    gradient: LayerGradient,
    pooled: MeanLogits,
    typical: Float[Tensor, "samples ..."],
) -> MeanInput:
    """The batch's mean input to a layer by generalized least squares over the layer's rows.

    Let delta_k be the gradient of sample k at the layer's output. Then ``a^T dW = sum_k (a^T
    delta_k) x_k / K``. Ordinary least squares takes a along ``db``. The error is smallest for the a
    that makes ``a^T delta_k`` most alike over the samples. It follows from the second moments of
    delta, which are those of dummy inputs with the labels that `pooled` restores.

    Args:
        observation: What the server sees.
        model: The network, in the modes that the client runs it in.
        layer: One of its layers.
        gradient: Of that layer.
        pooled: Logits of the head's mean embedding.
        typical: Dummy inputs of the model.
    """
    weight, bias = gradient
    noise = pooled.noise
    deltas = _output_gradients(observation, model, layer, pooled, typical)
    size = observation.num_instances or len(deltas)
    moments = deltas.T @ deltas / len(deltas)
    ridge = _RIDGE * float(moments.trace()) / len(bias) + size * noise**2
    generator = torch.Generator().manual_seed(3)

    def normal(rows: int) -> Tensor:
        return torch.randn(rows, _ERRORS, generator=generator, dtype=torch.float64).to(bias)

    # One solve for the combination, the inverse's trace by random signs (Hutchinson 1989), and
    # the leverage of each delta.
    probes = normal(len(bias)).sign()
    solved = torch.linalg.solve(
        moments + ridge * torch.eye(len(bias)).to(moments),
        torch.cat([bias[:, None], probes, deltas.T], dim=1),
    )
    combination, trace = solved[:, 0], float((probes * solved[:, 1 : 1 + _ERRORS]).sum() / _ERRORS)
    leverage = (deltas.T * solved[:, 1 + _ERRORS :]).sum(dim=0) / len(deltas)
    length = float(combination @ bias)
    # Noise adds to the square of the bias gradient (errors in variables).
    combination = combination / max(length - noise**2 * trace, 0.1 * length)
    # Errors are drawn from the leave-one-out residuals of the dummies, and from the noise.
    uneven = (deltas @ combination) / (1.0 - leverage).clamp_min(0.1)
    uneven -= uneven.mean()
    values = weight.T @ combination
    inputs = entering(model, layer, typical).to(values)
    centered = inputs - inputs.mean(dim=0)
    errors = centered.T @ (uneven[:, None] * normal(len(uneven))) / (len(uneven) * size) ** 0.5
    # Noise in the gradient of the bias scales the whole mean.
    noisy = normal(len(values)) - values[:, None] * normal(1)
    errors += noise * float(combination.norm()) * noisy
    return MeanInput(values, errors)


def _output_gradients(
    observation: Observation,
    model: nn.Module,
    layer: nn.Linear,
    pooled: MeanLogits,
    inputs: Float[Tensor, "samples ..."],
) -> Float[Tensor, "samples outputs"]:
    """Gradient of every dummy input's loss at a layer's output, float64."""
    kept: list[Tensor] = []

    def keep(_: nn.Module, __: Tensor, output: Tensor) -> Tensor:
        kept.append(output)
        return output.clone()  # what follows may work in place

    with torch.enable_grad():
        inputs = inputs.to(next(model.parameters())).clone().requires_grad_()
        with hooked(layer, leaving=keep), recorded(head_of(observation, model)) as runs:
            model(inputs)
        logits = runs[0].left
        labels = _likely_labels(observation, pooled, len(inputs)).to(logits.device)
        residual = observation.loss.residual(logits.detach(), labels)
        (deltas,) = torch.autograd.grad(logits, kept[0], residual)
    return deltas.flatten(1).double().to(pooled.logits.device)


def _likely_labels(observation: Observation, pooled: MeanLogits, number: int) -> Tensor:
    """Labels for dummy inputs in random order, each as often as `pooled` finds it in the batch."""
    prediction = torch.softmax(pooled.logits, dim=0)
    share = (prediction - pooled.bias_gradient / observation.scale).clamp_min(1e-6)
    ends = (share / share.sum()).cumsum(0) - _SAME_SHARE
    places = (torch.arange(number) + 0.5) / number
    labels = torch.searchsorted(ends, places.to(ends)).clamp_max(len(share) - 1)
    order = torch.randperm(number, generator=torch.Generator().manual_seed(4))
    return labels[order.to(labels.device)]
