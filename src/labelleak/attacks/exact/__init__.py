"""Exact restoration: every sample of a small batch, with a certificate where it is proven."""

import time
from collections.abc import Callable
from dataclasses import replace

import torch

from labelleak.attacks.exact.clock import Clock
from labelleak.attacks.exact.head_search import HeadSearch
from labelleak.attacks.exact.layer_search import LayerSearch
from labelleak.attacks.exact.previous_layer import previous_layers
from labelleak.attacks.exact.restoration_from_samples import known_divisor, restoration_from
from labelleak.attacks.multi_label.exact_labels import exact_labels
from labelleak.attacks.registry import Gives, Need, register
from labelleak.errors import MissingKnowledge
from labelleak.loss import MULTI_LABEL
from labelleak.observation import Observation
from labelleak.restoration import Flag, Restoration


@register(
    "exact",
    title="Exact restoration with a certificate",
    needs=(Need.WEIGHT,),
    gives=(Gives.COUNTS,),
    assumes="at most min(classes, features) - 1 samples, one local step, hard labels and a "
    "gradient without noise",
    reference="labelleak; rank reduction by Wedderburn 1934, sparse directions as in SPEAR "
    "(Dimitrov et al., NeurIPS 2024, arXiv:2403.03945)",
    losses=("cross_entropy", *MULTI_LABEL),
)
def restore_exactly(
    observation: Observation,
    *,
    time_limit: float = 60.0,
    seed: int = 0,
    now: Callable[[], float] = time.monotonic,
) -> Restoration:
    """Restore the label and the embedding of every sample, and prove them if possible.

    With q = p - y the head's gradient is ``sum_k q_k [e_k, 1]^T / K``, of rank K. Samples are found
    as sparse directions of its row space, and by descents to where q lies in its column space.
    Samples found are taken out of the gradient before the search goes on. A point is a sample of
    the batch exactly if taking it out lowers the rank by one, which also tells K. If the samples
    are not proven this way and the observation holds the whole update, the search continues in the
    gradient of the layer before the head: behind a ReLU, and with few classes behind tanh, GELU,
    SiLU and sigmoid.

    Where every label has a sigmoid, a sample is right only if all of its residuals are those of
    zeros and ones, and the label set of every sample is restored.

    Args:
        observation: What the server sees. Bias gradient and batch size help where they are known.
        time_limit: Seconds after which the search stops, positive; samples found so far count.
        seed: Seed of all random guesses.
        now: Returns the time in seconds. For tests, which bring their own clock.

    Returns:
        ``counts``, and for each sample found a row of ``embeddings`` and its class in
        ``embedding_labels``, ordered by class. ``certain`` counts the samples that stand clear of
        the gradient's errors and fit with no other label; ``invisible`` is the number of samples
        that do not. ``certified`` is true only if the batch size is known, all samples are found
        and stand clear, together they rebuild the gradient up to rounding, and no hypothesis with
        another label does.

    Raises:
        MissingKnowledge: There are several local steps, or smoothed labels, or more samples than
            the rank can tell apart, or noise has made the rank full.
        ValueError: The time limit is not positive.

    Examples:
        >>> import labelleak as ll
        >>> _ = torch.manual_seed(0)
        >>> hidden, head = torch.nn.Linear(20, 30), torch.nn.Linear(30, 6)
        >>> model = torch.nn.Sequential(hidden, torch.nn.ReLU(), head)
        >>> observation = ll.capture(model, torch.randn(3, 20), torch.tensor([4, 1, 4]))
        >>> found = restore_exactly(observation)
        >>> found.counts.tolist(), found.certified
        ([0, 1, 0, 0, 2, 0], True)
    """
    if not time_limit > 0:
        raise ValueError(f"time_limit {time_limit}: it must be a positive number of seconds")
    if observation.local_steps > 1 or observation.loss.label_smoothing:
        raise MissingKnowledge(
            "exact restoration needs one local step and labels without smoothing: the gradient is "
            "no sum of one rank-one matrix per sample otherwise"
        )
    clock = Clock(time_limit, now)
    if observation.loss.is_multi_label:
        return exact_labels(observation, clock, _generator(seed))
    divisor = known_divisor(observation)

    def by_layer() -> Restoration | None:
        for layer in previous_layers(observation):
            search = LayerSearch(observation, layer, divisor, _generator(seed), clock)
            search.run()
            found = restoration_from(observation, search) if len(search.found) else None
            # Of an activation that is guessed, nothing but a proof counts.
            if found is not None and (found.certified or not layer.is_guess):
                return found
        return None

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
    late = (clock.ran_out or clock.judging.ran_out) and not found.certified
    return replace(found, flags=(*found.flags, Flag.TIME_LIMIT)) if late else found


def _generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def _certain(found: Restoration) -> int:
    """Number of samples that are certain."""
    return 0 if found.certain is None else int(found.certain.sum())
