"""A small experiment to vary."""

from labelleak.lab.definition import Batch, Experiment, Network
from labelleak.lab.trial import run_trial


def experiment(name="a", **fields):
    given = {
        "data": "mnist-sample",
        "network": Network(name="fcn-3"),
        "batch": Batch(size=24),
        "attacks": ("ilrg",),
        "trials": 3,
        "range": "all",
    }
    return Experiment(name=name, **(given | fields))


def observations(of, index=0, data_dir=None):
    """What each attack of a trial saw, of those that did not fail."""
    seen = []
    run_trial(of, index, data_dir, watch=lambda name, observation, found: seen.append(observation))
    return seen
