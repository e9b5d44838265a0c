"""Attacks: from what the server observes to the labels of the batch."""

from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor

from labelleak.attacks import exact as _exact  # noqa: F401  (registers itself)
from labelleak.attacks import ilrg as _ilrg  # noqa: F401
from labelleak.attacks import rlg as _rlg  # noqa: F401
from labelleak.attacks import signs as _signs  # noqa: F401
from labelleak.attacks.registry import Attack, Gives, Need, attacks
from labelleak.errors import InvalidObservation, MissingKnowledge
from labelleak.observation import Observation
from labelleak.restoration import Flag, Restoration

__all__ = ["Attack", "Gives", "Need", "attacks", "restore"]

# Strongest first: counts before sets, and the set that needs the fewest assumptions before others.
_PREFERENCE = ("ilrg", "rlg", "gradinversion")
# iLRG and RLG hold dense matrices classes x classes (2 GB each here): above, `auto` passes on.
_DENSE_CLASSES = 16_384
_SUM_TOLERANCE = 1e-3


def restore(
    observation: Observation, attack: str = "auto", **hyper_parameters: object
) -> Restoration:
    """Restore the labels that an update gives away.

    Args:
        observation: What the server sees.
        attack: A registered name (see `attacks`), or ``"auto"``: the strongest attack that the
            observation allows. ``Restoration.attack`` says which one spoke.
        **hyper_parameters: Keyword arguments of the attack; none for ``"auto"``.

    Returns:
        The restored labels with the flags that the observation and the attack raise.

    Raises:
        MissingKnowledge: The observation lacks what the attack needs.
        InvalidObservation: The batch size is below the number of classes that are certainly there.
        ValueError: No attack of that name, or a hyper-parameter it does not have.
    """
    _check_batch_size(observation)
    if attack == "auto":
        if hyper_parameters:
            raise ValueError("attack 'auto' takes no hyper-parameters: name the attack to set them")
        found = _run_strongest(observation)
    else:
        found = _run(observation, attack, hyper_parameters)
    flags = {*_observation_flags(observation), *found.flags}
    if found.counts is None and found.proportions is None:
        flags.add(Flag.SET_ONLY)
    return replace(found, flags=tuple(flag for flag in Flag if flag in flags))


def _run_strongest(observation: Observation) -> Restoration:
    for name in _PREFERENCE:
        dense = name in ("ilrg", "rlg")
        if dense and observation.classes > _DENSE_CLASSES:
            continue
        try:
            return _run(observation, name, {})
        except MissingKnowledge:
            continue
    raise AssertionError("the last attack of the preference has no needs")


def _run(observation: Observation, name: str, hyper_parameters: dict[str, object]) -> Restoration:
    entry = attacks().get(name)
    if entry is None:
        raise ValueError(f"no attack named {name!r}: choose auto, {', '.join(attacks())}")
    missing = [need.value for need in entry.needs if not need.is_met(observation)]
    if missing:
        raise MissingKnowledge(f"attack {name!r} needs {' and '.join(missing)}")
    try:
        return entry.rule(observation, **hyper_parameters)
    except TypeError as error:
        if hyper_parameters and "keyword" in str(error):
            raise ValueError(f"attack {name!r}: {error}") from None
        raise


def _observation_flags(observation: Observation) -> list[Flag]:
    flags = []
    gradient = observation.gradient
    if _off_zero(gradient.weight) > _SUM_TOLERANCE or (
        gradient.bias is not None and _off_zero(gradient.bias[:, None]) > _SUM_TOLERANCE
    ):
        flags.append(Flag.SUMS_NOT_ZERO)
    if not observation.has_bias:
        flags.append(Flag.NO_BIAS)
    if observation.local_steps > 1:
        flags.append(Flag.SEVERAL_STEPS)
    if observation.batch_size is None:
        flags.append(Flag.UNKNOWN_BATCH_SIZE)
    return flags


def _class_sums(gradient: Float[Tensor, "classes features"]) -> Float[Tensor, " features"]:
    # As a product, because a sum in another precision costs ten times as much; the rounding of
    # single precision is far below what is looked for.
    return (gradient.new_ones(gradient.shape[0]) @ gradient).double()


def _off_zero(gradient: Float[Tensor, "classes features"]) -> float:
    """Norm of the sums over the classes, relative to that of the gradient.

    For noise of equal size in every entry this is the noise's share of the gradient's norm.
    """
    size = torch.linalg.vector_norm(gradient, dtype=torch.float64)
    return float(_class_sums(gradient).norm() / size) if size > 0 else 0.0


def _check_batch_size(observation: Observation) -> None:
    """Refuse a batch size below the number of classes that must be there.

    ``db_i = p_i - n_i / K`` is negative only if class i is present (label smoothing shifts that
    bound). What noise there is shows in the sums over the classes, which are zero without it.
    """
    total, bias = observation.num_instances, observation.gradient.bias
    if total is None or bias is None:
        return
    scale = observation.batch_size if observation.reduction == "sum" else 1
    bias = bias.double() / (scale or 1)
    bound = torch.full_like(bias, observation.label_smoothing / observation.classes)
    if observation.class_weights is not None:
        weights = observation.class_weights.to(bias)
        bound *= weights / (weights.min() if observation.reduction == "mean" else 1.0)
    sums = _class_sums(observation.gradient.weight) / (scale or 1)
    noise = float(sums.square().mean().sqrt()) / observation.classes**0.5
    rounding = 1e-5 * float(bias.abs().max())
    certain = int((bias < -bound - 6 * noise - rounding).sum())
    if certain > total:
        raise InvalidObservation(
            f"batch size {total} is too small: the gradient shows at least {certain} classes in "
            "the batch"
        )
