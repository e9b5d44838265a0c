"""Exact restoration: every sample of a small batch, with a certificate where it is proven."""

from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor

from labelleak.attacks.exact.atoms import Atoms
from labelleak.attacks.exact.certificate import (
    Judgement,
    clear,
    determined_by_zeros,
    judge,
    no_competitor,
    other_label,
    too_weak,
)
from labelleak.attacks.exact.clock import Clock
from labelleak.attacks.exact.earlier import layer_before
from labelleak.attacks.exact.factors import factorise
from labelleak.attacks.exact.findings import (
    INTEGER,
    Findings,
    concluded,
    estimated,
    weights_add_up,
)
from labelleak.attacks.exact.layered import by_layer, known_divisor
from labelleak.attacks.exact.search import Search
from labelleak.attacks.registry import Gives, register
from labelleak.errors import MissingKnowledge
from labelleak.numerics import root_mean_square
from labelleak.observation import Observation
from labelleak.restoration import Flag, Restoration

_FINEST = 1e-12


@register(
    "exact",
    title="Exact restoration with a certificate",
    gives=(Gives.COUNTS,),
    assumes="at most min(classes, features) - 1 samples, one local step, hard labels and a "
    "gradient without noise",
    reference="labelleak; rank reduction by Wedderburn 1934, sparse directions as in SPEAR "
    "(Dimitrov et al., NeurIPS 2024, arXiv:2403.03945)",
)
def exact(observation: Observation, *, time_limit: float = 60.0, seed: int = 0) -> Restoration:
    """Restore every sample's label and embedding, and prove them by rebuilding the gradient.

    With q = p - y the gradient is ``sum_k q_k [e_k, 1]^T / K``, of rank K. The samples are found
    as sparse directions of its row space (behind a ReLU) and by descents from many starts on the
    distance of q from the column space, each found one being taken out before the search goes on.
    A sample is in the batch exactly if taking it out lowers the rank by one, which also tells K.

    Args:
        observation: Needs the weight gradient; bias and batch size where they are known.
        time_limit: Seconds after which the search stops, positive; what was found by then counts.
        seed: Of all guesses.

    Returns:
        ``counts``, and one row of ``embeddings`` for each sample found with its class in
        ``embedding_labels``. ``certain`` counts those that stand clear of the gradient's errors
        and go with no other label; ``invisible`` says how many samples do not, at its precision.
        ``certified`` only if the batch size is known, all are found and stand clear, together they
        rebuild the gradient to rounding, and no hypothesis with another label does.

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
    clock = Clock(time_limit)
    generator = torch.Generator().manual_seed(seed)
    layer = layer_before(observation)
    try:
        factors = factorise(observation, observation.batch_size)
    except MissingKnowledge:
        found = None if layer is None else by_layer(observation, layer, seed, clock)
        if found is None:
            raise
        return _timed(found, clock)
    search = Search(factors, known_divisor(observation), generator, clock)
    search.run()
    if search.is_complete and len(search.found) < factors.rank:
        search.factors = factorise(observation, len(search.found))
    judged = _judge(search, observation)
    found = _conclude(observation, search, judged)
    if not found.certified and layer is not None:
        other = by_layer(observation, layer, seed, clock)
        if other is not None and (other.certified or _certain(other) > _certain(found)):
            found = other
    return _timed(found, clock)


def _timed(found: Restoration, clock: Clock) -> Restoration:
    late = clock.was_asked_late and not found.certified
    return replace(found, flags=(*found.flags, Flag.TIME_LIMIT)) if late else found


def _certain(found: Restoration) -> int:
    return 0 if found.certain is None else int(found.certain.sum())


def _divisor(search: Search, observation: Observation) -> float | None:
    """D as the samples found have it; None if they do not agree on one."""
    if search.divisor is not None:
        return search.divisor
    if not len(search.found):
        return None
    middle = float(search.found.inverse_weights.median())
    if observation.loss.class_weights is not None:
        return middle
    # Each says the number of samples, or a part of it if it is in the batch several times.
    return float(round(middle)) if abs(middle - round(middle)) < INTEGER * middle else None


def _judge(search: Search, observation: Observation) -> Judgement | None:
    divisor = _divisor(search, observation)
    if divisor is None or not len(search.found) or not search.is_complete:
        return None
    typical = root_mean_square(observation.gradient.weight)
    rounding = max(observation.gradient.rounding, _FINEST * typical)
    return judge(search.factors, search.found, divisor, rounding)


def _certified(observation: Observation, search: Search, judged: Judgement) -> bool:
    """Whether nothing speaks against the samples, and no other hypothesis comes near."""
    divisor = _divisor(search, observation)
    if divisor is None or not judged.rebuilt or not bool(judged.seen.all()):
        return False
    if observation.batch_size not in (None, int(judged.times.sum())):
        return False
    factors = search.factors
    if not weights_add_up(observation, judged.atoms.labels, judged.times, divisor):
        return False
    if determined_by_zeros(factors, search.found):
        return True
    if factors.spare_equations > 0:
        return not bool(other_label(factors, judged.atoms, divisor).any())
    return no_competitor(factors, judged, divisor, search.clock)


def _times(search: Search, divisor: float) -> Tensor:
    return (divisor / search.found.inverse_weights).round().clamp_min(1.0).long()


def _conclude(observation: Observation, search: Search, judged: Judgement | None) -> Restoration:
    """What the samples say of the batch; only those that were judged can be proven."""
    divisor = _divisor(search, observation)
    if judged is not None:
        atoms, times = judged.atoms, judged.times
    else:
        atoms = search.found
        times = _times(search, divisor) if divisor is not None else torch.ones_like(atoms.labels)
    total = observation.batch_size
    if total is None and search.is_complete and divisor is not None:
        by_divisor = observation.loss.averages and observation.loss.class_weights is None
        total = round(divisor) if by_divisor else int(times.sum())
    hidden = search.factors.rank - len(atoms)
    sure = _sure(search, atoms, times, divisor if search.is_complete else search.divisor)
    findings = Findings(
        labels=atoms.labels,
        times=times,
        sure=sure,
        embeddings=atoms.embeddings[:, : observation.head.features],
        is_complete=search.is_complete,
        rank=search.factors.rank,
        total=total,
        weak=min(hidden, too_weak(search.rest(), atoms)) if hidden and len(atoms) else 0,
    )
    return concluded(
        observation,
        findings,
        rest=lambda number: _rest(observation, search, number),
        proven=lambda: judged is not None and _certified(observation, search, judged),
    )


def _sure(search: Search, atoms: Atoms, times: Tensor, divisor: float | None) -> Tensor:
    """Which samples stand clear of the gradient's errors, and are the only ones that fit."""
    if not len(atoms):
        return torch.zeros_like(atoms.labels, dtype=torch.bool)
    factors, complete = search.factors, search.is_complete
    sure = clear(factors, atoms)
    if factors.spare_equations > 0 and not (
        complete and determined_by_zeros(factors, search.found)
    ):
        sure = sure & ~other_label(factors, atoms, divisor)
    # That a sample is there several times shows in the others alone.
    return sure if complete else sure & (times == 1)


def _rest(observation: Observation, search: Search, number: int) -> Float[Tensor, " classes"]:
    """Estimated counts of the samples that were not found."""
    if search.is_complete:
        even = number / observation.classes
        return search.factors.offset.new_full((observation.classes,), even)
    return estimated(observation, search.rest().matrix, search.divisor, number)
