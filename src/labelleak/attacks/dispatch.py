"""The entry of all attacks: runs one by name, or the automatic choice, and adds the flags."""

from dataclasses import replace
from inspect import signature

from labelleak.attacks.auto import TIME_LIMIT, automatic
from labelleak.attacks.diagnosis import diagnose
from labelleak.attacks.estimates import doubted
from labelleak.attacks.registry import find_attack, run_attack
from labelleak.attacks.shift_invariant import nothing_given_away
from labelleak.attacks.temperature import at_unit_temperature
from labelleak.errors import InvalidObservation, MissingKnowledge
from labelleak.observation import Observation
from labelleak.restoration import Flag, Restoration


def restore(
    observation: Observation,
    attack: str = "auto",
    *,
    time_limit: float | None = None,
    **hyper_parameters: object,
) -> Restoration:
    """Restore the labels that an update gives away.

    Args:
        observation: What the server sees.
        attack: A registered name (see `attacks`), or ``"auto"``: a certificate where there can be
            one, else the estimate of the counts that can be trusted most, else a set.
            ``Restoration.attack`` says which attack spoke.
        time_limit: Seconds after which a search ends, positive; None for the attack's own limit.
            ``"auto"``, ``"exact"`` and ``"virtual"`` search; ``"ilrg"``, ``"rlg"``, ``"pooled"``
            and ``"damped"`` refuse more classes than they can take in that time; the others pass
            over the gradient once or twice, and end by themselves.
        **hyper_parameters: Keyword arguments of the attack; none for ``"auto"``.

    Returns:
        The restored labels with the flags that the observation and the attack raise.

    Raises:
        MissingKnowledge: The observation lacks what the attack needs.
        InvalidObservation: The batch size is below the number of classes that are certainly there,
            or a model and its gradients are passed as they are.
        ValueError: No attack of that name, a hyper-parameter it does not have, or a time limit that
            is not positive.

    Examples:
        >>> import torch, labelleak
        >>> _ = torch.manual_seed(0)
        >>> model = torch.nn.Linear(20, 5)
        >>> inputs, labels = torch.rand(8, 20), torch.tensor([0, 0, 0, 1, 1, 3, 3, 4])
        >>> found = labelleak.restore(labelleak.capture(model, inputs, labels))
        >>> found.attack, found.certified, found.counts.tolist()
        ('pooled', False, [3, 2, 0, 2, 1])
        >>> labelleak.restore(labelleak.capture(model, inputs, labels), "ilrg").present.tolist()
        [True, True, False, True, True]
    """
    if not isinstance(observation, Observation) or not isinstance(attack, str):
        raise InvalidObservation(
            "restore takes an observation, and the name of an attack if any: "
            "restore(observe(model, gradients, batch_size=K)), or of weights "
            "restore(observe_update(model, before, after, learning_rate=F, batch_size=K))"
        )
    if time_limit is not None and not time_limit > 0:
        raise ValueError(f"time_limit {time_limit}: it must be a positive number of seconds")
    if observation.loss.kind == "cox" and attack == "auto":
        return nothing_given_away(observation)
    if observation.loss.kind == "mse":
        raise MissingKnowledge(
            "under a mean squared error there are no labels to count: mean_targets(observation) "
            "gives the batch's mean target"
        )
    plain = observation.loss.temperature == 1.0
    if not plain and attack != "auto" and find_attack(attack).models_optimizer:
        raise MissingKnowledge(
            f"attack {attack!r} trains the client's model, and knows no temperature of its loss: "
            "use another one"
        )
    observation = at_unit_temperature(observation)
    diagnosis = diagnose(observation)
    total, certain = observation.num_instances, int(diagnosis.certain.sum())
    if total is not None and certain > total:
        raise InvalidObservation(
            f"batch size {total} is too small: the gradient shows at least {certain} classes in "
            "the batch"
        )
    if attack == "auto":
        if hyper_parameters:
            raise ValueError("attack 'auto' takes no hyper-parameters: name the attack to set them")
        found = automatic(observation, diagnosis, time_limit or TIME_LIMIT, simulates=plain)
    else:
        if time_limit is not None and _heeds_time(attack):
            hyper_parameters = {**hyper_parameters, "time_limit": time_limit}
        found = run_attack(observation, attack, **hyper_parameters)
        found = doubted(observation, found, is_treated=diagnosis.is_treated)
    flags = {*diagnosis.flags, *found.flags}
    spoke = find_attack(found.attack)
    if spoke.models_steps:
        flags.discard(Flag.SEVERAL_STEPS)
    if spoke.models_optimizer and not observation.training.is_sgd:
        flags -= {Flag.ADAPTIVE_OPTIMIZER, Flag.SUMS_NOT_ZERO}
    if found.counts is None and found.proportions is None:
        flags.add(Flag.SET_ONLY)
    return replace(found, flags=tuple(flag for flag in Flag if flag in flags))


def _heeds_time(attack: str) -> bool:
    return "time_limit" in signature(find_attack(attack).rule).parameters
