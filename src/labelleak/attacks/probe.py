"""What the server's own inputs, made up or auxiliary, look like at the head of the model."""

from collections.abc import Mapping
from copy import deepcopy
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from labelleak.errors import InvalidObservation, MissingKnowledge
from labelleak.observation import Auxiliary, Observation

Dummies = Literal["random", "zeros", "ones"]

_CHUNK = 64


@dataclass(frozen=True, eq=False)
class Probe:
    """Inputs at the head: float64, on the device of the observation's head.

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

    In training mode the inputs go through in random groups as large as the client's batches, for
    BatchNorm's sake. The model itself, its buffers and the caller's random state stay as they are.

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
    if state is not None or model.training:
        model = deepcopy(model)
    if state is not None:
        _load(model, state)
    seen: list[Tensor] = []

    def keep(_: nn.Module, arguments: tuple[Any, ...], keywords: dict[str, Any]) -> None:
        seen.append(arguments[0] if arguments else keywords["input"])

    head = model.get_submodule(layer)
    weight = next(head.parameters())
    inputs = inputs.to(weight)
    order = torch.arange(len(inputs))
    size = _CHUNK
    if model.training:
        order = torch.randperm(len(inputs), generator=torch.Generator().manual_seed(0))
        size = observation.batch_size or _CHUNK
    handle = head.register_forward_pre_hook(keep, with_kwargs=True)
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(0)
            for part in order.tensor_split(-(-len(inputs) // size)):
                model(inputs[part])
    except RuntimeError as error:
        raise InvalidObservation(
            f"inputs of shape {tuple(inputs.shape[1:])} do not go through the model: "
            f"{str(error).splitlines()[0]}"
        ) from None
    finally:
        handle.remove()
    embeddings = torch.cat(seen).to(observation.head.weight.device).double()
    embeddings = embeddings[order.argsort().to(embeddings.device)]
    own = {name: value.detach() for name, value in head.named_parameters()}
    logits = embeddings @ own["weight"].to(embeddings).T
    if "bias" in own:
        logits = logits + own["bias"].to(embeddings)
    if not torch.isfinite(logits).all():
        raise InvalidObservation("the model puts out NaN or infinite logits: it is broken")
    return Probe(embeddings, logits)


def dummies(observation: Observation, kind: Dummies, samples: int) -> Float[Tensor, "samples ..."]:
    """Made-up inputs: standard normal noise (the same at every call), zeros or ones.

    Raises:
        ValueError: No dummies of that kind, or none at all.
        MissingKnowledge: Nobody said what shape an input has.
    """
    if kind not in get_args(Dummies):
        raise ValueError(f"dummies {kind!r}: use {', '.join(map(repr, get_args(Dummies)))}")
    if samples < 1:
        raise ValueError(f"{samples} dummy inputs: there must be at least 1")
    shape = observation.input_shape
    if shape is None:
        if observation.auxiliary is None:
            raise MissingKnowledge("the shape of one input is missing (input_shape=...)")
        shape = tuple(observation.auxiliary.inputs.shape[1:])
    if kind == "random":
        return torch.randn(samples, *shape, generator=torch.Generator().manual_seed(0))
    # All the same: one is as good as many, and two keep BatchNorm going.
    return torch.full((2, *shape), 0.0 if kind == "zeros" else 1.0)


def auxiliary_of(observation: Observation, *, every_class: bool = True) -> Auxiliary:
    """The auxiliary data, checked to hold every class where that is asked for.

    Raises:
        MissingKnowledge: There is none, or a class has no sample in it.
    """
    auxiliary = observation.auxiliary
    if auxiliary is None:
        raise MissingKnowledge("auxiliary data is missing (auxiliary=Auxiliary(inputs, labels))")
    absent = (torch.bincount(auxiliary.labels, minlength=observation.classes) == 0).nonzero()[:, 0]
    if every_class and len(absent):
        listed = ", ".join(map(str, absent[:8].tolist())) + (", ..." if len(absent) > 8 else "")
        raise MissingKnowledge(
            f"the auxiliary data has no sample of {len(absent)} classes ({listed}): it needs at "
            "least one of every class"
        )
    return auxiliary


def class_means(
    values: Float[Tensor, "samples columns"], labels: Int[Tensor, " samples"], classes: int
) -> Float[Tensor, "classes columns"]:
    """Mean of the rows of every class; every class must occur."""
    labels = labels.to(values.device)
    sums = values.new_zeros(classes, values.shape[1]).index_add_(0, labels, values)
    return sums / torch.bincount(labels, minlength=classes)[:, None]


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
