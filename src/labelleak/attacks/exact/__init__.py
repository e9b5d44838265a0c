"""Exact restoration: every sample of a small batch, with a certificate where it is proven."""

import time
from collections.abc import Callable
from dataclasses import replace

import torch

from labelleak.attacks.exact.clock import Clock
from labelleak.attacks.exact.head_search import HeadSearch
from labelleak.attacks.exact.layer_search import LayerSearch
from labelleak.attacks.exact.previous_layer import previous_layer
from labelleak.attacks.exact.restoration_from_samples import known_divisor, restoration_from
from labelleak.attacks.registry import Gives, register
from labelleak.errors import MissingKnowledge
from labelleak.observation import Observation
from labelleak.restoration import Flag, Restoration


@register(
    "exact",
    title="Exact restoration with a certificate",
    gives=(Gives.COUNTS,),
    assumes="at most min(classes, features) - 1 samples, one local step, hard labels and a "
    "gradient without noise",
    reference="labelleak; rank reduction by Wedderburn 1934, sparse directions as in SPEAR "
    "(Dimitrov et al., NeurIPS 2024, arXiv:2403.03945)",
)
def restore_exactly(
    observation: Observation,
    *,
    time_limit: float = 60.0,
    seed: int = 0,
    now: Callable[[], float] = time.monotonic,
) -> Restoration:
    """Restore every sample's label and embedding, and prove them by rebuilding the gradient.

    With q = p - y the gradient is ``sum_k q_k [e_k, 1]^T / K``, of rank K. The samples are found
    as sparse directions of its row space (behind a ReLU) and by descents from many starts on the
    distance of q from the column space, each found one being taken out before the search goes on.
    A sample is in the batch exactly if taking it out lowers the rank by one, which also tells K.
    Where this proves nothing and the observation holds the whole update, the layer before the head
    is searched as well.

    Args:
        observation: Needs the weight gradient; bias and batch size where they are known.
        time_limit: Seconds after which the search stops, positive; what was found by then counts.
        seed: Of all guesses.
        now: Reads the clock, in seconds; another one than the system's is for tests.

    Returns:
        ``counts``, and one row of ``embeddings`` for each sample found with its class in
        ``embedding_labels``, ordered by class. ``certain`` counts those that stand clear of the
        gradient's errors and go with no other label; ``invisible`` says how many samples do not, at
        its precision. ``certified`` only if the batch size is known, all are found and stand clear,
        together they rebuild the gradient to rounding, and no hypothesis with another label does.

    Raises:
        MissingKnowledge: Several local steps, smoothed labels, more samples than the rank can tell
            apart, or a gradient whose rank noise has made full.
        ValueError: The time limit is not positive.
    """
    if not time_limit > 0:
        raise ValueError(f"time_limit {time_limit}: it must be a positive number of seconds")
    if observation.local_steps > 1 or observation.loss.label_smoothing:
        raise MissingKnowledge(
            "exact restoration needs one local step and labels without smoothing: the gradient is "
            "no sum of one rank-one matrix per sample otherwise"
        )
    clock, divisor = Clock(time_limit, now), known_divisor(observation)
    layer = previous_layer(observation)

    def by_layer() -> Restoration | None:
        if layer is None:
            return None
        search = LayerSearch(observation, layer, divisor, _generator(seed), clock)
        search.run()
        return restoration_from(observation, search) if len(search.found) else None

    try:
        search = HeadSearch(observation, divisor, _generator(seed), clock)
    except MissingKnowledge:
        found = by_layer()
        if found is None:
            raise
    else:
        search.run()
        found = restoration_from(observation, search)
        other = None if found.certified else by_layer()
        if other is not None and (other.certified or _certain(other) > _certain(found)):
            found = other
    late = clock.ran_out and not found.certified
    return replace(found, flags=(*found.flags, Flag.TIME_LIMIT)) if late else found


def _generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def _certain(found: Restoration) -> int:
    """Number of samples that are certain."""
    return 0 if found.certain is None else int(found.certain.sum())
