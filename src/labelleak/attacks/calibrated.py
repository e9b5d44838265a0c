"""Calibrated restoration: the mean prediction from the whole model on dummy or auxiliary inputs."""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from labelleak.attacks._counts import MeanPrediction, conclude
from labelleak.attacks._dummies import dummy_inputs, guessed_shape
from labelleak.attacks.pooled import MeanLogits, gradient_noise, mean_logits
from labelleak.attacks.registry import Gives, Need, register
from labelleak.errors import MissingKnowledge
from labelleak.observation import Observation
from labelleak.restoration import Restoration

# Spectra of the dummies: amplitudes fall as so many powers of the frequency. One is natural images
# as they are, steeper ones are images that were made smaller or drawn with a broad pen.
_SLOPES = (1.2, 1.3, 1.4, 1.5, 1.6, 1.7)
# How far the power of the inputs may be off, as a standard deviation of its logarithm, and the mean
# of a channel where no gradient shows it, in units of the root mean square.
_POWER_SPREAD = 0.1
_CHANNEL_SPREAD = 0.1
_REPLICATES = 128
_ERRORS = 16
_CHUNK = 64
# Of the mean eigenvalue of the second moments of the first layer's deltas.
_RIDGE = 0.1
# Pooled contradicts the dummies where their distance is so many times what both errors explain.
_CONTRADICTION = 3.0


@register(
    "calibrated",
    title="calibrated (mean prediction of dummy inputs that match the update)",
    needs=(Need.MODEL,),
    gives=(Gives.COUNTS,),
    assumes="inputs normalised to a mean square of one, and smooth as images are; or auxiliary "
    "inputs from the client's distribution; a network that is not trained far",
    reference="labelleak, documentation of the attack 'calibrated'",
)
def calibrated(
    observation: Observation, *, dummies: int = 256, power: float = 1.0
) -> Restoration:
    """Restore the counts by ``n = K (p - db)`` with p from the whole model.

    Inputs that resemble the batch go through the model, forward and in evaluation mode, and their
    mean prediction stands for the batch's. They have the mean that the first layer's gradient
    reveals, if that layer is fully connected, and are else smooth noise of the power that is left;
    or they are the observation's auxiliary inputs. The mean logits are combined with those of
    `pooled` by the variances of both.

    Args:
        observation: Needs the model; the gradients of its first layer where that is fully
            connected and there are no auxiliary inputs; what `pooled` needs.
        dummies: Number of dummy inputs of each of six spectra.
        power: Mean square of the inputs as the model takes them; 1 for normalised data.

    Returns:
        As `pooled`.

    Raises:
        MissingKnowledge: The model, its first layer's gradient or the shape of its inputs is
            missing; or what `pooled` lacks.
    """
    model = observation.model
    if model is None:
        raise MissingKnowledge(f"attack 'calibrated' needs {Need.MODEL.value}")
    pooled = mean_logits(observation)
    with torch.no_grad(), _evaluation(model):
        if observation.auxiliary is None:
            seen = _see_dummies(observation, model, pooled, dummies, power)
        else:
            seen = _see_auxiliary(observation, model, observation.auxiliary)
    return conclude("calibrated", observation, _combine(observation, pooled, seen))


class _Seen(NamedTuple):
    """What the model makes of dummy or auxiliary inputs, float64.

    Attributes:
        logits: Mean over all inputs, shape (classes,).
        log_probabilities: Logarithm of the mean prediction, shape (classes,).
        covariance: Of the logits of single inputs, shape (classes, classes).
        spread: How far the means over inputs of other spectra or power are from `logits`, shape
            (classes, alternatives), scaled so that the sum of squares is a variance.
        shared: The same for errors of the inputs' mean, which come from the same samples as those
            of the pooled embedding.
        inputs: Number of independent inputs.
    """

    logits: Float[Tensor, " classes"]
    log_probabilities: Float[Tensor, " classes"]
    covariance: Float[Tensor, "classes classes"]
    spread: Float[Tensor, "classes _"]
    shared: Float[Tensor, "classes _"]
    inputs: int


