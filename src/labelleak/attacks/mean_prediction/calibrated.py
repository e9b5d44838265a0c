"""Calibrated restoration: the mean prediction from the whole model on dummy or auxiliary inputs."""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch
from jaxtyping import Float
from scipy.special import fdtri, stdtrit
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from labelleak.attacks.diagnosis import gradient_noise
from labelleak.attacks.mean_prediction.counts import MeanPrediction, counts_of
from labelleak.attacks.mean_prediction.dummies import dummy_inputs, guessed_shape
from labelleak.attacks.mean_prediction.pooled import (
    MeanLogits,
    mean_logits,
    second_order,
)
from labelleak.attacks.registry import Gives, Need, register
from labelleak.errors import MissingKnowledge
from labelleak.observation import Observation
from labelleak.restoration import NORMAL_QUANTILE, Restoration

# Spectra of the dummies: amplitudes fall as so many powers of the frequency. One is natural images
# as they are, steeper ones are images that were made smaller or drawn with a broad pen.
_SLOPES = (1.2, 1.3, 1.4, 1.5, 1.6, 1.7)
# How far the power of the inputs may be off, as a standard deviation of its logarithm, and the mean
# of a channel where no gradient shows it, in units of the root mean square.
_POWER_SPREAD = 0.1
_CHANNEL_SPREAD = 0.1
_REPLICATES = 128
_ERRORS = 16
# Dummies that show what an error of their mean changes: each once for every error.
_FEW = 64
_CHUNK = 64
# Of the mean eigenvalue of the second moments of the first layer's deltas.
_RIDGE = 0.1
# Squared distance of the dummies' mean logits from the truth that nothing else explains, in units
# of the variance of single inputs.
_DISCREPANCY = 0.01


