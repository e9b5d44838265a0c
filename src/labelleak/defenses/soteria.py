"""Soteria (Sun et al., CVPR 2021): pruned features of the representation of the last layer."""

from collections.abc import Mapping

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from labelleak.defenses.transformations import below, check_gradients, check_percent
from labelleak.hooks import recorded


def soteria_mask(
    model: nn.Module, inputs: Float[Tensor, "batch *shape"], percent: float, head: str
) -> Bool[Tensor, " features"]:
    """Which features of the representation Soteria keeps for a batch.

    A feature is pruned where it says much about the input for little of the input's influence on
    it: the paper prunes those with the largest ``|r| / ||dr/dx||``. Features are ranked here by the
    inverse, which stays finite where the representation r is zero: the sum over the samples of
    ``||dr/dx|| / |r|``, as the code published with the paper has it. Those below the given
    percentile go. Needs one backward pass per feature.

    Args:
        model: A network in evaluation mode, in which no sample influences another, on any device.
        inputs: The batch, floating point, shape (batch, ...).
        percent: Share of the features to prune, from 0 to 100: the percentile of the scores (linear
            interpolation) below which they go.
        head: Name of the final linear layer in the model, such as ``"fc"``; its input is the
            representation, shape (batch, features).

    Returns:
        True for the features to keep, bool, shape (features,), on the device of the inputs.

    Raises:
        ValueError: `percent` is out of range, the model is in training mode, or the head does not
            run once per forward pass on one vector per sample.

    References:
        Sun et al., "Soteria: Provable defense against privacy leakage in federated learning from
        representation perspective", CVPR 2021 (arXiv:2012.06043), algorithm 1.

    Examples:
        >>> import torch
        >>> model = torch.nn.Sequential()
        >>> model.add_module("body", torch.nn.Linear(6, 4))
        >>> model.add_module("fc", torch.nn.Linear(4, 3))
        >>> mask = soteria_mask(model.eval(), torch.rand(2, 6), 50, head="fc")
        >>> int(mask.sum())
        2
    """
    check_percent(percent)
    if model.training:
        raise ValueError(
            "the model is in training mode, where samples influence each other: call model.eval()"
        )
    inputs = inputs.detach().requires_grad_()
    with torch.enable_grad(), recorded(model.get_submodule(head)) as runs:
        model(inputs)
    if len(runs) != 1 or runs[0].entered.shape[:-1] != inputs.shape[:1]:
        raise ValueError(
            f"layer {head!r} does not take one vector per sample once: name the final linear layer"
        )
    representation: Tensor = runs[0].entered
    scores = torch.zeros(representation.shape[1], dtype=torch.float64, device=inputs.device)
    for feature, values in enumerate(representation.unbind(dim=1)):
        (slopes,) = torch.autograd.grad(values.sum(), inputs, retain_graph=True)
        norms = torch.linalg.vector_norm(slopes.flatten(1), dim=1, dtype=torch.float64)
        ratios = norms / values.detach().abs().double()
        # A feature that the ReLU switched off has value 0 and slope 0: it scores 0, not NaN.
        scores[feature] = torch.where(norms > 0, ratios, 0.0).sum()
    return ~below(scores, percent)


def soteria(
    gradients: Mapping[str, Tensor], mask: Bool[Tensor, " features"], weight_name: str
) -> dict[str, Tensor]:
    """Leave pruned features out of the gradient of the final linear layer.

    Soteria changes the representation that enters the final layer, for that layer's gradient alone:
    the columns of pruned features become zero, and everything else stays as it was.

    Args:
        gradients: Gradients by name, any floating dtypes and shapes.
        mask: The features to keep, bool, shape (features,), see `soteria_mask`.
        weight_name: Name of the final layer's weight, such as ``"fc.weight"``, whose gradient has
            shape (classes, features).

    Returns:
        The defended gradients by name.

    Raises:
        ValueError: No gradient of that name, the mask does not fit it, or a gradient is not
            floating, finite and non-empty.

    References:
        Sun et al., CVPR 2021 (arXiv:2012.06043), algorithm 1.

    Examples:
        >>> import torch
        >>> gradients = {"fc.weight": torch.tensor([[0.1, -0.4], [0.2, 0.8]])}
        >>> kept = torch.tensor([True, False])
        >>> soteria(gradients, kept, "fc.weight")["fc.weight"][:, 1].tolist()
        [0.0, 0.0]
    """
    check_gradients(gradients)
    if weight_name not in gradients:
        raise ValueError(f"no gradient {weight_name!r}: there are {', '.join(gradients)}")
    weight = gradients[weight_name]
    if mask.dtype != torch.bool or weight.ndim != 2 or mask.shape != weight.shape[1:]:
        raise ValueError(
            f"mask of shape {tuple(mask.shape)} and {mask.dtype} for the gradient {weight_name!r} "
            f"of shape {tuple(weight.shape)}: one bool for each of its columns is needed"
        )
    return {
        name: tensor.masked_fill(~mask.to(tensor.device), 0.0)
        if name == weight_name
        else tensor.clone()
        for name, tensor in gradients.items()
    }