def _see_auxiliary(
    observation: Observation, model: nn.Module, inputs: Float[Tensor, "samples *shape"]
) -> _Seen:
    logits = _logits(model, inputs, observation)
    nothing = logits.new_zeros(observation.classes, 1)
    return _summary(logits, nothing, nothing, len(inputs))


def _see_dummies(
    observation: Observation, model: nn.Module, pooled: MeanLogits, dummies: int, power: float
) -> _Seen:
    name, layer = _first_layer(model)
    gradients = _first_gradients(observation, name, layer)
    shape = observation.input_shape
    if shape is None:
        shape = guessed_shape(model, layer)
    generator = torch.Generator().manual_seed(0)
    like = next(iter(layer.parameters()))

    def placed(inputs: Tensor, scale: float, centre: Tensor) -> Tensor:
        rest = max(scale * power - float(centre.square().mean()), 0.05 * scale * power)
        return (centre.float() + rest**0.5 * inputs).to(like)

    def logits_of(inputs: Tensor, scale: float, centre: Tensor) -> Tensor:
        return _logits(model, placed(inputs, scale, centre), observation)

    # The same white noise for all, so that what differs is their kind and not their luck.
    fields = dummy_inputs(shape, dummies, _SLOPES, generator)
    middle = fields[len(fields) // 2]
    mean, centre = None, torch.zeros(shape)
    if gradients is not None:
        mean = _mean_input(
            observation,
            pooled,
            layer,
            gradients,
            lambda values: placed(middle, 1.0, values.cpu().view(shape)),
        )
        centre = mean.values.cpu().view(shape)
    kinds = []
    for field in fields:
        scale = math.exp(_POWER_SPREAD * float(torch.randn((), generator=generator)))
        offset = torch.zeros(())
        if mean is None:
            one = torch.randn(shape[0], *[1] * (len(shape) - 1), generator=generator)
            offset = _CHANNEL_SPREAD * one
        kinds.append(logits_of(field, scale, centre + offset))
    every = torch.stack(kinds).mean(dim=1)
    spread = (every - every.mean(dim=0)).T / math.sqrt(len(every) - 1)
    shared = spread.new_zeros(len(spread), 1)
    if mean is not None:
        at_centre = logits_of(middle, 1.0, centre).mean(dim=0)
        columns = [
            logits_of(middle, 1.0, centre + error.cpu().view(shape)).mean(dim=0) - at_centre
            for error in mean.errors.T
        ]
        shared = torch.stack(columns, dim=1) / math.sqrt(len(columns))
    return _summary(torch.cat(kinds), spread, shared, dummies)


def _summary(logits: Tensor, spread: Tensor, shared: Tensor, inputs: int) -> _Seen:
    centred = logits - logits.mean(dim=0)
    return _Seen(
        logits.mean(dim=0),
        torch.softmax(logits, dim=1).mean(dim=0).log(),
        centred.T @ centred / len(logits),
        spread,
        shared,
        inputs,
    )


def _combine(observation: Observation, pooled: MeanLogits, seen: _Seen) -> MeanPrediction:
    """Both estimates of the mean logits, weighted by their variances (a Kalman update).

    The error of the pooled logits is taken to have the shape of the covariance of single inputs,
    for the residuals of a few rows tell its size but not its shape. Where both rest on regressions
    over the same samples, the error that they share is no reason to mix them, and is added at the
    end.
    """
    classes = observation.classes
    # Softmax is blind to a constant: logits sum to zero, and the constant is made harmless.
    covariance, spread, shared = (
        _centred(seen.covariance, both=True), _centred(seen.spread), _centred(seen.shared)
    )  # fmt: skip
    power = max(float(covariance.trace()), 1e-30)
    identity = torch.eye(classes).to(covariance)
    covariance = covariance + 1e-4 * power / classes * identity
    difference = _centred((pooled.logits - seen.logits)[:, None])
    errors = _centred(pooled.replicates - pooled.logits[:, None])
    noise = float(errors.square().sum(dim=0).mean()) / power * covariance
    own = 1.0 / seen.inputs + 1.0 / (observation.num_instances or seen.inputs)
    prior = spread @ spread.T + own * covariance

    explained = torch.linalg.solve(prior + shared @ shared.T + noise, difference)
    surplus = float((difference * explained).sum()) / (classes - 1)
    if surplus > _CONTRADICTION:
        prior = prior * surplus
    gain = torch.linalg.solve(prior + noise, prior).T
    second_order = seen.log_probabilities - seen.logits
    if surplus > _CONTRADICTION:
        second_order = second_order * _CONTRADICTION / surplus
    logits = seen.logits + second_order + (gain @ difference)[:, 0]

    left = prior - gain @ prior
    values, vectors = torch.linalg.eigh((left + left.T) / 2)
    root = vectors * values.clamp_min(0.0).sqrt()
    generator = torch.Generator().manual_seed(2)

    def normal(rows: int) -> Tensor:
        return torch.randn(rows, _REPLICATES, generator=generator, dtype=torch.float64).to(root)

    scatter = root @ normal(classes) + shared @ normal(shared.shape[1])
    draws = pooled.bias_replicates
    return MeanPrediction(
        torch.softmax(logits, dim=0),
        torch.softmax(logits[:, None] + scatter, dim=0),
        pooled.bias_gradient,
        noise=pooled.noise,
        bias_replicates=None if draws is None else draws[:, :_REPLICATES],
    )


def _centred(matrix: Tensor, *, both: bool = False) -> Tensor:
    matrix = matrix - matrix.mean(dim=0)
    return matrix - matrix.mean(dim=1, keepdim=True) if both else matrix


class _Mean(NamedTuple):
    """Mean input by regression, float64, shape (inputs,), and draws of its error, a column each."""

    values: Float[Tensor, " inputs"]
    errors: Float[Tensor, "inputs draws"]


def _first_gradients(
    observation: Observation, name: str, layer: nn.Module
) -> tuple[Tensor, Tensor] | None:
    """Gradients of a fully connected first layer with a bias, float64; None for any other."""
    if not isinstance(layer, nn.Linear) or layer.bias is None:
        return None
    head = observation.head
    if name == (head.name or name) and layer.weight.shape == head.weight.shape:
        weight, bias = observation.gradient.weight, observation.gradient.bias
    else:
        gradients = observation.gradients or {}
        weight, bias = (gradients.get(f"{name}.{kind}") for kind in ("weight", "bias"))
    if weight is None or bias is None:
        raise MissingKnowledge(
            f"attack 'calibrated' needs the gradients of the first layer, {name!r}, or auxiliary "
            "inputs (gradients=..., auxiliary=...)"
        )
    return weight.detach().double(), bias.detach().double()


def _mean_input(
    observation: Observation,
    pooled: MeanLogits,
    layer: nn.Module,
    gradients: tuple[Tensor, Tensor],
    draw: Callable[[Tensor], Tensor],
) -> _Mean:
    """The batch's mean input by generalised least squares over the rows of the first layer.

    With delta_k the gradient of sample k at the layer's output, ``a^T dW = sum_k (a^T delta_k) x_k
    / K``. Least squares takes a along ``db``. Less noise has the a that makes ``a^T delta_k`` most
    alike over the samples; it follows from the second moments of delta, and these from dummy inputs
    with the least-squares mean and the labels that `pooled` restores.
    """
    weight, bias = gradients
    squares = float(bias.square().sum())
    noise = gradient_noise(observation.gradient.weight)
    simple = weight.T @ bias / max(squares - len(bias) * noise**2, 0.1 * squares)
    inputs = draw(simple)
    deltas = _output_gradients(observation, pooled, layer, inputs)
    size = observation.num_instances or len(deltas)
    moments = deltas.T @ deltas / len(deltas)
    ridge = _RIDGE * float(moments.trace()) / len(bias) + size * noise**2
    combination = torch.linalg.solve(moments + ridge * torch.eye(len(bias)).to(moments), bias)
    combination /= combination @ bias
    # Errors are what these combinations of random inputs scatter by, and what noise adds.
    uneven = deltas @ combination
    uneven -= uneven.mean()
    generator = torch.Generator().manual_seed(3)

    def normal(rows: int) -> Tensor:
        return torch.randn(rows, _ERRORS, generator=generator, dtype=torch.float64).to(bias)

    values = weight.T @ combination
    centred = inputs.flatten(1).to(values) - values
    errors = centred.T @ (uneven[:, None] * normal(len(uneven))) / (len(uneven) * size) ** 0.5
    errors += noise * float(combination.norm()) * normal(len(values))
    return _Mean(values, errors)


def _output_gradients(
    observation: Observation, pooled: MeanLogits, layer: nn.Module, inputs: Tensor
) -> Float[Tensor, "samples outputs"]:
    """Gradient of every dummy input's loss at a layer's output, float64."""
    model, kept = observation.model, []

    def keep(_: nn.Module, __: object, output: Tensor) -> Tensor:
        kept.append(output)
        return output.clone()  # what follows may work in place

    assert model is not None, "a need of the attack"
    with torch.enable_grad():
        inputs = inputs.clone().requires_grad_()
        handle = layer.register_forward_hook(keep)
        try:
            logits = _head_output(model, inputs, observation)
        finally:
            handle.remove()
        scale = observation.batch_size or 1 if observation.reduction == "sum" else 1
        prediction = torch.softmax(pooled.logits, dim=0)
        share = (prediction - pooled.bias_gradient / scale).clamp_min(1e-6)
        ends = (share / share.sum()).cumsum(0)
        places = (torch.arange(len(inputs)) + 0.5) / len(inputs)
        labels = torch.searchsorted(ends, places.to(ends)).clamp_max(len(share) - 1)
        order = torch.randperm(len(inputs), generator=torch.Generator().manual_seed(4))
        labels = labels[order.to(labels.device)].to(logits.device)
        errors = torch.softmax(logits.detach(), dim=1)
        errors[torch.arange(len(labels)), labels] -= 1.0
        if observation.class_weights is not None:
            errors *= observation.class_weights.to(errors)[labels, None]
        (deltas,) = torch.autograd.grad(logits, kept[0], errors)
    return deltas.flatten(1).double().to(pooled.logits.device)


def _first_layer(model: nn.Module) -> tuple[str, nn.Module]:
    for name, module in model.named_modules():
        if isinstance(module, (nn.Linear, nn.Conv2d)):
            return name, module
    raise MissingKnowledge(
        "attack 'calibrated' makes inputs for a first layer that is fully connected or a "
        "convolution of images, and this model has neither: give auxiliary inputs (auxiliary=...)"
    )


def _logits(model: nn.Module, inputs: Tensor, observation: Observation) -> Tensor:
    """Logits of the head, float64, whatever the model puts out after it."""
    like = next(iter(model.parameters()))
    pieces = [_head_output(model, piece.to(like), observation) for piece in inputs.split(_CHUNK)]
    logits = torch.cat(pieces).double()
    if logits.shape != (len(inputs), observation.classes) or not torch.isfinite(logits).all():
        raise MissingKnowledge(
            "attack 'calibrated' needs a model whose head puts out one vector of finite logits per "
            "input"
        )
    return logits.to(observation.head.weight.device)


def _head_output(model: nn.Module, inputs: Tensor, observation: Observation) -> Tensor:
    seen: list[Tensor] = []
    head = model.get_submodule(observation.head.name or "")
    handle = head.register_forward_hook(lambda _, __, output: seen.append(output))
    try:
        model(inputs)
    finally:
        handle.remove()
    return seen[0]


@contextmanager
def _evaluation(model: nn.Module) -> Iterator[None]:
    """Evaluation mode, in which BatchNorm uses its running statistics; afterwards as it was."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True
