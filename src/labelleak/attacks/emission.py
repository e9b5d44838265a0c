"""Labels emitted one by one, each for the class with the most negative evidence left."""

import heapq

import torch
from jaxtyping import Float, Int
from torch import Tensor

from labelleak.restoration import Flag, Restoration

# Halvings of the range of evidence: as many as a float64 can tell apart.
_BISECTIONS = 64
# Labels that are emitted one by one in no time.
_FEW = 1024


def emit_labels(
    evidence: Float[Tensor, " classes"],
    impact: Float[Tensor, " classes"] | Float[Tensor, ""],
    total: int,
    offset: Float[Tensor, " classes"] | float = 0.0,
) -> Restoration:
    """Emit labels one by one, each time for the class with the most negative evidence left.

    The two stages of LLG (Wainakh et al., PETS 2022). Stage 1 emits every class with negative
    evidence once. Stage 2 emits the class of least evidence (less the offset) until there are
    enough labels. Every emission takes the impact of one sample off its class's evidence. Time does
    not grow with the number of labels: O(C log C).

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
    # Relative to the least of all, small steps are not lost beside large evidence.
    left -= left.min()
    rest = total - len(certain)
    if rest > max(len(left), _FEW):
        many = _below_a_level(left, -impact, rest)
        counts += many
        left -= many * impact
        rest -= int(many.sum())
    _emit_one_by_one(counts, left, impact, rest)
    return Restoration(
        present=counts > 0,
        counts=counts,
        proportions=counts.double() / counts.sum(),
        flags=flags,
    )


def _emit_one_by_one(
    counts: Int[Tensor, " classes"],
    evidence: Float[Tensor, " classes"],
    impact: Float[Tensor, " classes"],
    number: int,
) -> None:
    """The last labels of stage 2, added to the counts in place."""
    # No other class comes to be the least: each of these has to be emitted before.
    few = evidence.sort(stable=True).indices[:number].sort().values
    emitted, steps = [0] * len(few), impact[few].tolist()
    # Ascending, as labels are: ties go to the lowest.
    heap = [(value, place) for place, value in enumerate(evidence[few].tolist())]
    heapq.heapify(heap)
    while number:
        value, place = heap[0]
        # A class whose evidence does not rise takes all that is left.
        taken = 1 if steps[place] < 0 else number
        emitted[place] += taken
        number -= taken
        heapq.heapreplace(heap, (value - steps[place], place))
    counts[few] += torch.tensor(emitted, dtype=torch.int64, device=counts.device)


def _below_a_level(
    evidence: Float[Tensor, " classes"], steps: Float[Tensor, " classes"], number: int
) -> Int[Tensor, " classes"]:
    """Nearly all of stage 2 at once: how often each class is emitted before a common level.

    Class i is emitted at evidence ``e_i, e_i + s_i, e_i + 2 s_i, ...``, and the labels are those of
    the lowest values. Bisection finds the highest level below which there are no more than
    `number`; what is missing lies at the level itself.

    Args:
        evidence: Left by stage 1, float64, shape (classes,), at least 0.
        steps: What one emission adds to it, shape (classes,).
        number: Number of labels to emit at most.

    Returns:
        int64, shape (classes,); no class whose step is not positive is among them.
    """
    rising = steps > 0
    if not bool(rising.any()):
        return torch.zeros(evidence.shape, dtype=torch.int64, device=evidence.device)
    steps = torch.where(rising, steps, torch.inf)
    highest = evidence + torch.where(rising, steps * number, 0.0)
    low, high = 0.0, float(highest.min())
    best = torch.zeros_like(evidence)
    for _ in range(_BISECTIONS):
        level = (low + high) / 2
        below = (level - evidence).div_(steps).ceil_().clamp_(0, number)
        missing = number - float(below.sum())
        if missing >= 0:
            best, low = below, level
        else:
            high = level
        if 0 <= missing <= _FEW:
            break
    return best.long()
