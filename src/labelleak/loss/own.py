"""A loss that is a function of the user's: its residual by autograd, and what must hold of it."""

from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from labelleak.errors import InvalidObservation
from labelleak.loss.told import Told

# Samples that a function is tried on, and how far two residuals of one sample may be apart.
_SAMPLES, _SAME = 4, 1e-6
# Entries of residuals that are computed at once.
_ENTRIES = 1 << 22
_WHAT = "the loss function"
_OTHER_DTYPE = (
    "it is called with logits in double precision: bring tensors of your own to theirs "
    "(weights.to(logits))"
)


class Properties(NamedTuple):
    """What was found of a function.

    Attributes:
        sums_vanish: Whether the residuals of a sample sum to zero over the outputs.
    """

    sums_vanish: bool


def own_value(
    told: Told, logits: Float[Tensor, "samples outputs"], targets: Tensor
) -> Float[Tensor, ""]:
    """The loss of a batch; a function that keeps samples apart is reduced as was told."""
    assert told.function is not None, "checked"
    found = told.function(logits, targets)
    if not isinstance(found, Tensor) or found.shape not in {(), (len(logits),), logits.shape}:
        what = tuple(found.shape) if isinstance(found, Tensor) else type(found).__name__
        raise InvalidObservation(
            f"{_WHAT} returns {what} for logits of shape {tuple(logits.shape)}: a tensor of one "
            "number, or of one for each sample, is needed"
        )
    if told.reduction == "sum" or not found.ndim:
        return found.sum()
    return found.sum() / len(logits) if told.reduction == "sample_mean" else found.mean()


def own_residual(
    told: Told, logits: Float[Tensor, "samples outputs"], targets: Tensor, divisor: float
) -> Float[Tensor, "samples outputs"]:
    """Derivative of every sample's loss by its logits, times what the loss divides by.

    Args:
        told: With the function.
        logits: Any floating dtype.
        targets: Class indices, or zeros and ones in the shape of the logits.
        divisor: Of the batch.

    Raises:
        InvalidObservation: The function has no derivative there, or it is not finite.
    """
    if not len(logits):
        return torch.zeros_like(logits)
    targets = targets if told.kind == "custom" else targets.reshape(logits.shape).to(logits)
    with torch.enable_grad():
        place = logits.detach().clone().requires_grad_()
        value = own_value(told, place, targets)
        if not value.requires_grad:
            raise InvalidObservation(
                f"{_WHAT} has no derivative by the logits: compute it with torch from these"
            )
        (found,) = torch.autograd.grad(value, place, allow_unused=True)
    if found is None or not bool(torch.isfinite(found).all()):
        raise InvalidObservation(
            f"{_WHAT} has no finite derivative at the logits of some sample: use a form that is "
            "stable (log_softmax in place of the logarithm of a softmax)"
        )
    residual: Tensor = divisor * found
    return residual


def own_class_residuals(
    told: Told, logits: Float[Tensor, "samples outputs"]
) -> Float[Tensor, "samples classes outputs"]:
    """Residual of a sample of every class, at each of the logits; classes are the targets."""
    outputs = logits.shape[1]
    labels, parts = torch.arange(outputs, device=logits.device), []
    for rows in torch.split(logits, max(1, _ENTRIES // outputs**2)):
        targets = labels.repeat(len(rows))
        divisor = float(len(targets)) if told.averages else 1.0
        found = own_residual(told, rows.repeat_interleave(outputs, dim=0), targets, divisor)
        parts.append(found.reshape(len(rows), outputs, outputs))
    return torch.cat(parts)


def examined(told: Told, outputs: int) -> Properties:
    """What holds of a function of the user's, after making sure that attacks can read it.

    It is tried on a few samples. Each has to have the residual that it has alone, whatever the
    others are, and the residual has to depend on the target; where every label is decided by
    itself, that of a label on nothing but its own logit and target.

    Raises:
        InvalidObservation: One of these does not hold, in one line that says what to do.
    """
    logits, targets = _tried(told, outputs)
    together = _residual(told, logits, targets)
    if not torch.equal(together, _residual(told, logits, targets)):
        raise InvalidObservation(
            f"{_WHAT} is another one at every call (it draws random numbers): no gradient says "
            "what was drawn"
        )
    alone = torch.cat(
        [_residual(told, logits[k : k + 1], targets[k : k + 1]) for k in range(len(logits))]
    )
    _check_separable(together, alone)
    other = _residual(told, logits, 1 - targets if told.kind != "custom" else targets.roll(1))
    if _near(together, other):
        raise InvalidObservation(f"{_WHAT} does not depend on the targets: it tells no labels")
    if told.kind == "custom_labels" and outputs > 1:
        _check_labels_apart(told, logits, targets, together)
    sums = together.sum(dim=1).abs()
    return Properties(bool((sums <= _SAME * together.abs().sum(dim=1)).all()))


def _tried(told: Told, outputs: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(_SAMPLES, outputs, generator=generator, dtype=torch.float64)
    samples = torch.arange(_SAMPLES)
    if told.kind == "custom":
        return logits, samples % outputs
    return logits, ((samples[:, None] + torch.arange(outputs)) % 2).double()


def _residual(told: Told, logits: Tensor, targets: Tensor) -> Tensor:
    """As `own_residual`; what the function raises is told in one line."""
    divisor = float(len(logits)) if told.averages else 1.0
    try:
        return own_residual(told, logits, targets, divisor)
    except InvalidObservation:
        raise
    except Exception as error:  # whatever a function of the user's raises
        lines = str(error).splitlines() or [type(error).__name__]
        hint = f"; {_OTHER_DTYPE}" if "Float" in lines[0] or "dtype" in lines[0] else ""
        raise InvalidObservation(
            f"{_WHAT} fails on logits of shape {tuple(logits.shape)} and targets of shape "
            f"{tuple(targets.shape)}: {lines[0]:.200}{hint}"
        ) from None


def _near(one: Tensor, other: Tensor) -> bool:
    return float((one - other).abs().max()) <= _SAME * float(one.abs().max())


def _check_separable(together: Tensor, alone: Tensor) -> None:
    """Refuse a function that is no sum, or mean, over the samples."""
    if _near(alone, together):
        return
    for factor, told in ((len(alone), "sum"), (1.0 / len(alone), "mean")):
        if _near(factor * alone, together):
            raise InvalidObservation(
                f"{_WHAT} {'adds up' if told == 'sum' else 'averages'} over samples: say "
                f"reduction={told!r}"
            )
    raise InvalidObservation(
        f"{_WHAT} is no sum or mean over samples: the derivative by one sample's logits depends on "
        "the others, as with a divisor of weights, contrastive and ranking losses, or Dice; what "
        "such an update gives away cannot be read"
    )


def _check_labels_apart(told: Told, logits: Tensor, targets: Tensor, found: Tensor) -> None:
    """Refuse a function that does not decide about every label by itself."""
    for label in {0, logits.shape[1] - 1}:
        changed, others = 1.0 - logits, 1 - targets
        changed[:, label], others[:, label] = logits[:, label], targets[:, label]
        moved = _residual(told, changed, others)
        if float((moved - found)[:, label].abs().max()) > _SAME * float(found.abs().max()):
            raise InvalidObservation(
                f"{_WHAT} does not decide about every label by itself: the derivative by a label's "
                "logit depends on the other labels, and label sets cannot be counted; where every "
                "sample has one class, say targets='classes'"
            )
