"""Which tensor of an update belongs to the head of a model, where their names differ.

The update may have a prefix that the model has not, or the other way round; PEFT adds a level; and
a head may be there several times (a frozen copy, a teacher): then the one that changed is read.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from labelleak.checks import is_plain
from labelleak.errors import InvalidObservation
from labelleak.updates.ends import LINEAR_ONLY, TIED, Accepted, is_table
from labelleak.updates.heads import (
    head_candidates,
    layer_of,
    named_head,
    not_clear,
    parameter_name,
    without_peft,
)

# Rows of a table that are compared first: where they differ, the rest need not be read.
_FIRST_ROWS = 16


@runtime_checkable
class Tensors(Protocol):
    """Tensors of which the shapes are known at once, and each value when it is asked for."""

    @property
    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        """Shape of every tensor by name."""

    def tensor(self, name: str) -> Tensor:
        """The tensor of that name."""


@dataclass(frozen=True)
class Held:
    """Tensors that are in memory."""

    values: Mapping[str, Tensor]

    @cached_property
    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        """Shape of every tensor by name."""
        return {name: tuple(value.shape) for name, value in self.values.items()}

    def tensor(self, name: str) -> Tensor:
        """The tensor of that name."""
        return self.values[name]


@dataclass(frozen=True)
class Pair:
    """A head, and where the update has it.

    Attributes:
        layer: Its name in the model.
        sent: Its name in the update.
        is_turned: Whether the update has the weight as (features, classes).
        is_one_of_several: Whether the update has other copies, which did not change.
    """

    layer: str
    sent: str
    is_turned: bool = False
    is_one_of_several: bool = False

    @property
    def name(self) -> str:
        """What was read: its name in the update where that has several copies."""
        return self.sent if self.is_one_of_several else self.layer

    def tensor(self, update: Tensors, kind: str) -> Tensor | None:
        """The update's weight or bias, as the model has it; None where it was not sent."""
        name = parameter_name(self.sent, kind)
        if name not in update.shapes:
            return None
        tensor = update.tensor(name)
        return tensor.T if self.is_turned and kind == "weight" else tensor

    def by_model_names(
        self, update: Mapping[str, Tensor], model: Mapping[str, Tensor]
    ) -> dict[str, Tensor]:
        """The whole update by the names of the model, as far as it has such tensors."""
        ours, theirs = self.layer.split("."), self.sent.split(".")
        while ours and theirs and ours[-1] == theirs[-1]:
            del ours[-1], theirs[-1]
        before, after = ("".join(f"{part}." for part in parts) for parts in (theirs, ours))
        renamed = {}
        for name, value in update.items():
            other = after + name.removeprefix(before)
            known = name.startswith(before) and other in model
            renamed[other if known else name] = value
        for kind in ("weight", "bias"):
            own = self.tensor(Held(update), kind)
            if own is not None:
                renamed[parameter_name(self.layer, kind)] = own
        return renamed


Changed = Callable[[Tensor, Tensor], bool]


def find_pair(
    model: Tensors,
    update: Tensors,
    head: str | None,
    changed: Changed,
    *,
    accepted: Accepted = LINEAR_ONLY,
) -> Pair:
    """The head, and where the update has it.

    Args:
        model: The model that was handed out.
        update: What the client sends back.
        head: Name of the head, in the model or in the update; None to find it.
        changed: Whether a tensor of the update says that the model's has been trained.
        accepted: Which last layers can be read beside a linear one, by the loss.

    Returns:
        The one of which the names fit. Where the update has nothing of that shape, the pair has
        the model's name on both sides.

    Raises:
        AmbiguousHead: The head is not clear, or there are copies and more than one changed.
        InvalidObservation: The head is tied to a table of embeddings.
    """
    layers, only = _layers(model, update, head, accepted=accepted)
    pairs = [
        Pair(layer, sent, is_turned=turned, is_one_of_several=len(found) > 1)
        for layer in layers
        for found in [_counterparts(layer, model.shapes, update.shapes)]
        for sent, turned in found
        if only is None or sent == only
    ]
    weights = {layer: model.shapes[parameter_name(layer, "weight")] for layer in layers}
    if len(set(weights.values())) > 1:
        raise not_clear(weights)
    if len(pairs) > 1:
        trained = [pair for pair in pairs if has_changed(pair, model, update, changed)]
        pairs = trained or pairs
        if len(pairs) > 1:
            raise not_clear(
                {
                    pair.sent if len(layers) == 1 else pair.layer: weights[pair.layer]
                    for pair in pairs
                },
                f": {len(pairs)} layers of one shape changed" if trained else "",
            )
    if not pairs and len(layers) > 1:
        raise not_clear(weights)
    pair = pairs[0] if pairs else Pair(layers[0], layers[0])
    _check_not_tied(model, update, pair)
    return pair