@register(
    "calibrated",
    title="calibrated (mean prediction of dummy inputs that match the update)",
    needs=(Need.MODEL,),
    uses=(Need.GRADIENTS, Need.INPUT_SHAPE, Need.AUXILIARY),
    gives=(Gives.COUNTS,),
    assumes="inputs normalised to a mean square of one, and smooth as images are; or auxiliary "
    "inputs from the client's distribution; a network that is not trained far",
    reference="labelleak, documentation of the attack 'calibrated'",
)
def calibrated(observation: Observation, *, dummies: int = 256, power: float = 1.0) -> Restoration:
    """Restore the counts by ``n = K (p - db)`` with p from the whole model.

    Inputs that resemble the batch go through the model, with BatchNorm in the mode that the client
    runs it in, and their mean prediction stands for the batch's. They are smooth noise, and what
    enters the first fully connected layer is given the mean that this layer's gradient reveals; or
    they are the observation's auxiliary inputs. The mean logits are combined with those of `pooled`
    by the variances of both.

    Args:
        observation: Needs the model, and what `pooled` needs; without auxiliary inputs also the
            gradients of the first fully connected layer, if no convolution comes before it.
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
    with torch.no_grad(), _as_the_client(model):
        length = None if observation.has_bias else _usual_length(observation, model, power)
        pooled = mean_logits(observation, length)
        if observation.auxiliary is None:
            seen = _see_dummies(observation, model, pooled, dummies, power)
        else:
            seen = _see_auxiliary(observation, model, observation.auxiliary.inputs)
    return counts_of("calibrated", observation, _combine(observation, pooled, seen))


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
    first, (name, layer) = _first_layer(model), _first_linear(model)
    at_input = layer is first
    gradients = _layer_gradients(observation, name, layer, needed=at_input)
    shape = observation.input_shape or guessed_shape(model, first)
    generator = torch.Generator().manual_seed(0)
    like = next(iter(first.parameters()))
    fields = dummy_inputs(shape, dummies, _SLOPES, generator)

    def inputs_of(field: Tensor, scale: float, centre: Tensor) -> Tensor:
        rest = max(scale * power - float(centre.square().mean()), 0.05 * scale * power)
        inputs: Tensor = (centre.float() + rest**0.5 * field).to(like)
        return inputs

    middle, centre, mean = fields[len(fields) // 2], torch.zeros(shape), None
    if gradients is not None and layer is not None:
        start = _simple_mean(observation, *gradients).cpu().view(shape) if at_input else centre
        typical = inputs_of(middle, 1.0, start)
        mean = _mean_input(observation, pooled, layer, gradients, typical)
        if at_input:
            centre = mean.values.cpu().view(shape)

    def logits_of(
        inputs: Tensor, before: Tensor | None = None, error: Tensor | None = None
    ) -> Tensor:
        if mean is None or layer is None or at_input:
            return _logits(model, inputs, observation)
        if before is None:
            before = _mean_of_inputs(model, layer, inputs, observation)
        with _mean_set(layer, before, mean.values if error is None else mean.values + error):
            return _logits(model, inputs, observation)

    kinds = []
    for field in fields:
        scale = math.exp(_POWER_SPREAD * float(torch.randn((), generator=generator)))
        one = torch.randn(shape[0], *[1] * (len(shape) - 1), generator=generator)
        offset = centre if at_input and mean is not None else _CHANNEL_SPREAD * one
        kinds.append(logits_of(inputs_of(field, scale, offset)))
    every = torch.stack(kinds).mean(dim=1)
    spread = (every - every.mean(dim=0)).T / math.sqrt(len(every) - 1)
    spread *= float(stdtrit(len(every) - 1, 0.975)) / NORMAL_QUANTILE
    shared = spread.new_zeros(len(spread), 1)
    if mean is not None and layer is not None:
        few = inputs_of(middle[:_FEW], 1.0, centre)
        before = None if at_input else _mean_of_inputs(model, layer, few, observation)
        at_centre = logits_of(few, before).mean(dim=0)
        columns = []
        for error in mean.errors.T:
            moved = few + error.view(shape).to(few) if at_input else few
            columns.append(logits_of(moved, before, error).mean(dim=0) - at_centre)
        shared = torch.stack(columns, dim=1) / math.sqrt(len(columns))
    return _summary(torch.cat(kinds), spread, shared, dummies)


def _usual_length(observation: Observation, model: nn.Module, power: float) -> float:
    """Length of the mean embedding of dummy or auxiliary inputs."""
    if observation.auxiliary is None:
        shape = observation.input_shape or guessed_shape(model, _first_layer(model))
        generator = torch.Generator().manual_seed(0)
        (inputs,) = dummy_inputs(shape, _CHUNK, _SLOPES[:1], generator)
        inputs = inputs * power**0.5
    else:
        inputs = observation.auxiliary.inputs
    head = model.get_submodule(observation.head.name or "")
    return float(_mean_of_inputs(model, head, inputs, observation).norm())


def _mean_of_inputs(
    model: nn.Module, layer: nn.Module, inputs: Tensor, observation: Observation
) -> Float[Tensor, " inputs"]:
    """Mean of what enters a fully connected layer."""
    return _entering(model, layer, inputs, observation).mean(dim=0)


def _entering(
    model: nn.Module, layer: nn.Module, inputs: Tensor, observation: Observation
) -> Float[Tensor, "samples inputs"]:
    kept: list[Tensor] = []
    handle = layer.register_forward_pre_hook(lambda _, given: kept.append(given[0].detach()))
    try:
        _logits(model, inputs, observation)
    finally:
        handle.remove()
    return torch.cat(kept).flatten(1).double()


@contextmanager
def _mean_set(layer: nn.Module, before: Tensor, after: Tensor) -> Iterator[None]:
    """Let what enters a layer have another mean: scaled where it is positive, else shifted."""
    positive = (before > 0) & (after > 0)
    factor = torch.where(positive, after / before.clamp_min(1e-30), 1.0).clamp(max=4.0)
    shift = torch.where(positive, 0.0, after.clamp_min(0.0) if bool((before >= 0).all()) else after)
    shift = shift - torch.where(positive, 0.0, before)

    def move(_: nn.Module, given: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return (given[0] * factor.to(given[0]) + shift.to(given[0]), *given[1:])

    handle = layer.register_forward_pre_hook(move)
    try:
        yield
    finally:
        handle.remove()


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

    # Dummies are no images. Where pooled contradicts them, they are taken for further off, until
    # both agree within their errors.
    prior = prior + _DISCREPANCY * covariance
    surplus = _surplus(difference, prior + shared @ shared.T + noise)
    # The size of pooled's error is itself estimated, from as many rows as there are classes.
    allowed, trust = float(fdtri(classes - 1, classes - 1, 0.99)), 1.0
    if surplus > allowed:
        for doublings in range(1, 24):
            trust = 1.0 / (1.0 + _DISCREPANCY * 2.0**doublings)
            wider = prior + _DISCREPANCY * 2.0**doublings * covariance
            if _surplus(difference, wider + shared @ shared.T + noise) <= 1.0:
                break
        prior = wider
    gain = torch.linalg.solve(prior + noise, prior).T
    logits = seen.logits + trust * (seen.log_probabilities - seen.logits)
    logits = logits + (gain @ difference)[:, 0]
    # Where dummies are not to be trusted, the scatter of single samples is what rows show.
    shift, size = second_order(pooled)
    shift, size = (1.0 - trust) * shift, (1.0 - trust) * size

    left = prior - gain @ prior
    values, vectors = torch.linalg.eigh((left + left.T) / 2)
    root = vectors * values.clamp_min(0.0).sqrt()
    generator = torch.Generator().manual_seed(2)

    def normal(rows: int) -> Tensor:
        return torch.randn(rows, _REPLICATES, generator=generator, dtype=torch.float64).to(root)

    scatter = root @ normal(classes) + shared @ normal(shared.shape[1])
    errors = shift[:, None] + size[:, None] * normal(classes)
    return MeanPrediction(
        torch.softmax(logits, dim=0) + shift,
        torch.softmax(logits[:, None] + scatter, dim=0) + errors,
        pooled.bias_gradient,
        noise=pooled.noise,
    )


def _surplus(difference: Tensor, covariance: Tensor) -> float:
    """Squared distance in units of what the covariance explains, one on average."""
    explained = torch.linalg.solve(covariance, difference)
    return float((difference * explained).sum()) / (len(difference) - 1)


def _centred(matrix: Tensor, *, both: bool = False) -> Tensor:
    matrix = matrix - matrix.mean(dim=0)
    return matrix - matrix.mean(dim=1, keepdim=True) if both else matrix


class _Mean(NamedTuple):
    """Mean input by regression, float64, shape (inputs,), and draws of its error, a column each."""

    values: Float[Tensor, " inputs"]
    errors: Float[Tensor, "inputs draws"]


def _layer_gradients(
    observation: Observation, name: str, layer: nn.Module | None, *, needed: bool
) -> tuple[Tensor, Tensor] | None:
    """Gradients of a fully connected layer with a bias, float64; None where there are none.

    Raises:
        MissingKnowledge: They are needed.
    """
    head = observation.head
    if not isinstance(layer, nn.Linear) or layer.bias is None:
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
    return weight.detach().double(), bias.detach().double()


def _simple_mean(observation: Observation, weight: Tensor, bias: Tensor) -> Tensor:
    """A layer's mean input by plain least squares over its rows."""
    noise, squares = gradient_noise(observation.gradient.weight), float(bias.square().sum())
    return weight.T @ bias / max(squares - len(bias) * noise**2, 0.1 * squares)


