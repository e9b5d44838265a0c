"""Reading a client's reply with care: what is wrong with it, and what a server sees of it."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from labelleak.errors import InvalidObservation
from labelleak.federated.buffers import Buffers, integers_in, read_buffers
from labelleak.federated.contents import shown
from labelleak.loss import Loss
from labelleak.observation import Auxiliary, Observation
from labelleak.training import LocalTraining
from labelleak.updates import observe, observe_update
from labelleak.updates.ends import LINEAR_ONLY, Accepted
from labelleak.updates.gradients import observe_head
from labelleak.updates.heads import (
    by_bare_name,
    layer_of,
    named_head,
    parameter_name,
    strip_wrappers,
)
from labelleak.updates.weights import observe_head_update

_MOST_NAMED = 3
_MOST_LETTERS = 500


class _Kind(NamedTuple):
    shape: tuple[int, ...] | None
    floating: bool


@dataclass(frozen=True, eq=False)
class Reading:
    """How replies are read: what is the same for all that one auditor sees.

    Attributes:
        head: Name of the final linear layer; None to find it.
        model: The network, on the CPU; it is given the weights that the server handed out. None:
            attacks have the parameters alone.
        whole: Whether to read more than the head.
        knowledge: Other fields of `Observation` that hold for every update.
    """

    head: str | None
    model: nn.Module | None
    whole: bool
    knowledge: Mapping[str, Any]

    def lent(self, auxiliary: Auxiliary | None) -> "Reading":
        """The same with other auxiliary samples, if there are any."""
        if auxiliary is None:
            return self
        return replace(self, knowledge={**self.knowledge, "auxiliary": auxiliary})

    @property
    def accepted(self) -> Accepted:
        """Which last layers can be read beside a linear one, by the loss."""
        loss = self.knowledge.get("loss")
        return Accepted.by(loss) if isinstance(loss, Loss) else LINEAR_ONLY


class Snapshot(dict[str, Tensor]):
    """Copies of what an audit reads of a model, and of what kind all the rest was.

    Attributes:
        kinds: Shape of every tensor by name, without the prefixes of wrappers, and whether it is
            one of floating-point numbers.
        integers: See `integers_in`.
    """

    def __init__(
        self,
        state: Mapping[str, Tensor],
        *,
        head: str | None,
        whole: bool,
        accepted: Accepted = LINEAR_ONLY,
    ) -> None:
        """Copy the head to the CPU, or everything.

        Args:
            state: State dict, or parameters by name.
            head: Name of the final linear layer; None to find it.
            whole: Whether more than the head is read.
            accepted: Which last layers can be read beside a linear one.

        Raises:
            AmbiguousHead: The head is not clear.
        """
        bare = by_bare_name(state)
        names = list(bare) if whole else head_names(bare, head, accepted=accepted)
        super().__init__({name: bare[name].detach().to("cpu", copy=True) for name in names})
        self.kinds = _kinds(bare)
        self.integers = integers_in(bare)


def problem_of(
    before: Mapping[str, Any], reply: Mapping[str, Any], *, complete: bool
) -> str | None:
    """What is wrong with a reply beside the model that was handed out.

    Args:
        before: State dict that the server handed out.
        reply: What is about to be sent back.
        complete: All tensors of the model must be there, as in weights; a gradient may lack some.

    Returns:
        Missing and unknown names, other shapes and types, entries that are NaN or infinite; None
        where all is well. An unknown tensor is a problem because nobody audits it.
    """
    start = before.kinds if isinstance(before, Snapshot) else _kinds(by_bare_name(before))
    sent = by_bare_name(reply)
    missing = [name for name in start if name not in sent] if complete else []
    unknown = [name for name in sent if name not in start]
    shared = [name for name in sent if name in start]
    if not complete:
        shared = [name for name in shared if sent[name] is not None]
    kinds = _kinds({name: sent[name] for name in shared})
    shapes = [name for name in shared if kinds[name].shape != start[name].shape]
    types = [name for name in shared if start[name].floating and not kinds[name].floating]
    broken = [name for name in shared if name not in types and not _is_finite(sent[name])]
    found = (
        ("tensors are missing", missing),
        ("the model has no such tensors", unknown),
        ("shapes differ", shapes),
        ("no floating-point numbers", types),
        ("NaN or infinite", broken),
    )
    texts = [f"{what}: {_listed(names)}" for what, names in found if names]
    return f"the reply is malformed ({'; '.join(texts)})" if texts else None


def buffers_of(before: Mapping[str, Any], reply: Mapping[str, Any]) -> Buffers:
    """What the buffers of a reply say, see `read_buffers`.

    Args:
        before: State dict that the server handed out, or a snapshot of it.
        reply: State dict that is about to be sent back.
    """
    start = before.integers if isinstance(before, Snapshot) else integers_in(by_bare_name(before))
    return read_buffers(start, by_bare_name(reply))


def head_names(
    state: Mapping[str, Any], head: str | None, *, accepted: Accepted = LINEAR_ONLY
) -> list[str]:
    """Names of the head's weight and bias, without wrappers' prefixes; not every head has one.

    Args:
        state: State dict.
        head: Name of the final linear layer; None to find it.
        accepted: Which last layers can be read beside a linear one, by the loss.

    Raises:
        AmbiguousHead: The head is not clear.
    """
    bare = _bare(state)
    shapes = {name: value.shape for name, value in bare.items() if isinstance(value, Tensor)}
    layer = named_head(shapes, head, accepted=accepted)
    return [parameter_name(layer, kind) for kind in ("weight", "bias")]


def classes_of(
    state: Mapping[str, Any], head: str | None, *, accepted: Accepted = LINEAR_ONLY
) -> int:
    """Number of classes or labels that the head tells apart; one logit tells two classes.

    Raises:
        AmbiguousHead: The head is not clear.
    """
    names = head_names(state, head, accepted=accepted)
    outputs: int = _bare(state)[names[0]].shape[0]
    return 2 if outputs == 1 else outputs


def observe_weights(
    before: Mapping[str, Any],
    after: Mapping[str, Any],
    training: LocalTraining,
    instances: int | None,
    reading: Reading,
) -> Observation:
    """What a server sees of weights: of the head alone, or of all that is there.

    Args:
        before: State dict that the server handed out.
        after: State dict that is sent back.
        training: The recipe, resolved.
        instances: Number of different samples, where it is known.
        reading: What holds for every update.

    Returns:
        The observation, on the CPU.

    Raises:
        LabelLeakError: What is there cannot be read, or the learning rate is not known.
    """
    if reading.whole:
        start = _on_cpu(before)
        return observe_update(
            _model_at(reading.model, start),
            start,
            _on_cpu(after),
            training=training,
            instances=instances,
            head=reading.head,
            **reading.knowledge,
        )
    names = head_names(before, reading.head, accepted=reading.accepted)
    start, end = _on_cpu(before, names), _on_cpu(after, names)
    layer = layer_of(next(iter(start)))
    return observe_head_update(
        start, end, layer, training, instances=instances, **reading.knowledge
    )


def observe_gradients(
    before: Mapping[str, Any],
    gradients: Mapping[str, Any],
    training: LocalTraining,
    instances: int | None,
    reading: Reading,
) -> Observation:
    """What a server sees of gradients; the arguments are those of `observe_weights`.

    Raises:
        LabelLeakError: What is there cannot be read.
    """
    knowledge = {**reading.knowledge, "training": training, "instances": instances}
    if reading.whole:
        start = _on_cpu(before)
        seen = _model_at(reading.model, start) or start
        return observe(seen, _on_cpu(gradients), head=reading.head, **knowledge)
    names = head_names(before, reading.head, accepted=reading.accepted)
    start, sent = _on_cpu(before, names), _on_cpu(gradients, names)
    return observe_head(start, sent, layer_of(next(iter(start))), **knowledge)


def text_of(error: Exception | str) -> str:
    """An error in one line that is not too long."""
    text = " ".join(str(error).split()) or type(error).__name__
    if not isinstance(error, str | ValueError | OSError):
        text = f"{type(error).__name__}: {text}"
    return text if len(text) <= _MOST_LETTERS else f"{text[: _MOST_LETTERS - 3]}..."


def _bare(tensors: Mapping[str, Any]) -> dict[str, Any]:
    """By bare names, which a snapshot has: where the head is all of it, more would come off."""
    return dict(tensors) if isinstance(tensors, Snapshot) else by_bare_name(tensors)


def _on_cpu(tensors: Mapping[str, Any], names: Iterable[str] | None = None) -> dict[str, Tensor]:
    """The tensors of those names, or all, that are there; without wrappers' prefixes."""
    bare = _bare(tensors)
    found = {}
    for name in bare if names is None else names:
        if isinstance(value := bare.get(name), Tensor):
            value = value.detach().cpu()
            # Those of an inference mode cannot be computed gradients with.
            found[name] = value.clone() if value.is_inference() else value
    return found


