"""The batch's mean target under a mean squared error."""

from jaxtyping import Float
from torch import Tensor

from labelleak.attacks.multi_label.label_logits import (
    bias_of_labels,
    divisor_of_one,
    pooled_rows,
)
from labelleak.errors import MissingKnowledge
from labelleak.observation import Observation


def mean_targets(observation: Observation) -> Float[Tensor, " outputs"]:
    """The mean target of every output, for a loss ``(output - target)^2``.

    The residual is ``2 (output - target)``, so that the mean target is the mean output less half of
    the bias gradient. The mean output is the head's for the batch's mean embedding, which all rows
    of its gradient show if outputs are off by amounts that do not depend on the embeddings. That
    holds before training where targets lie on one side of what the network puts out; it does not
    where targets are centered, or where the network has learned. A head of zeros needs none of it.

    Args:
        observation: Of the loss ``"mse"``, with the gradients of weight and bias.

    Returns:
        Float64, shape (outputs,), in the unit of the targets. No error of it is known.

    Raises:
        MissingKnowledge: Another loss, no bias gradient, or a summed loss without a batch size.

    Examples:
        >>> import torch, labelleak
        >>> _ = torch.manual_seed(0)
        >>> model = torch.nn.Linear(20, 1)
        >>> inputs, ages = torch.rand(40, 20), 50.0 + 10.0 * torch.randn(40)
        >>> seen = labelleak.capture(model, inputs, ages, loss="mse")
        >>> bool((labelleak.mean_targets(seen) - ages.mean()).abs() < 0.1)
        True
    """
    if observation.loss.kind != "mse":
        raise MissingKnowledge(
            f"the mean target is that of a mean squared error (loss='mse'), and the loss is "
            f"{observation.loss.kind!r}"
        )
    bias, head = bias_of_labels(observation), observation.head
    one_output = observation.is_one_logit
    # Torch averages over outputs, too, of which one is read as two.
    doubled = one_output and observation.loss.reduction == "mean"
    divisor = divisor_of_one(observation) / (2 if doubled else 1)
    if not bool(head.weight.any()) and head.bias is not None:
        outputs = head.bias.double()
    else:
        outputs = pooled_rows(observation, bias).logits
    found: Tensor = outputs - divisor * bias / 2.0
    return found[1:] if one_output else found