def _mean_input(
    observation: Observation,
    pooled: MeanLogits,
    layer: nn.Module,
    gradients: tuple[Tensor, Tensor],
    typical: Tensor,
) -> _Mean:
    """The batch's mean input to a layer by generalised least squares over the layer's rows.

    With delta_k the gradient of sample k at the layer's output, ``a^T dW = sum_k (a^T delta_k) x_k
    / K``. Least squares takes a along ``db``. Less noise has the a that makes ``a^T delta_k`` most
    alike over the samples; it follows from the second moments of delta, and these from dummy inputs
    with the labels that `pooled` restores.
    """
    weight, bias = gradients
    noise = gradient_noise(observation.gradient.weight)
    deltas = _output_gradients(observation, pooled, layer, typical)
    size = observation.num_instances or len(deltas)
    moments = deltas.T @ deltas / len(deltas)
    ridge = _RIDGE * float(moments.trace()) / len(bias) + size * noise**2
    generator = torch.Generator().manual_seed(3)

    def normal(rows: int) -> Tensor:
        return torch.randn(rows, _ERRORS, generator=generator, dtype=torch.float64).to(bias)

    # The first column is what is wanted; random ones show the inverse's trace (Hutchinson 1989),
    # and the deltas' own how much each has pulled the combination towards itself.
    probes = normal(len(bias)).sign()
    solved = torch.linalg.solve(
        moments + ridge * torch.eye(len(bias)).to(moments),
        torch.cat([bias[:, None], probes, deltas.T], dim=1),
    )
    combination, trace = solved[:, 0], float((probes * solved[:, 1 : 1 + _ERRORS]).sum() / _ERRORS)
    leverage = (deltas.T * solved[:, 1 + _ERRORS :]).sum(dim=0) / len(deltas)
    length = float(combination @ bias)
    # Noise adds to the product of the bias gradient with itself (errors in variables).
    combination = combination / max(length - noise**2 * trace, 0.1 * length)
    # Errors are what such combinations of other inputs scatter by, and what noise adds.
    uneven = (deltas @ combination) / (1.0 - leverage).clamp_min(0.1)
    uneven -= uneven.mean()
    values = weight.T @ combination
    assert observation.model is not None, "a need of the attack"
    inputs = _entering(observation.model, layer, typical, observation).to(values)
    centred = inputs - inputs.mean(dim=0)
    errors = centred.T @ (uneven[:, None] * normal(len(uneven))) / (len(uneven) * size) ** 0.5
    # Noise in the weight's gradient, and in the bias's, which scales the whole mean.
    noisy = normal(len(values)) - values[:, None] * normal(1)
    errors += noise * float(combination.norm()) * noisy
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
        prediction = torch.softmax(pooled.logits, dim=0)
        share = (prediction - pooled.bias_gradient / observation.scale).clamp_min(1e-6)
        ends = (share / share.sum()).cumsum(0)
        places = (torch.arange(len(inputs)) + 0.5) / len(inputs)
        labels = torch.searchsorted(ends, places.to(ends)).clamp_max(len(share) - 1)
        order = torch.randperm(len(inputs), generator=torch.Generator().manual_seed(4))
        labels = labels[order.to(labels.device)].to(logits.device)
        errors = torch.softmax(logits.detach(), dim=1)
        errors[torch.arange(len(labels)), labels] -= 1.0
        if observation.loss.class_weights is not None:
            errors *= observation.loss.class_weights.to(errors)[labels, None]
        (deltas,) = torch.autograd.grad(logits, kept[0], errors)
    return deltas.flatten(1).double().to(pooled.logits.device)


