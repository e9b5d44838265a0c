"""Dimitrov et al.: ZLG along the way from the server's to the client's model."""

from typing import Literal, get_args

import torch

from labelleak.attacks.conclusion import conclude
from labelleak.attacks.inputs import Dummies, dummies
from labelleak.attacks.probe import probe
from labelleak.attacks.published.zlg import counts_from, scatter, statistics
from labelleak.attacks.registry import Gives, Need, register
from labelleak.observation import Observation
from labelleak.restoration import Restoration

Steps = Literal["all", "first", "last"]


@register(
    "dimitrov",
    title="Dimitrov et al. (label restoration from FedAvg)",
    needs=(Need.WEIGHT, Need.PLAIN_LOSS, Need.MODEL, Need.INPUT_SHAPE, Need.AFTER),
    gives=(Gives.COUNTS,),
    assumes="that all embeddings have about the same sum, far from zero, that made-up inputs look "
    "like real ones to the network, and that both change evenly along the local steps",
    reference="Dimitrov et al., TMLR 2022 (Data Leakage in Federated Averaging, arXiv:2206.12395)",
    models_steps=True,
)
def dimitrov(
    observation: Observation,
    *,
    steps: Steps = "all",
    inputs: Dummies = "random",
    samples: int = 256,
) -> Restoration:
    """ZLG with the statistics of every local step interpolated between the two models.

    Mean prediction p and mean sum O of an embedding are taken on dummy inputs with the server's and
    with the client's model. Step s of S is given ``(1 - s/S)`` of the former and ``s/S`` of the
    latter, s = 0 .. S - 1; the counts are the mean over the steps of ``K (p_s - g / O_s)``.

    Args:
        observation: Needs the weight gradient, both models and the inputs' shape. Without a batch
            size, proportions only.
        steps: Which steps are averaged: ``"all"``, or only the ``"first"`` or ``"last"``.
        inputs: ``"random"`` (standard normal, as normalized images are), ``"zeros"`` or ``"ones"``.
        samples: Number of random dummies.

    Returns:
        Real-valued and integer counts.

    Raises:
        InvalidObservation: The client's model is not of the server's architecture.
        MissingKnowledge: The dummies' embeddings sum to zero.
        ValueError: No such steps, no dummies of that kind, or none at all.
    """
    if steps not in get_args(Steps):
        raise ValueError(f"steps {steps!r}: use {', '.join(map(repr, get_args(Steps)))}")
    made_up = dummies(observation, inputs, samples)
    before = probe(observation, made_up)
    start, start_activity = statistics(before)
    end, end_activity = statistics(probe(observation, made_up, observation.after))
    number = observation.local_steps
    chosen = {"all": range(number), "first": range(1), "last": range(number - 1, number)}[steps]
    raw = [
        counts_from(
            observation,
            torch.lerp(start, end, step / number),
            start_activity + step / number * (end_activity - start_activity),
        )
        for step in chosen
    ]
    mean, errors = torch.stack(raw).mean(dim=0), scatter(observation, made_up, before)
    return conclude(observation, mean, observation.num_instances, errors=errors)
