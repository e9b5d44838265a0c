"""How alike the vectors are that an attack restored of each class and the true ones."""

import torch
from jaxtyping import Bool, Float
from torch import Tensor


def cosine_similarity(
    found: Float[Tensor, "classes features"],
    true: Float[Tensor, "classes features"],
    present: Bool[Tensor, " classes"] | None = None,
) -> float:
    """Mean over classes of the cosine between the restored and the true vector of a class.

    The CosSim of Ma et al., ICLR 2023, table 1, for class embeddings or class probabilities; there
    the mean is over the classes in the batch, so pass ``present=true_counts > 0``.

    Args:
        found: Restored vectors, one row per class, shape (classes, features), any floating dtype.
        true: True vectors, same shape; rows outside `present` may hold anything.
        present: The rows to take the mean over, bool, shape (classes,); None for all.

    Returns:
        Between -1 and 1. A row that is zero on either side counts as 0: it has no direction.

    Raises:
        ValueError: The shapes differ, or `present` selects no row.

    Examples:
        >>> import torch
        >>> cosine_similarity(torch.tensor([[3.0, 4.0]]), torch.tensor([[1.0, 0.0]]))
        0.6
    """
    if found.ndim != 2 or found.shape != true.shape:
        raise ValueError(
            f"vectors of shape {tuple(found.shape)} and {tuple(true.shape)}: two matrices of one "
            "shape classes x features are needed"
        )
    true = true.to(found.device)
    if present is not None:
        if present.dtype != torch.bool or present.shape != found.shape[:1]:
            raise ValueError(
                f"present of shape {tuple(present.shape)} and {present.dtype}: one bool for each "
                f"of the {found.shape[0]} classes is needed"
            )
        rows = present.to(found.device)
        found, true = found[rows], true[rows]
    if not found.shape[0]:
        raise ValueError("there is no class to take the mean cosine similarity over")
    return float((_directions(found) * _directions(true)).sum(dim=1).mean())


def _directions(vectors: Float[Tensor, "rows features"]) -> Float[Tensor, "rows features"]:
    vectors = vectors.double()
    norms = torch.linalg.vector_norm(vectors, dim=1, keepdim=True)
    return vectors / torch.where(norms > 0, norms, 1.0)