def _first_layer(model: nn.Module) -> nn.Module:
    for module in model.modules():
        if isinstance(module, (nn.Linear, nn.Conv2d)):
            return module
    raise MissingKnowledge(
        "attack 'calibrated' makes inputs for a first layer that is fully connected or a "
        "convolution of images, and this model has neither: give auxiliary inputs (auxiliary=...)"
    )


def _first_linear(model: nn.Module) -> tuple[str, nn.Module | None]:
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear):
            return name, module
    return "", None


def _logits(model: nn.Module, inputs: Tensor, observation: Observation) -> Tensor:
    """Logits of the head, float64, whatever the model puts out after it."""
    like = next(iter(model.parameters()))
    # Of about equal size, for BatchNorm may need more than one.
    parts = torch.chunk(inputs, -(-len(inputs) // _CHUNK))
    pieces = [_head_output(model, piece.to(like), observation) for piece in parts]
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
def _as_the_client(model: nn.Module) -> Iterator[None]:
    """Evaluation mode, but for BatchNorm that the client trains with; afterwards as it was.

    BatchNorm then uses the statistics of the inputs at hand, and its own are left alone.
    """
    training = [module for module in model.modules() if module.training]
    model.eval()
    tracking = [
        module
        for module in training
        if isinstance(module, _BatchNorm) and module.track_running_stats
    ]
    for module in training:
        module.training = isinstance(module, _BatchNorm)
    for module in tracking:
        module.track_running_stats = False
    try:
        yield
    finally:
        for module in training:
            module.training = True
        for module in tracking:
            module.track_running_stats = True
