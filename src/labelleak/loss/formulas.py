"""The derivatives of losses by the logits, in closed form."""

import torch
from jaxtyping import Float, Int
from torch import Tensor


def focal_factor(
    own: Float[Tensor, " *shape"], others: Float[Tensor, " *shape"], gamma: float
) -> Float[Tensor, " *shape"]:
    """How much a focal loss weighs the residual of a cross-entropy.

    The loss is ``-u^gamma log p`` with the probability p of the target and u = 1 - p. Its
    derivative by the logits is that of ``-log p`` times ``u^gamma (1 - gamma p log(p) / u)``.

    Args:
        own: The probability p of the target, any shape.
        others: That of everything else, u, likewise.
        gamma: The exponent, 0 or above.

    Returns:
        In the shape of `own`; 1 for gamma = 0.
    """
    if not gamma:
        return torch.ones_like(own)
    # Both forms are -p log(p) / u; each is exact where the other one cancels or underflows.
    far = -torch.xlogy(own, own) / others.clamp_min(torch.finfo(own.dtype).tiny)
    small = others.clamp(torch.finfo(own.dtype).tiny, 0.5)
    near = -own * torch.log1p(-small) / small
    return others.pow(gamma) * (1.0 + gamma * torch.where(others > 0.5, far, near))


def focal_weights(
    predictions: Float[Tensor, "samples classes"], labels: Int[Tensor, " samples"], gamma: float
) -> Float[Tensor, " samples"]:
    """The `focal_factor` of samples with these predictions and labels, under a softmax."""
    own = predictions.gather(1, labels[:, None])[:, 0]
    others = predictions.scatter(1, labels[:, None], 0.0).sum(dim=1)
    return focal_factor(own, others, gamma)


def sigmoid_residuals(
    logits: Float[Tensor, "*shape labels"],
    gamma: float,
    negative: Float[Tensor, " labels"],
    positive: Float[Tensor, " labels"],
) -> tuple[Float[Tensor, "*shape labels"], Float[Tensor, "*shape labels"]]:
    """Derivative of a sigmoid's loss by the logits for a target of 0, and for one of 1.

    Args:
        logits: Labels last.
        gamma: Exponent of a focal loss; 0 for binary cross-entropy.
        negative: Weight of each label where its target is 0, shape (labels,).
        positive: Weight of each label where its target is 1, shape (labels,).

    Returns:
        Two tensors of the shape of the logits: zero or above, and zero or below.
    """
    yes, no = torch.sigmoid(logits), torch.sigmoid(-logits)
    zero = negative * focal_factor(no, yes, gamma) * yes
    one = -positive * focal_factor(yes, no, gamma) * no
    return zero, one