def _model_at(model: nn.Module | None, start: Mapping[str, Tensor]) -> nn.Module | None:
    """The model with the weights that the server handed out.

    Raises:
        InvalidObservation: It is another network.
    """
    if model is None:
        return None
    bare = strip_wrappers(list(model.state_dict()))
    lacking = [name for name, _ in model.named_parameters() if bare[name] not in start]
    if lacking:
        raise InvalidObservation(f"the model is another one: it has {_listed(lacking)} besides")
    given = {name: start[short] for name, short in bare.items() if short in start}
    model.load_state_dict(given, strict=False)
    return model


def _kinds(tensors: Mapping[str, Any]) -> dict[str, _Kind]:
    return {
        name: _Kind(tuple(value.shape), value.is_floating_point())
        if isinstance(value, Tensor)
        else _Kind(None, False)
        for name, value in tensors.items()
    }


def _is_finite(value: Any) -> bool:
    """Whether it is a tensor of finite numbers."""
    if not isinstance(value, Tensor):
        return False
    try:
        # A sum is finite only if every term is, and needs no copy of the tensor.
        total = value.detach().sum(dtype=torch.float64 if value.is_floating_point() else None)
        return math.isfinite(total) or bool(torch.isfinite(value).all())
    except (RuntimeError, TypeError, ValueError):
        return False


def _listed(names: list[str]) -> str:
    rest = len(names) - _MOST_NAMED
    listed = ", ".join(shown([name]) for name in names[:_MOST_NAMED])
    return f"{listed} and {rest} more" if rest > 0 else listed
