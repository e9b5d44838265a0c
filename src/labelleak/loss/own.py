"""A loss that is a function of the user's: its residual by autograd, and what must hold of it."""

import torch
from jaxtyping import Float
from torch import Tensor

from labelleak.errors import InvalidObservation
from labelleak.loss.told import Told

# Fewest samples that a function is tried on, how far two residuals of one sample may be apart, and
# how many of them are also computed alone.
_SAMPLES, _SAME, _ALONE = 4, 1e-6, 64
# Draws of labels that are changed together.
_DRAWS = 4
# Entries of residuals that are computed at once.
_ENTRIES = 1 << 22
_WHAT = "the loss function"
_OTHER_DTYPE = (
    "it is called with logits in double precision: bring tensors of your own to theirs "
    "(weights.to(logits))"
)


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


def own_sums_vanish(told: Told, outputs: int) -> bool:
    """Whether residuals of a function of the user's sum to zero over the outputs; it is checked.

    Attacks have to be able to read it. It is tried on a few samples, or one of every class. Each
    has to have the residual that it has alone, whatever the others are, and the residual has to
    depend on the target; where every label is decided by itself, that of a label on nothing but its
    own logit and target.

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
    # Of many classes some are tried alone, and all in two halves.
    chosen = torch.linspace(0, len(logits) - 1, min(len(logits), _ALONE)).round().long()
    alone = torch.cat(
        [_residual(told, logits[k : k + 1], targets[k : k + 1]) for k in chosen.tolist()]
    )
    _check_separable(together[chosen], alone, len(logits))
    middle = len(logits) // 2
    halves = [_residual(told, logits[part], targets[part]) for part in _parts(middle)]
    _check_separable(together, torch.cat(halves), 2)
    nothing = ~together.any(dim=1)
    if told.kind == "custom" and bool(nothing.any()):
        label = int(targets[nothing][0])
        raise InvalidObservation(
            f"{_WHAT} leaves out samples of class {label}, and no update tells how many there are: "
            "a loss of labelleak's own takes ignore_index"
        )
    other = _residual(told, logits, 1 - targets if told.kind != "custom" else targets.roll(1))
    if _near(together, other):
        raise InvalidObservation(f"{_WHAT} does not depend on the targets: it tells no labels")
    if told.kind == "custom_labels" and outputs > 1:
        _check_labels_apart(told, logits, targets, together)
    sums = together.sum(dim=1).abs()
    return bool((sums <= _SAME * together.abs().sum(dim=1)).all())


def _tried(told: Told, outputs: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    number = max(_SAMPLES, outputs) if told.kind == "custom" else _SAMPLES
    number = min(number, max(_SAMPLES, _ENTRIES // outputs))
    logits = torch.randn(number, outputs, generator=generator, dtype=torch.float64)
    samples = torch.arange(number)
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


def _parts(middle: int) -> tuple[slice, slice]:
    return slice(None, middle), slice(middle, None)


def _check_separable(together: Tensor, alone: Tensor, parts: int) -> None:
    """Refuse a function that is no sum, or mean, over the samples, given in so many parts."""
    if _near(alone, together):
        return
    for factor, told in ((parts, "sum"), (1.0 / parts, "mean")):
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
    labels = logits.shape[1]
    generator = torch.Generator().manual_seed(1)
    kept = [torch.arange(labels) == label for label in (0, labels - 1)]
    # Any two labels are on different sides of one of the draws, but for a small chance.
    kept += [torch.rand(labels, generator=generator) < 0.5 for _ in range(_DRAWS)]
    for own in kept:
        changed = torch.where(own, logits, 1.0 - logits)
        others = torch.where(own, targets, 1 - targets)
        moved = _residual(told, changed, others)
        if float((moved - found)[:, own].abs().sum()) > _SAME * float(found.abs().sum()):
            raise InvalidObservation(
                f"{_WHAT} does not decide about every label by itself: the derivative by a label's "
                "logit depends on the other labels, and label sets cannot be counted; where every "
                "sample has one class, say targets='classes'"
            )
