"""The network of a later round against federated averaging by hand."""

import pytest
import torch

from experiments import experiment, observations
from labelleak.federated import train_locally
from labelleak.lab.datasets import draw, load
from labelleak.lab.definition import Batch, Network
from labelleak.lab.networks import build
from labelleak.lab.ranges import RANGES
from labelleak.lab.tasks import Local
from labelleak.lab.trial import run_trial
from labelleak.training import LocalTraining

RECIPE = {"learning_rate": 0.1, "momentum": 0.5, "epochs": 2}


def of_round(number, **fields):
    local = Local(steps=4, round=number, clients=3, **RECIPE)
    return experiment(local=local, batch=Batch(size=8), attacks=("ilrg",), **fields)


def by_hand(e, rounds):
    """What federated averaging makes of the network in so many rounds."""
    digits, derive = load("mnist-sample"), RANGES[e.range].derive
    model = build("fcn-3", classes=10, image_shape=(1, 28, 28), seed=13).eval()
    for number in range(1, rounds + 1):
        sent = []
        for client in range(3):
            seed = derive(e.seed, "federation", client, "batch")
            inputs, labels = digits.batch(draw("random", digits.labels, 16, seed), None)
            order = derive(e.seed, "federation", client, f"order {number}")
            recipe = LocalTraining(batch_size=8, **RECIPE)
            sent.append(train_locally(model, inputs, labels, recipe, classes=10, seed=order).after)
        mean = {name: torch.stack([one[name] for one in sent]).mean(dim=0) for name in sent[0]}
        model.load_state_dict(mean)
    return model.state_dict()


@pytest.mark.parametrize("number", [2, 3])
def test_a_later_round_starts_from_the_mean_of_what_clients_sent(number):
    e = of_round(number)
    seen, other = (observations(e, index)[0] for index in (0, 1))
    for name, value in by_hand(e, number - 1).items():
        torch.testing.assert_close(seen.model.state_dict()[name], value)
        # One federation for all trials; the attacked client is another one in each.
        assert torch.equal(other.model.state_dict()[name], seen.model.state_dict()[name])
    assert any(not torch.equal(seen.after[name], value) for name, value in other.after.items())


def test_only_later_rounds_have_names_of_their_own():
    first, later = of_round(1), of_round(2)
    plain = experiment(local=Local(steps=4, **RECIPE), batch=Batch(size=8), attacks=("ilrg",))
    assert first.definition_key(0) == plain.definition_key(0)
    assert later.definition_key(0) != plain.definition_key(0)


def test_a_network_with_counts_of_batches_is_averaged():
    """BatchNorm counts its batches in whole numbers, of which there is no mean."""
    (seen,) = observations(of_round(2, network=Network(name="lenet5", batchnorm=True)))
    before = seen.model.state_dict()
    counts = [value for name, value in before.items() if name.endswith("num_batches_tracked")]
    assert counts
    assert not any(value.is_floating_point() or int(value) for value in counts)


def test_a_federation_that_diverges_is_named():
    local = Local(steps=4, round=3, clients=2, learning_rate=1e30)
    with pytest.raises(ValueError, match=r"round 1 .* take a lower local.learning_rate"):
        run_trial(experiment(local=local, batch=Batch(size=8)), 0)
