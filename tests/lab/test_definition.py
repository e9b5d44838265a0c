import json
import os
import subprocess
import sys

import pytest
from pydantic import ValidationError

from labelleak.errors import UnreadableFile
from labelleak.lab.definition import (
    Batch,
    Defense,
    Experiment,
    Local,
    Network,
    Training,
    derive_seed,
    problem_lines,
    read_grid,
)

STAGE = Training(unit="iterations", steps=100, total=1000)


def experiment(**fields):
    given = {
        "name": "a",
        "data": "mnist-sample",
        "network": Network(name="fcn-3"),
        "batch": Batch(size=24),
        "attacks": ("ilrg",),
        "trials": 3,
    }
    return Experiment(**(given | fields))


@pytest.fixture
def grid(tmp_path):
    """Read a grid from its text."""

    def read(text):
        path = tmp_path / "grid.toml"
        path.write_text(text, encoding="utf-8")
        return read_grid(path)

    return read


def problems(grid, text):
    with pytest.raises(UnreadableFile) as raised:
        grid(text)
    return str(raised.value)


SMALL = """
[defaults]
name = "a"
data = "mnist-sample"
network = { name = "fcn-3" }
attacks = ["ilrg"]
trials = 3
"""


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
            {"defense": Defense(name="sign")},
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
        assert experiment().trial_key(0)[:16] == "e980f6a9dee9508b"

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
    full = experiment(training=STAGE, defense=Defense(name="clip_norm", value=1.0))
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
        ({"network": {"name": "fcn-3", "width": 5}}, "network.width", "activation, batchnorm"),
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
        ({"defense": {"name": "noise"}}, "defense.name", "'none', 'gaussian_noise'"),
        ({"defense": {"name": "sign", "value": 1}}, "defense", "'sign' takes no value"),
        ({"defense": {"name": "sparsify"}}, "defense", "needs a value: the percentage"),
        ({"defense": {"name": "sparsify", "value": 101}}, "defense", "0 to 100"),
        ({"defense": {"name": "clip_norm", "value": 0}}, "defense", "above 0"),
        ({"defense": {"name": "quantize", "value": 2.5}}, "defense", "number of bits, 2 to 16"),
        ({"defense": {"name": "gaussian_noise", "value": "nan"}}, "defense.value", "finite"),
        ({"local": {"steps": 3, "epochs": 2, "learning_rate": 1}}, "local", "as many in each"),
        ({"local": {"steps": 3}}, "local.learning_rate", "is missing"),
        (
            {"local": {"steps": 2, "learning_rate": 1}, "defense": {"name": "sign"}},
            "definition",
            "without defense",
        ),
        (
            {"local": {"steps": 2, "learning_rate": 1}, "measures": ["cossim"]},
            "definition",
            "without the measure 'cossim'",
        ),
        ({"auxiliary_per_class": 5, "data_split": "test"}, "definition", "the batches are"),
        ({"attacks": ["ilrg", "irlg"]}, "attacks.1", "auto, ilrg, rlg"),
        ({"attacks": []}, "attacks", "at least 1 item"),
        ({"attacks": ["ilrg", "ilrg"]}, "attacks", "twice"),
        ({"attacks": ["rlg"], "measures": ["cossim"]}, "definition", "'ilrg'"),
        ({"measures": ["cosine"]}, "measures.0", "'cossim', 'approximations'"),
        ({"trials": 0}, "trials", "greater than or equal to 1"),
        ({"name": ""}, "name", "at least 1 character"),
        ({"colour": "red"}, "colour", "name, data, stands_in_for"),
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


def test_seeds_are_apart_for_each_purpose():
    seeds = [derive_seed(seed, i, word) for seed in (0, 1) for i in range(50) for word in "ab"]
    assert len(set(seeds)) == len(seeds)
    assert all(0 <= seed < 2**63 for seed in seeds)
    assert derive_seed(1, 2) != derive_seed(12)


class TestGrid:
    def test_tables_are_merged_and_combined(self, grid):
        found = grid(
            SMALL.replace('name = "a"\n', "")
            + """
            batch = { sampler = "balanced", size = 8 }
            [[experiment]]
            name = "plain"
            [[experiment]]
            name = "noise"
            defense = { name = "gaussian_noise", value = 0.5 }
            network.activation = "swish"
            [grid]
            batch.size = [8, 24]
            seed = [0, 1]
            """
        )
        assert [e.name for e in found] == [
            f"{name}, batch.size={size}, seed={seed}"
            for name in ("plain", "noise")
            for size in (8, 24)
            for seed in (0, 1)
        ]
        assert found[-1] == experiment(
            name="noise, batch.size=24, seed=1",
            batch=Batch(sampler="balanced", size=24),
            network=Network(name="fcn-3", activation="swish"),
            defense=Defense(name="gaussian_noise", value=0.5),
            seed=1,
        )

    def test_the_defaults_alone_are_an_experiment(self, grid):
        assert grid(SMALL + "batch.size = 24") == [experiment()]

    def test_whole_tables_are_alternatives_too(self, grid):
        text = SMALL + 'batch.size = 24\n[grid]\ndefense = [{name = "none"}, {name = "sign"}]'
        assert [e.defense.name for e in grid(text)] == ["none", "sign"]

    def test_every_problem_has_a_line_of_its_own(self, grid):
        text = SMALL + 'batch.size = 24\ntrails = 4\n[grid]\nnetwork.activation = ["relu", "tanh"]'
        lines = problems(grid, text).splitlines()
        fields = [line.partition("grid.toml: experiment 'a': ")[2].split(":")[0] for line in lines]
        assert fields == ["trails", "network.activation"]

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("a = ", "is not TOML"),
            ("", "there is no experiment"),
            ("[experiments]", "the tables are [defaults], [[experiment]] and [grid]"),
            ("defaults = 3", "write [defaults]"),
            ("[experiment]", "write [[experiment]]"),
            ("experiment = []", "there is no experiment"),
            (SMALL + "[grid]\nbatch.size = 24", "grid.batch.size: a list"),
            (SMALL + "[grid]\nseed = []", "grid.seed: a list"),
            (SMALL + "batch.size = 24\n[[grid]]\nseed = [1]", "write [grid]"),
            (SMALL + "batch.size = 2\n[[experiment]]\n[[experiment]]", "there are 2 of this name"),
            ("[[experiment]]\ntrials = 2", "experiment 1: name: is missing"),
        ],
    )
    def test_what_is_no_grid_is_refused(self, grid, text, message):
        assert message in problems(grid, text)

    def test_no_file(self, tmp_path):
        with pytest.raises(UnreadableFile, match="No such file"):
            read_grid(tmp_path / "grid.toml")

    def test_no_text(self, tmp_path):
        (tmp_path / "grid.toml").write_bytes(b"\xff\xfe")
        with pytest.raises(UnreadableFile, match="is not TOML"):
            read_grid(tmp_path / "grid.toml")
