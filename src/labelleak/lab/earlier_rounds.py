"""The network that a server hands out in a later round: what the rounds before made of it."""

from copy import deepcopy
from functools import lru_cache, partial

import torch
from torch import Tensor, nn

from labelleak.lab.datasets import Dataset
from labelleak.lab.definition import Experiment
from labelleak.lab.ranges import RANGES
from labelleak.lab.simulated_client import draw_samples, local_update
from labelleak.lab.tasks import Local


@lru_cache(maxsize=1)
def after_earlier_rounds(
    experiment: Experiment, local: Local, model: nn.Module, dataset: Dataset, device: str
) -> nn.Module:
    """The network after the rounds before the one that is attacked.

    Every client has the same samples in all rounds, in another order each time. The server averages
    their weights (FedAvg). No trial's number is in the seeds: trials of one network share a
    federation.

    Args:
        experiment: Of what a client draws.
        local: What all clients do.
        model: The network of round 1, left as it is.
        dataset: What clients draw from.
        device: Where they train.

    Returns:
        The network, in the mode of the one given.

    Raises:
        ValueError: The clients' training diverges, or the data set has no such batch.
    """
    derive = RANGES[experiment.range].derive
    handed = deepcopy(model)
    seeds = [
        partial(derive, experiment.seed, "federation", client) for client in range(local.clients)
    ]
    held = [draw_samples(experiment, dataset, seed, device) for seed in seeds]
    for number in range(1, local.round):
        total: dict[str, Tensor] = {}
        for client, (seed, samples) in enumerate(zip(seeds, held, strict=True), start=1):
            sent = local_update(experiment, local, handed, samples, seed(f"order {number}")).after
            # A running mean: a large model is in memory twice, not once for each client.
            total = {
                name: torch.lerp(total[name], value, 1.0 / client)
                if name in total and value.is_floating_point()
                else value
                for name, value in sent.items()
            }
        if not all(bool(torch.isfinite(value).all()) for value in total.values()):
            raise ValueError(
                f"clients of round {number} have made weights that are not finite: take a lower "
                "local.learning_rate"
            )
        handed.load_state_dict(total)
    return handed
