"""Send inputs through the model, and see what arrives at its head or at another layer."""

from collections.abc import Iterator, Mapping
from copy import deepcopy
from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Float, Int, Num
from torch import Tensor, nn

from labelleak.errors import InvalidObservation, MissingKnowledge
from labelleak.hooks import Passage, recorded
from labelleak.isolation import isolated
from labelleak.numerics import implied_rounding
from labelleak.observation import Observation

# Integers that stand for something; other ones (pixels, uint8) become numbers.
_TOKENS = (torch.int64, torch.int32)
# Samples that go through the model at once where groups do not influence the result.
_GROUP = 64


@dataclass(frozen=True, eq=False)
class Probe:
    """What arrives at the head, and its logits: float64, on the device of the observation's head.

    Attributes:
        embeddings: Shape (samples, features).
        logits: Shape (samples, classes).
    """

    embeddings: Float[Tensor, "samples features"]
    logits: Float[Tensor, "samples classes"]

    @property
    def probabilities(self) -> Float[Tensor, "samples classes"]:
        """Softmax of the logits."""
        return torch.softmax(self.logits, dim=1)

    @property
    def activity(self) -> Float[Tensor, " samples"]:
        """Sum of each embedding's entries."""
        return self.embeddings.sum(dim=1)


def probe(
    observation: Observation,
    inputs: Tensor,
    state: Mapping[str, Tensor] | None = None,
) -> Probe:
    """Run inputs through the model, in the mode it is in, and see what arrives at its head.

    In training mode the inputs go through in random groups as large as the client's batches, since
    BatchNorm mixes the samples of a group. The model and the caller's random state do not change.

    Args:
        observation: Brings the model and the head's name.
        inputs: Shape (samples, ...).
        state: Weights to use instead of the model's own, by name.

    Returns:
        The probe.

    Raises:
        MissingKnowledge: There is no model, or nobody said where in it the head is.
        InvalidObservation: The inputs do not fit the model, the weights do not, or the results are
            not finite.
    """
    model, layer = _model_of(observation), observation.head.name
    if layer is None:
        raise MissingKnowledge(
            "the head has no name: say where it is in the model (Head(..., name='fc'), or let "
            "observe find it)"
        )
    if state is not None:
        model = deepcopy(model)
        _load(model, state)
    head = model.get_submodule(layer)
    order, size = torch.arange(len(inputs)), _GROUP
    if model.training:
        order = torch.randperm(len(inputs), generator=torch.Generator().manual_seed(0))
        size, inputs = observation.batch_size or _GROUP, inputs[order]
    with isolated(model), torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        runs = passages(model, head, inputs, size)
        embeddings = torch.cat([run.entered for run in runs])
    embeddings = embeddings.to(observation.head.weight.device).double()
    embeddings = embeddings[order.argsort().to(embeddings.device)]
    own = {name: value.detach() for name, value in head.named_parameters()}
    logits = embeddings @ own["weight"].to(embeddings).T
    if "bias" in own:
        logits = logits + own["bias"].to(embeddings)
    if not torch.isfinite(logits).all():
        raise InvalidObservation("the model puts out NaN or infinite logits: it is broken")
    return Probe(embeddings, logits)


def passages(
    model: nn.Module, layer: nn.Module, inputs: Num[Tensor, "samples ..."], size: int = _GROUP
) -> Iterator[Passage]:
    """Run inputs through a model in groups, and see what enters and leaves one of its layers.

    Args:
        model: The network, in whatever mode it is to run in.
        layer: One of its modules.
        inputs: Shape (samples, ...), moved to the model's device and dtype group by group; tokens
            (int64 or int32) keep their dtype.
        size: Most samples in a group. Groups are about equal: a last one of one sample would stop
            BatchNorm in training mode.

    Yields:
        Every run of the layer, in the order of the inputs.

    Raises:
        InvalidObservation: The inputs do not fit the model.
    """
    like = next(model.parameters())
    for group in inputs.tensor_split(-(-len(inputs) // size)):
        try:
            with recorded(layer) as runs:
                model(group.to(like.device if group.dtype in _TOKENS else like))
        except RuntimeError as error:
            raise InvalidObservation(
                f"inputs of shape {tuple(inputs.shape[1:])} do not go through the model: "
                f"{str(error).splitlines()[0]}"
            ) from None
        yield from runs


def class_means(
    values: Float[Tensor, "samples columns"], labels: Int[Tensor, " samples"], classes: int
) -> Float[Tensor, "classes columns"]:
    """Mean of the rows of every class; every class must occur."""
    labels = labels.to(values.device)
    sums = values.new_zeros(classes, values.shape[1]).index_add_(0, labels, values)
    return sums / torch.bincount(labels, minlength=classes)[:, None]


class Directions(NamedTuple):
    """The principal directions of embeddings.

    Attributes:
        middle: Mean embedding, shape (features,).
        axes: Orthonormal, shape (directions, features).
        sizes: Singular values of the centered embeddings along them, shape (directions,).
    """

    middle: Float[Tensor, " features"]
    axes: Float[Tensor, "directions features"]
    sizes: Float[Tensor, " directions"]


def principal_directions(embeddings: Float[Tensor, "samples features"], most: int) -> Directions:
    """The first principal directions of embeddings.

    Args:
        embeddings: Float64, shape (samples, features).
        most: Number of directions; fewer where the embeddings have no more.
    """
    middle = embeddings.mean(dim=0)
    _, sizes, axes = torch.linalg.svd(embeddings - middle, full_matrices=False)
    # A direction in which embeddings differ by rounding alone tells nothing.
    noise = implied_rounding(embeddings) * sum(size**0.5 for size in embeddings.shape)
    kept = min(most, int((sizes > noise).sum()))
    return Directions(middle, axes[:kept], sizes[:kept])


def contributions(
    residuals: Float[Tensor, "samples classes"], places: Float[Tensor, "samples directions"]
) -> Float[Tensor, "samples entries"]:
    """Every residual, and the same times the sample's places along directions.

    Args:
        residuals: Float64, shape (samples, classes). All together are zero, so that the last
            class's entries are left out.
        places: Float64, shape (samples, directions).

    Returns:
        Float64, shape (samples, (classes - 1) * (directions + 1)).
    """
    factors = torch.cat([torch.ones_like(residuals[:, :1]), places], dim=1)
    return (residuals[:, :-1, None] * factors[:, None, :]).flatten(1)


def _model_of(observation: Observation) -> nn.Module:
    if observation.model is None:
        raise MissingKnowledge("the whole model is missing (model=...)")
    return observation.model


def _load(model: nn.Module, state: Mapping[str, Tensor]) -> None:
    own = model.state_dict()
    for name, value in own.items():
        if name in state and state[name].shape != value.shape:
            raise InvalidObservation(f"{name} has another shape in the client's model")
    absent = [name for name, _ in model.named_parameters() if name not in state]
    if absent:
        raise InvalidObservation(f"the client's model has no {absent[0]}")
    model.load_state_dict({**own, **{name: state[name] for name in own if name in state}})
