"""The gradient of every parameter, by backward passes over pieces of a batch."""

from collections.abc import Iterable
from dataclasses import replace

import torch
from jaxtyping import Shaped
from torch import Tensor, nn

from labelleak.errors import InvalidObservation
from labelleak.loss import CUSTOM, Loss, by_pixel


def whole_gradient(
    model: nn.Module,
    pieces: Iterable[tuple[Tensor, Shaped[Tensor, "samples *labels"]]],
    *,
    loss: Loss | str = "cross_entropy",
) -> dict[str, Tensor]:
    """The gradient of the batch's loss by every parameter.

    Memory does not grow with the batch: pieces are added up, in double precision.

    Args:
        model: A network that maps inputs to logits, in evaluation mode, on any device.
        pieces: ``(inputs, labels)`` of one batch, piece by piece.
        loss: The client's loss, or the name of its kind.

    Returns:
        Gradient by name of every parameter that requires one and took part, in its own dtype.

    Raises:
        InvalidObservation: The batch is empty, or the model is in training mode, where pieces have
            no common BatchNorm statistics.

    Examples:
        >>> import torch, labelleak
        >>> _ = torch.manual_seed(0)
        >>> model = torch.nn.Linear(20, 5)
        >>> inputs, labels = torch.rand(8, 20), torch.tensor([0, 0, 0, 1, 1, 3, 3, 4])
        >>> from labelleak.updates import whole_gradient
        >>> pieces = zip(inputs.split(3), labels.split(3))
        >>> sorted(whole_gradient(model.eval(), pieces))
        ['bias', 'weight']
    """
    if any(module.training for module in model.modules()):
        raise InvalidObservation("a batch in pieces needs a model in evaluation mode: model.eval()")
    loss = Loss.of(loss)
    parameters = {n: value for n, value in model.named_parameters() if value.requires_grad}
    sums: dict[str, Tensor] = {}
    divisor, samples = 0.0, 0
    for inputs, labels in pieces:
        with torch.enable_grad():
            logits = model(inputs)
            logits, own = by_pixel(logits, labels)
            targets = loss.check_targets(own, len(logits), logits[0].numel())
            summed = _summed(loss, logits, targets)
            found = torch.autograd.grad(summed, list(parameters.values()), allow_unused=True)
        for name, value in zip(parameters, found, strict=True):
            if value is not None:
                sums[name] = sums[name] + value if name in sums else value.double()
        divisor += loss.divisor(targets)
        samples += loss.num_samples(targets)
    if not samples:
        raise InvalidObservation("the batch is empty: there is no gradient to capture")
    scale = divisor if loss.averages else 1.0
    return {name: (value / scale).to(parameters[name].dtype) for name, value in sums.items()}


def _summed(loss: Loss, logits: Tensor, targets: Tensor) -> Tensor:
    """The losses of single samples, added up; a function of the user's averages by itself."""
    if loss.kind in CUSTOM:
        return loss.divisor(targets) * loss.value(logits, targets)
    return replace(loss, reduction="sum").value(logits, targets)
