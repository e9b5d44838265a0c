import pytest

from experiments import experiment
from labelleak.lab.definition import Batch
from labelleak.lab.metric_catalog import metric, metrics_of


@pytest.mark.parametrize("name", ["leacc", "ilrg.speed", "ilrg", ".leacc", "a4_mse"])
def test_unknown_metrics_are_refused(name):
    with pytest.raises(ValueError, match="there is no metric"):
        metric(name)


def test_every_metric_of_the_studies_is_described():
    for name in ("ilrg.instances_18", "probability_cossim", "rlg.leacc", "a2_bias_mre"):
        found = metric(name)
        assert found.title
        assert found.description
        low, high = found.bounds
        assert high is None or low < high


def test_the_metrics_of_experiments_are_what_their_records_hold():
    one = experiment("one", attacks=("auto", "ilrg"), measures=("cossim", "seconds"))
    two = experiment("two", baselines=("uniform",), measures=("approximations",))
    scores = ("leacc", "lnacc", "irec", "accuracy", "exact")
    errors = ("a1", "a2_weight", "a2_bias", "a3")
    assert metrics_of([one, two]) == (
        *(f"{attack}.{score}" for attack in ("auto", "ilrg") for score in scores),
        "auto.certified",
        "auto.seconds",
        "ilrg.seconds",
        *(f"uniform.{score}" for score in scores if score != "irec"),
        "probability_cossim",
        "embedding_cossim",
        *(f"{name}_{error}" for name in errors for error in ("mse", "mre")),
        "embedding_mse",
    )


def test_an_advantage_is_kept_or_follows_from_the_even_guess():
    entry = {"counts": {"accuracy": 0.9}, "rounded": None, "error": None}
    old = {"attacks": {"ilrg": entry}, "measures": {}, "baselines": {"uniform": {"accuracy": 0.4}}}
    assert metric("ilrg.above_guess").value(experiment(), old) == 0.5
    assert metric("ilrg.above_guess").value(experiment(), old | {"baselines": {}}) is None
    entry["counts"]["advantage"] = 0.3
    assert metric("ilrg.above_guess").value(experiment(), old) == 0.3
    entry["counts"]["above_guess"] = 0.2
    assert metric("ilrg.above_guess").value(experiment(), old) == 0.2
    assert metric("ilrg.above_guess").bounds == (-1.0, 1.0)


def test_values_are_read_from_each_part_of_a_record():
    of = experiment(batch=Batch(sampler="imbalanced", size=24, classes=(0, 1, 9)))
    scores = {"lnacc": 0.5, "exact": False}
    entry = {
        "counts": scores, "rounded": {"lnacc": 0.25}, "certified": True, "error": None,
        "predicted": {"1": 22},
    }  # fmt: skip
    record = {
        "attacks": {"ilrg": entry, "rlg": {"counts": None, "rounded": None, "error": "no rank"}},
        "measures": {"a1_mse": 1e-3, "ilrg.seconds": 2},
        "baselines": {"absent": {"lnacc": 0.75}},
    }
    values = {
        "ilrg.lnacc": 0.25,
        "ilrg.exact": 0.0,
        "ilrg.certified": 1.0,
        "ilrg.seconds": 2.0,
        # Class 1 takes the place of the published class 18; no other class was predicted.
        "ilrg.instances_18": 22.0,
        "ilrg.instances_92": 0.0,
        "rlg.lnacc": None,
        "idlg.leacc": None,
        "a1_mse": 1e-3,
        "a3_mse": None,
        "absent.lnacc": 0.75,
    }
    assert {name: metric(name).value(of, record) for name in values} == values
