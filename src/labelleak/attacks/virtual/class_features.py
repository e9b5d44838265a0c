"""What an update shows of each class, in terms that are the same for every class."""

from collections.abc import Mapping, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

# Tensors of the body whose change is told, evenly chosen, and values of the head's spectrum.
_TENSORS, _SPECTRUM = 8, 9
_TINY = 1e-12

SHARED_FROM = 12
"""Place of the first number of a row that all classes of an update share."""


def class_features(
    before: Mapping[str, Tensor],
    after: Mapping[str, Tensor],
    names: Sequence[str],
    head: str,
    reach: float,
) -> Float[Tensor, "classes features"]:
    """One row for each class: its own numbers, then numbers of the whole update, equal in all rows.

    Classes that are renamed have their rows renamed, so that one map from rows to shares serves
    them all.

    Args:
        before: The server's weights, by name.
        after: The client's.
        names: Of all tensors that the client trained.
        head: Name of the final layer, which has a bias.
        reach: What the head's change is divided by, to be that of a mean gradient.

    Returns:
        float64.
    """
    fell = {name: (before[name].detach() - after[name].detach()).double().cpu() for name in names}
    change, bias = fell[f"{head}.weight"] / reach, fell[f"{head}.bias"] / reach
    held = before[f"{head}.weight"].detach().double().cpu()
    offset = before[f"{head}.bias"].detach().double().cpu()
    products = change @ change.T
    lengths = change.norm(dim=1)
    ranks = bias.argsort().argsort().double() / len(bias)
    own = [
        bias,
        lengths,
        products.sum(dim=1) - products.diagonal(),
        products.amin(dim=1),
        change.sum(dim=1),
        ranks,
        offset,
        held.norm(dim=1),
        held.sum(dim=1),
        (change * held).sum(dim=1),
        lengths / lengths.mean().clamp_min(_TINY),
        bias / bias.abs().mean().clamp_min(_TINY),
    ]
    assert len(own) == SHARED_FROM
    sizes = torch.stack([fell[name].norm() for name in _chosen(names)])
    spectrum = torch.linalg.eigvalsh(products).flip(0)[:_SPECTRUM]
    shared = torch.cat(
        [
            sizes.clamp_min(_TINY).log(),
            spectrum.clamp_min(_TINY).log(),
            torch.stack([bias.norm(), lengths.mean(), bias.amax(), bias.amin()]),
        ]
    )
    return torch.cat([torch.stack(own, dim=1), shared.expand(len(bias), -1)], dim=1)


def _chosen(names: Sequence[str]) -> list[str]:
    """At most so many of the names, the first and the last among them."""
    if len(names) <= _TENSORS:
        return list(names)
    step = (len(names) - 1) / (_TENSORS - 1)
    return [names[round(place * step)] for place in range(_TENSORS)]
