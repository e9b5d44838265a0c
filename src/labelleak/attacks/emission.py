"""Labels emitted one by one, each for the class with the most negative evidence left."""

import heapq

import torch
from jaxtyping import Float
from torch import Tensor

from labelleak.restoration import Flag, Restoration


def emit_labels(
    evidence: Float[Tensor, " classes"],
    impact: Float[Tensor, " classes"] | Float[Tensor, ""],
    total: int,
    offset: Float[Tensor, " classes"] | float = 0.0,
) -> Restoration:
    """Emit labels one by one, each time for the class with the most negative evidence left.

    The two stages of LLG (Wainakh et al., PETS 2022). Stage 1 emits every class with
    negative evidence once. Stage 2 emits the class of least evidence (less the offset) until there
    are enough labels. Every emission takes the impact of one sample off its class's evidence. A
    heap makes an emission O(log C).

    Args:
        evidence: Shape (classes,), float64, the more negative the more instances.
        impact: What one instance adds to the evidence of its class, negative, shape (classes,) or
            one number for all.
        total: Number of labels to emit.
        offset: Evidence of a class without any instance, subtracted in stage 2.

    Returns:
        The set, counts that sum to `total`, and shares; ties go to the lowest class. Flagged
        `TOTAL_DOES_NOT_FIT` where stage 1 found more classes than there are labels, of which the
        most negative stay.
    """
    impact = impact.expand_as(evidence)
    certain = (evidence < 0).nonzero()[:, 0]
    flags: tuple[Flag, ...] = ()
    if len(certain) > total:
        certain = certain[evidence[certain].sort(stable=True).indices[:total]]
        flags = (Flag.TOTAL_DOES_NOT_FIT,)
    counts = torch.zeros(evidence.shape, dtype=torch.int64, device=evidence.device)
    counts[certain] = 1
    left = evidence.clone()
    left[certain] -= impact[certain]
    left -= offset
    emitted, steps = counts.tolist(), impact.tolist()
    heap = [(value, label) for label, value in enumerate(left.tolist())]
    heapq.heapify(heap)
    for _ in range(total - len(certain)):
        value, label = heap[0]
        emitted[label] += 1
        heapq.heapreplace(heap, (value - steps[label], label))
    counts = torch.tensor(emitted, device=evidence.device)
    return Restoration(
        present=counts > 0,
        counts=counts,
        proportions=counts.double() / counts.sum(),
        flags=flags,
    )