def _layers(
    model: Tensors, update: Tensors, head: str | None, *, accepted: Accepted
) -> tuple[list[str], str | None]:
    """Candidates in the model, and the layer of the update if the caller named that."""
    if head is None:
        return head_candidates(model.shapes, accepted=accepted), None
    layer = layer_of(head) if head.rpartition(".")[2] in ("weight", "bias") else head
    weight = parameter_name(layer, "weight")
    if weight in update.shapes and weight not in model.shapes:
        back = _counterparts(layer, update.shapes, model.shapes)
        if len(back) == 1:
            return [back[0][0]], layer
    return [named_head(model.shapes, head, accepted=accepted)], None


def _counterparts(
    layer: str, own: Mapping[str, tuple[int, ...]], others: Mapping[str, tuple[int, ...]]
) -> list[tuple[str, bool]]:
    """Layers on the other side that may be the same, and whether their weight is turned.

    Where the other side has no such weight, its bias tells.
    """
    for kind in ("weight", "bias"):
        exact = parameter_name(layer, kind)
        shape = own.get(exact, ())
        turned = shape[::-1] if kind == "weight" else shape
        if exact in others:
            return [(layer, others[exact] == turned != shape)]
        fitting = {
            layer_of(name): other != shape
            for name, other in others.items()
            if name.rpartition(".")[2] == kind and other in (shape, turned)
            if kind == "weight" or parameter_name(layer_of(name), "weight") not in others
        }
        if same := _of_that_name(layer, list(fitting), own, others):
            return [(name, fitting[name]) for name in same]
    return []


def _of_that_name(
    layer: str, candidates: list[str], own: Iterable[str], others: Iterable[str]
) -> list[str]:
    """Candidates that bear a layer's name but for PEFT's level, a suffix of it, or its rest."""
    plain = without_peft(layer)
    same = [name for name in candidates if without_peft(name) == plain]
    same = same or [name for name in candidates if _is_suffix(plain, without_peft(name))]
    if not same:
        mine, theirs = _common_prefix(own), _common_prefix(others)
        short = plain.removeprefix(mine)
        same = [name for name in candidates if without_peft(name).removeprefix(theirs) == short]
    return [name for name in same if "original_module" not in name] or same


def _is_suffix(one: str, other: str) -> bool:
    """Whether the longer name is the shorter one behind a prefix; a name is no prefix of none."""
    short, long = sorted((one, other), key=len)
    return bool(short) and long.endswith(f".{short}")


def _common_prefix(names: Iterable[str]) -> str:
    """What all layers have before the dots of their names: ``model.``, or nothing."""
    layers = [layer_of(name).split(".") for name in names]
    common: list[str] = []
    for parts in zip(*layers, strict=False):
        if len(set(parts)) > 1:
            break
        common.append(parts[0])
    return "".join(f"{part}." for part in common)


def has_changed(pair: Pair, model: Tensors, update: Tensors, changed: Changed) -> bool:
    """Whether the head was trained, by its weight or else its bias; `changed` as of `find_pair`."""
    for kind in ("weight", "bias"):
        sent = pair.tensor(update, kind)
        if sent is not None:
            return changed(model.tensor(parameter_name(pair.layer, kind)), sent)
    return False


def _check_not_tied(model: Tensors, update: Tensors, pair: Pair) -> None:
    """Refuse a head that is the table in which the model looks its tokens up.

    Raises:
        InvalidObservation: It is.
    """
    own = parameter_name(pair.layer, "weight")
    for name, shape in model.shapes.items():
        if name == own or shape != model.shapes[own]:
            continue
        if is_table(name) and _is_same(model, own, name):
            sent = parameter_name(pair.sent, "weight")
            both = name in update.shapes and sent in update.shapes
            if not both or _is_same(update, sent, name):
                raise InvalidObservation(
                    f"the head {pair.layer!r} is tied to the table {layer_of(name)!r}{TIED}"
                )


def _is_same(tensors: Tensors, one: str, other: str) -> bool:
    """Whether two tensors are one, or hold the same numbers."""
    first, second = tensors.tensor(one), tensors.tensor(other)
    if not (is_plain(first) and is_plain(second)):
        return False
    if first.data_ptr() == second.data_ptr() and first.stride() == second.stride():
        return True
    some = slice(0, _FIRST_ROWS)
    return (
        first.dtype == second.dtype
        and torch.equal(first[some], second[some])
        and bool(first.any())
        and torch.equal(first, second)
    )
