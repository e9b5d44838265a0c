"""The observation that two files hold: only the tensors of the head are read."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from jaxtyping import Integer
from torch import Tensor

from labelleak.errors import AmbiguousHead, InvalidObservation, MissingKnowledge, UnreadableFile
from labelleak.loss import Loss
from labelleak.observation import Observation
from labelleak.training import LocalTraining
from labelleak.updates.ends import Accepted
from labelleak.updates.files import StoredTensors, TensorFile, by_name, open_stored
from labelleak.updates.gradients import observe_head
from labelleak.updates.heads import parameter_name
from labelleak.updates.layout import is_in_order, matched_in_order, names_in_order
from labelleak.updates.limits import LIMITS, Limits
from labelleak.updates.matching import Changed, Pair, find_pair, has_changed
from labelleak.updates.weights import observe_head_difference, observe_head_update

Kind = Literal["gradients", "weights", "difference"]


def read_observation(
    before: Path | str,
    update: Path | str,
    *,
    kind: Kind = "gradients",
    loss: Loss | str = "cross_entropy",
    training: LocalTraining | None = None,
    instances: int | None = None,
    present_classes: Integer[Tensor, " present"] | None = None,
    head: str | None = None,
    limits: Limits = LIMITS,
) -> Observation:
    """The observation that two files hold: the model handed out and what came back.

    Args:
        before: File of the model's state dict before the step, see `open_tensors` for formats.
        update: File of the gradients by parameter name, or of the weights after local training, or
            of how they differ from those before.
        kind: Which of the three `update` holds; a difference is weights after less weights before.
        loss: The client's loss, or the name of its kind.
        training: How the client trained; weights and differences need its learning rate and number
            of steps.
        instances: Number of different samples, see `Observation`, as is the following.
        present_classes: Classes known to be in the batch, int64, shape (present,).
        head: Name of the final linear layer; None to find it in the model's file.
        limits: What the files may claim at most.

    Returns:
        The observation of the head alone. Its name is that of the layer that was read; where the
        update has several copies, the name that it has there.

    Raises:
        UnreadableFile: A file is damaged, or the two do not fit.
        AmbiguousHead: The head is not clear.
        MissingKnowledge: Weights, and no learning rate or number of steps.
        InvalidObservation: A value is impossible.

    Examples:
        >>> import tempfile, torch
        >>> from pathlib import Path
        >>> from safetensors.torch import save_file
        >>> from labelleak import LocalTraining
        >>> from labelleak.updates import read_observation
        >>> folder = Path(tempfile.mkdtemp())
        >>> before, update = folder / "before.safetensors", folder / "update.safetensors"
        >>> save_file({"fc.weight": torch.zeros(3, 4), "fc.bias": torch.zeros(3)}, before)
        >>> save_file({"fc.weight": torch.ones(3, 4), "fc.bias": torch.ones(3)}, update)
        >>> read_observation(before, update, training=LocalTraining(batch_size=8)).classes
        3
    """
    if kind not in get_args(Kind):
        raise InvalidObservation(f"kind {kind!r}: use one of {', '.join(get_args(Kind))}")
    told = LocalTraining() if training is None else training
    told = told.resolved(instances, one_step=kind == "gradients")
    if kind != "gradients" and told.learning_rate is None:
        raise MissingKnowledge(
            "weights need the learning rate of the local steps to become a gradient "
            "(on the command line --learning-rate F)"
        )
    loss = Loss.of(loss)
    changed = _differ if kind == "weights" else _is_any
    find = partial(find_pair, changed=changed, accepted=Accepted.by(loss))
    model, sent, pair = _paired(
        *_in_one_order(open_stored(before, limits), open_stored(update, limits)),
        head,
        find,
        changed,
    )
    _check_fits(model, sent, pair)
    kinds = [one for one in ("weight", "bias") if parameter_name(pair.layer, one) in model.shapes]
    start = {
        parameter_name(pair.name, one): model.tensor(parameter_name(pair.layer, one))
        for one in kinds
    }
    found = {parameter_name(pair.name, one): pair.tensor(sent, one) for one in kinds}
    end = {name: value for name, value in found.items() if value is not None}
    more: dict[str, Any] = {
        "loss": loss,
        "instances": instances,
        "present_classes": present_classes,
    }
    if kind == "gradients":
        return observe_head(start, end, pair.name, training=told, **more)
    observe = observe_head_update if kind == "weights" else observe_head_difference
    return observe(start, end, pair.name, told, **more)


def _paired(
    model: TensorFile,
    sent: TensorFile,
    head: str | None,
    find: Callable[[TensorFile, TensorFile, str | None], Pair],
    changed: Changed,
) -> tuple[TensorFile, TensorFile, Pair]:
    """The tensors to read and the head among them, where a file may hold several state dicts.

    The usual one is read (``"model"`` beside ``"model_ema"``) unless it stayed as it was and
    another one changed, or the caller names a head of another one.

    Raises:
        AmbiguousHead: As `find_pair`; or more than one of the others changed.
    """
    usual = model.usual(), sent.usual()
    if usual[0] is model and usual[1] is sent:
        return model, sent, find(model, sent, head)
    try:
        pair = find(*usual, head)
    except AmbiguousHead:
        if head is None:
            raise
        return model, sent, find(model, sent, head)
    if has_changed(pair, *usual, changed):
        return *usual, pair
    try:
        other = find(model, sent, head)
    except AmbiguousHead:
        if _others_changed(model, sent, usual[1], changed):
            raise
        return *usual, pair
    return (model, sent, other) if has_changed(other, model, sent, changed) else (*usual, pair)


def _others_changed(
    model: TensorFile, sent: TensorFile, usual: TensorFile, changed: Changed
) -> bool:
    """Whether a matrix of another state dict than the usual one changed."""
    return any(
        changed(model.tensor(name), sent.tensor(name))
        for name, shape in sent.shapes.items()
        if len(shape) == 2 and name not in usual.shapes and model.shapes.get(name) == shape
    )


def _is_any(_: Tensor, gradient: Tensor) -> bool:
    return bool(gradient.any())


def _differ(before: Tensor, after: Tensor) -> bool:
    return not torch.equal(before.to(after), after)


def _in_one_order(model: StoredTensors, sent: StoredTensors) -> tuple[TensorFile, TensorFile]:
    """Both by name: arrays without names have those of the other file, by their order.

    Raises:
        InvalidObservation: There is not one array for each tensor.
    """
    files = (model, sent)
    unnamed = [is_in_order(list(file.shapes)) for file in files]
    if all(unnamed):
        names = [names_in_order(list(file.shapes.values())) for file in files]
    else:
        named = files[unnamed.index(False)]
        other = {name: s for name, s in named.shapes.items() if name.startswith(named.usual)}
        names = [
            matched_in_order(str(file.path), list(file.shapes.values()), other)
            if without
            else list(file.shapes)
            for file, without in zip(files, unnamed, strict=True)
        ]
    return by_name(model, names[0]), by_name(sent, names[1])


def _check_fits(model: TensorFile, sent: TensorFile, pair: Pair) -> None:
    """Refuse an update that has no such head, or one of another shape.

    Raises:
        UnreadableFile: It has not.
    """
    bias = parameter_name(pair.layer, "bias"), parameter_name(pair.sent, "bias")
    has_bias = bias[0] in model.shapes and bias[1] in sent.shapes
    for kind in ("weight", "bias"):
        own, name = parameter_name(pair.layer, kind), parameter_name(pair.sent, kind)
        expected, shape = model.shapes.get(own), sent.shapes.get(name)
        if expected is None or (shape is None and (kind == "bias" or has_bias)):
            continue
        if shape is None:
            raise UnreadableFile(
                f"{sent.path}: has no tensor {name!r}, the head of {model.path.name}; it holds "
                f"{', '.join(list(sent.shapes)[:4])}{', ...' if len(sent.shapes) > 4 else ''}"
                + _of_an_adapter(sent)
            )
        turned = pair.is_turned and kind == "weight"
        if (shape[::-1] if turned else shape) != expected:
            raise UnreadableFile(
                f"{sent.path}: {name!r} is {'x'.join(map(str, shape))}, and "
                f"{'x'.join(map(str, expected))} in {model.path.name}: "
                "they are not of the same model"
            )


def _of_an_adapter(sent: TensorFile) -> str:
    if any(".lora_" in name for name in sent.shapes):
        return "; it is an adapter that leaves the head as it is (see modules_to_save of PEFT)"
    return ""
