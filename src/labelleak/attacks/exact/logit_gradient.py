"""The gradient of a sample's loss with respect to its logits, ``q = (p - y) * weight[y]``."""

import torch
from jaxtyping import Float, Int
from torch import Tensor


def logit_gradients(
    logits: Float[Tensor, "samples classes"],
    labels: Int[Tensor, " samples"],
    weights: Float[Tensor, " classes"],
) -> Float[Tensor, "samples classes"]:
    """The q of samples with these logits and labels.

    The label's entry is computed as minus the sum of the others: ``p - 1`` would cancel where the
    network is confident of the label.
    """
    result = torch.softmax(logits, dim=1)
    result.scatter_(1, labels[:, None], 0.0)
    result.scatter_(1, labels[:, None], -result.sum(dim=1, keepdim=True))
    return result * weights[labels][:, None]


def logit_directions(
    logits: Float[Tensor, "samples classes"], labels: Int[Tensor, " samples"]
) -> Float[Tensor, "samples classes"]:
    """The direction of q: ``pi - y``, with pi the softmax over all classes but the label.

    q is this times ``1 - p_y`` and the label's weight. The direction stays well conditioned however
    confident the network is.
    """
    masked = logits.scatter(1, labels[:, None], -torch.inf)
    return torch.softmax(masked, dim=1).scatter(1, labels[:, None], -1.0)
