"""The share of pixels that a batch Dice loss gives away."""

import math

import torch
from torch import Tensor

from labelleak.errors import InvalidObservation, MissingKnowledge

# A gradient may lie so much beyond the largest of this loss, relatively: a sum over 14,000 pixels
# one by one, in single precision as on processors without vector instructions, is off by 6e-5, one
# over millions by more.
_ROUNDING = 1e-2


def dice_share(bias: Tensor, bias_gradient: Tensor) -> float:
    """The share of the pixels to be segmented, from one step under a Dice loss of the whole batch.

    The loss is ``1 - 2 sum(s y) / (sum(s) + sum(y))`` with the pixels' sigmoids s and masks y
    (Milletari, Navab and Ahmadi 2016, with plain sums in the denominator). It is no sum over
    pixels, but where all pixels have one prediction p, its bias gradient is
    ``-2 p (1 - p) q^2 / (p + q)^2`` for the share q. So with ``u^2 = -db / (2 p (1 - p))`` the
    share is ``p u / (1 - u)``, and nobody needs the number of pixels. Before training p is the
    sigmoid of the head's bias, nearly: the mean embedding, which others read it from, is no help,
    since the gradient of few pixels in many is one of their difference from the rest.

    Args:
        bias: Of a head with one output, any floating dtype, shape (1,).
        bias_gradient: Its gradient, shape (1,).

    Returns:
        The share, from 0 to 1. No error of it is known; a network that has learned does not have
        one prediction for all pixels, and the share is then a wrong one.

    Raises:
        InvalidObservation: There is not one number of each, or it is not finite.
        MissingKnowledge: The gradient is not one of this loss: positive, or too large.

    Examples:
        >>> import torch
        >>> from labelleak.attacks import dice_share
        >>> logits = torch.zeros(1000, requires_grad=True)
        >>> masks = (torch.arange(1000) < 50).float()
        >>> sure = logits.sigmoid()
        >>> loss = 1 - 2 * (sure * masks).sum() / (sure.sum() + masks.sum())
        >>> gradient = torch.autograd.grad(loss, logits)[0].sum()[None]
        >>> round(dice_share(torch.zeros(1), gradient), 4)
        0.05
    """
    b, db = (tensor.detach().double().flatten() for tensor in (bias, bias_gradient))
    if len(b) != 1 or len(db) != 1 or not bool(torch.isfinite(torch.cat([b, db])).all()):
        raise InvalidObservation(
            "a Dice loss is read from the bias of a head with one output, and its gradient: one "
            "finite number of each is needed"
        )
    p = float(torch.sigmoid(b))
    squared = -float(db) / max(2.0 * p * (1.0 - p), 1e-300)
    # The largest share there is, 1, has the gradient of u = 1 / (1 + p).
    if not 0.0 <= squared <= (1.0 + _ROUNDING) / (1.0 + p) ** 2:
        raise MissingKnowledge(
            "the bias gradient is none of a batch Dice loss whose pixels all have the prediction "
            "of the head's bias: another loss, or a network that has learned"
        )
    u = math.sqrt(squared)
    return min(p * u / (1.0 - u), 1.0)
