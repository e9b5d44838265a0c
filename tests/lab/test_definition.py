import hashlib
import json
import os
import subprocess
import sys

import pytest
from pydantic import ValidationError

from experiments import experiment
from labelleak.lab import definition
from labelleak.lab.definition import (
    Batch,
    DefenseSetting,
    Experiment,
    InversionSetting,
    Local,
    Network,
    Training,
)
from labelleak.lab.experiment_grid import problem_lines

STAGE = Training(unit="iterations", steps=100, total=1000)
IMAGES = InversionSetting(labels="given", iterations=1)


class TestKey:
    def test_is_the_same_for_other_names_and_more_trials(self):
        key = experiment().trial_key(0)
        assert experiment(name="b", trials=50).trial_key(0) == key
        assert key != experiment().trial_key(1)

    @pytest.mark.parametrize(
        "change",
        [
            {"data": "mnist"},
            {"stands_in_for": "mnist"},
            {"data_split": "test"},
            {"image_size": 32},
            {"network": Network(name="fcn-4")},
            {"network": Network(name="fcn-3", activation="swish")},
            {"network": Network(name="fcn-3", seed=14)},
            {"training": STAGE},
            {"batch": Batch(size=25)},
            {"batch": Batch(size=24, replacement=True)},
            {"defense": DefenseSetting(name="sign")},
            {"attacks": ("rlg",)},
            {"attacks": ("ilrg", "rlg")},
            {"known_classes": True},
            {"measures": ("cossim",)},
            {"measures": ("seconds",)},
            {"baselines": ("uniform",)},
            {"time_limit": 10.0},
            {"local": Local(steps=2, learning_rate=0.1)},
            {"auxiliary_per_class": 5},
            {"seed": 1},
            {"range": "evaluation"},
            {"range": "development"},
        ],
        ids=str,
    )
    def test_differs_where_anything_else_does(self, change):
        assert experiment(**change).trial_key(0) != experiment().trial_key(0)

    def test_differs_between_stages_of_one_run(self):
        later = experiment(training=STAGE.model_copy(update={"steps": 200}))
        assert later.trial_key(0) != experiment(training=STAGE).trial_key(0)

    def test_is_that_of_the_records_made_before(self):
        """A change here makes every record unknown: raise the version in TRIAL_SCHEMA with it."""
        assert experiment().definition_key(0)[:16] == "e980f6a9dee9508b"

    def test_differs_where_the_code_does(self, monkeypatch):
        before, restoring = experiment().trial_key(0), experiment(inversion=IMAGES).trial_key(0)
        monkeypatch.setattr(definition, "code_hash", lambda images: "12" if images else "34")
        assert experiment(inversion=IMAGES).trial_key(0) != restoring
        known = experiment().definition_key(0)
        expected = hashlib.sha256(f"{known}/34".encode()).hexdigest()
        assert before != experiment().trial_key(0) == expected

    def test_is_the_same_in_another_process(self):
        program = (
            "from labelleak.lab.definition import *\n"
            f"print(Experiment.model_validate_json({experiment().model_dump_json()!r}).trial_key(7))"
        )
        output = subprocess.run(
            [sys.executable, "-c", program],
            env={**os.environ, "PYTHONHASHSEED": "1"},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        assert output.strip() == experiment().trial_key(7)


def test_definitions_are_data():
    full = experiment(training=STAGE, defense=DefenseSetting(name="clip_norm", value=1.0))
    assert Experiment.model_validate(json.loads(full.model_dump_json())) == full
    assert len({full, experiment(), experiment()}) == 2
    with pytest.raises(ValidationError, match="frozen"):
        full.trials = 4


def test_lists_and_dicts_are_taken_as_a_file_has_them():
    assert experiment(attacks=["ilrg"], network={"name": "fcn-3"}) == experiment()


@pytest.mark.parametrize(
    ("change", "field", "allowed"),
    [
        ({"data": "minst"}, "data", "mnist-sample"),
        ({"data_split": "valid"}, "data_split", "'train', 'test' or 'val'"),
        ({"image_size": 0}, "image_size", "greater than or equal to 1"),
        ({"network": {"name": "vgg17"}}, "network", "vgg11, vgg13, vgg16"),
        ({"network": {"name": "vgg16", "activation": "swish"}}, "network", "options are dropout"),
        ({"network": {"name": "fcn-3", "activation": "tanh"}}, "network.activation", "'swish'"),
        ({"network": {"name": "vgg16", "dropout": 1}}, "network.dropout", "less than 1"),
        ({"network": {"name": "resnet18", "stem": "big"}}, "network.stem", "'paper' or 'imagenet'"),
        (
            {"network": {"name": "fcn-3", "width": 5}},
            "network",
            "'width', choose one of name, activation",
        ),
        ({"network": "fcn-3"}, "network", "name, activation"),
        ({"network": {"name": "fcn-3", "seed": -1}}, "network.seed", "'per-trial', not -1"),
        ({"network": {"name": "fcn-3", "seed": -1}}, "network.seed", "than or equal to 0, not -1"),
        ({"training": {"unit": "steps", "steps": 1, "total": 1}}, "training.unit", "'epochs'"),
        ({"training": {"unit": "epochs", "steps": 2, "total": 1}}, "training", "more than total 1"),
        (
            {"training": {"unit": "epochs", "steps": 1, "total": 1, "momentum": 0}},
            "training",
            "nesterov needs a momentum above 0",
        ),
        ({"training": {"unit": "epochs", "steps": 1, "rate": 1}}, "training.rate", "learning_rate"),
        (
            {
                "network": {"name": "fcn-3", "seed": "per-trial"},
                "training": {"unit": "iterations", "steps": 1, "total": 1},
            },
            "definition",
            "'per-trial' is for a network without training",
        ),
        ({"batch": {"size": 24, "sampler": "randon"}}, "batch.sampler", "balanced, dirichlet"),
        ({"batch": {"size": 24, "alpha": 1}}, "batch", "sampler 'dirichlet', not of 'random'"),
        ({"batch": {"size": 24, "sampler": "random_classes"}}, "batch", "needs num_classes"),
        ({"batch": {}}, "batch.size", "is missing"),
        ({"defense": {"name": "noise"}}, "defense.name", "one of none, gaussian_noise"),
        ({"defense": {"name": "sign", "value": 1}}, "defense", "'sign' takes no value"),
        ({"defense": {"name": "sparsify"}}, "defense", "needs a value: the percentage"),
        ({"defense": {"name": "sparsify", "value": 101}}, "defense", "0 to 100"),
        ({"defense": {"name": "clip_norm", "value": 0}}, "defense", "above 0"),
        ({"defense": {"name": "quantize", "value": 2.5}}, "defense", "number of bits, 2 to 16"),
        ({"defense": {"name": "gaussian_noise", "value": "nan"}}, "defense.value", "finite"),
        (
            {"local": {"steps": 3, "epochs": 2, "learning_rate": 1}},
            "local",
            "not a multiple of epochs",
        ),
        ({"local": {"steps": 3}}, "local.learning_rate", "is missing"),
        (
            {"local": {"steps": 2, "learning_rate": 1}, "defense": {"name": "sign"}},
            "definition",
            "cannot be combined with defense",
        ),
        (
            {"local": {"steps": 2, "learning_rate": 1}, "measures": ["cossim"]},
            "definition",
            "cannot be combined with the measure 'cossim'",
        ),
        ({"auxiliary_per_class": 5, "data_split": "test"}, "definition", "both be from the split"),
        ({"attacks": ["ilrg", "irlg"]}, "attacks.1", "auto, ilrg, rlg"),
        ({"range": "test"}, "range", "'development', 'evaluation' or 'all'"),
        (
            {"range": "evaluation", "network": {"name": "fcn-3", "seed": 2**31}},
            "definition",
            "outside the range 'evaluation': it must be 0 to 2147483647",
        ),
        ({"attacks": []}, "attacks", "at least 1 item"),
        ({"attacks": ["ilrg", "ilrg"]}, "attacks", "twice"),
        ({"attacks": ["rlg"], "measures": ["cossim"]}, "definition", "'ilrg'"),
        ({"measures": ["cosine"]}, "measures.0", "'cossim', 'approximations'"),
        ({"trials": 0}, "trials", "greater than or equal to 1"),
        ({"name": ""}, "name", "at least 1 character"),
        ({"color": "red"}, "color", "name, data, stands_in_for"),
    ],
    ids=str,
)
def test_errors_name_the_field_and_what_it_may_be(change, field, allowed):
    with pytest.raises(ValidationError) as raised:
        experiment(**change)
    lines = problem_lines(raised.value)
    assert any(line.startswith(f"{field}: ") and allowed in line for line in lines), lines


def test_options_are_what_the_functions_take():
    batch = Batch(sampler="imbalanced", size=24, classes=(0, 4, 9))
    assert batch.options == {"replacement": False, "classes": (0, 4, 9)}
    assert Network(name="lenet5", batchnorm=True).options == {
        "activation": "relu", "batchnorm": True, "dropout": None, "stem": None, "seed": 13
    }  # fmt: skip
