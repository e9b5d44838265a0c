"""Attacks: from what the server observes to the labels of the batch."""

from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor

from labelleak.attacks import calibrated as _calibrated  # noqa: F401  (registers itself)
from labelleak.attacks import dimitrov as _dimitrov  # noqa: F401
from labelleak.attacks import e2egi as _e2egi  # noqa: F401
from labelleak.attacks import exact as _exact  # noqa: F401
from labelleak.attacks import ilrg as _ilrg  # noqa: F401
from labelleak.attacks import likelihood as _likelihood  # noqa: F401
from labelleak.attacks import llbg as _llbg  # noqa: F401
from labelleak.attacks import llg as _llg  # noqa: F401
from labelleak.attacks import pooled as _pooled  # noqa: F401
from labelleak.attacks import rlg as _rlg  # noqa: F401
from labelleak.attacks import rlu as _rlu  # noqa: F401
from labelleak.attacks import signs as _signs  # noqa: F401
from labelleak.attacks import soft_label as _soft_label  # noqa: F401
from labelleak.attacks import zlg as _zlg  # noqa: F401
from labelleak.attacks.registry import Attack, Gives, Need, attacks
from labelleak.errors import InvalidObservation, MissingKnowledge
from labelleak.observation import Observation, implied_rounding, root_mean_square
from labelleak.restoration import Flag, Restoration

__all__ = ["Attack", "Gives", "Need", "attacks", "restore"]

# Strongest first: counts before sets, and the set that needs the fewest assumptions before others.
_PREFERENCE: tuple[tuple[str, dict[str, object]], ...] = (
    ("ilrg", {}),
    ("rlg", {"strict": True}),
    ("gradinversion", {}),
)
# iLRG and RLG hold dense matrices classes x classes (2 GB each here): above, `auto` passes on.
_DENSE_CLASSES = 16_384
# Sums over the classes of more than this share of the gradient's norm are not zero; nor are those
# above what rounding leaves, which in half precision is more, up to the second share.
_SUM_TOLERANCE = 1e-3
_ROUNDED_SUM_TOLERANCE = 0.1


def restore(
    observation: Observation, attack: str = "auto", **hyper_parameters: object
) -> Restoration:
    """Restore the labels that an update gives away.

    Args:
        observation: What the server sees.
        attack: A registered name (see `attacks`), or ``"auto"``: the strongest of iLRG, RLG and
            GradInversion that the observation allows. ``Restoration.attack`` says which one spoke.
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
    flags = {*_observation_flags(observation, found.attack), *found.flags}
    if found.counts is None and found.proportions is None:
        flags.add(Flag.SET_ONLY)
    return replace(found, flags=tuple(flag for flag in Flag if flag in flags))


def _run_strongest(observation: Observation) -> Restoration:
    for name, hyper_parameters in _PREFERENCE:
        dense = name in ("ilrg", "rlg")
        if dense and observation.classes > _DENSE_CLASSES:
            continue
        try:
            return _run(observation, name, hyper_parameters)
        except MissingKnowledge:
            continue
    raise AssertionError("the last attack of the preference has no needs")


def _run(observation: Observation, name: str, hyper_parameters: dict[str, object]) -> Restoration:
    entry = attacks().get(name)
    if entry is None:
        raise ValueError(f"no attack named {name!r}: choose auto, {', '.join(attacks())}")
    missing = entry.missing(observation)
    if missing:
        texts = " and ".join(need.value for need in missing)
        raise MissingKnowledge(f"attack {name!r} needs {texts}")
    try:
        return entry.rule(observation, **hyper_parameters)
    except TypeError as error:
        if hyper_parameters and "keyword" in str(error):
            raise ValueError(f"attack {name!r}: {error}") from None
        raise


def _observation_flags(observation: Observation, attack: str) -> list[Flag]:
    flags = []
    weight, bias = observation.gradient.weight, observation.gradient.bias
    rounding = observation.gradient.rounding
    if _off_zero(weight, rounding) or (
        # The rounding of a difference of weights is about that of a difference of biases.
        bias is not None and _off_zero(bias[:, None], max(rounding, implied_rounding(bias)))
    ):
        flags.append(Flag.SUMS_NOT_ZERO)
    if not observation.has_bias:
        flags.append(Flag.NO_BIAS)
    if observation.local_steps > 1 and not attacks()[attack].models_steps:
        flags.append(Flag.SEVERAL_STEPS)
    if observation.batch_size is None:
        flags.append(Flag.UNKNOWN_BATCH_SIZE)
    return flags


def _class_sums(gradient: Float[Tensor, "classes features"]) -> Float[Tensor, " features"]:
    # As a product, because a sum in another precision costs ten times as much; the rounding of
    # single precision is far below what is looked for.
    return (gradient.new_ones(gradient.shape[0]) @ gradient).double()


def _off_zero(gradient: Float[Tensor, "classes features"], rounding: float) -> bool:
    """Whether the sums over the classes are more than rounding errors of that size leave.

    The norm of the sums, relative to that of the gradient, is the share of independent noise of
    equal size in every entry.
    """
    size = root_mean_square(gradient)
    if not size:
        return False
    share = float(_class_sums(gradient).norm()) / size / float(gradient.numel() ** 0.5)
    return share > max(_SUM_TOLERANCE, min(rounding / size, _ROUNDED_SUM_TOLERANCE))


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
