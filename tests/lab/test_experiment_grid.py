from pathlib import Path

import pytest

from experiments import experiment
from labelleak.attacks import Need, list_attacks
from labelleak.errors import UnreadableFile
from labelleak.lab.definition import Batch, DefenseSetting, Network
from labelleak.lab.experiment_grid import grid_study, read_grid


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


def test_tables_are_merged_and_combined(grid):
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
        defense=DefenseSetting(name="gaussian_noise", value=0.5),
        seed=1,
        range="evaluation",
    )


def test_the_defaults_alone_are_an_experiment(grid):
    assert grid(SMALL + "batch.size = 24") == [experiment(range="evaluation")]


def test_whole_tables_are_alternatives_too(grid):
    text = SMALL + 'batch.size = 24\n[grid]\ndefense = [{name = "none"}, {name = "sign"}]'
    assert [e.defense.name for e in grid(text)] == ["none", "sign"]


def test_every_problem_has_a_line_of_its_own(grid):
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
        (SMALL + "batch.size = 2\n[[experiment]]\n[[experiment]]", "2 experiments have this name"),
        ("[[experiment]]\ntrials = 2", "experiment 1: name: is missing"),
    ],
)
def test_what_is_no_grid_is_refused(grid, text, message):
    assert message in problems(grid, text)


def test_no_file(tmp_path):
    with pytest.raises(UnreadableFile, match="no such file"):
        read_grid(tmp_path / "grid.toml")


def test_no_text(tmp_path):
    (tmp_path / "grid.toml").write_bytes(b"\xff\xfe")
    with pytest.raises(UnreadableFile, match="is not TOML"):
        read_grid(tmp_path / "grid.toml")


def test_a_grid_becomes_a_study_with_all_it_measures():
    experiments = [
        experiment("one", attacks=("ilrg", "idlg")),
        experiment("two", attacks=("ilrg",), measures=("cossim", "soteria_embedding")),
    ]
    found = grid_study(experiments, "grid", "My grid")
    assert [row.label for row in found.rows] == ["one", "two"]
    assert found.experiments == experiments
    assert {"ilrg.exact", "idlg.leacc", "soteria_embedding_mse"} <= set(found.metrics)
    assert "a1_mse" not in found.metrics
    assert found.scale is None


LEADERBOARD = read_grid(Path(__file__).parents[2] / "examples" / "leaderboard.toml")
CLASSES = {"mnist": 10, "fashion-mnist": 10, "tiny-imagenet-100": 100}
# Always known to the server of a trial.
KNOWN = {
    Need.WEIGHT, Need.BIAS, Need.BATCH_SIZE, Need.PLAIN_LOSS, Need.MODEL, Need.INPUT_SHAPE
}  # fmt: skip


def can_run(experiment):
    """The attacks whose needs the setting meets, at a cost that a leaderboard can bear.

    `exact` gives up at once on large batches, `calibrated` passes its dummies through the network
    many times, and `synthetic` trains hundreds of virtual clients.
    """
    known = set(KNOWN)
    if experiment.auxiliary_per_class is not None:
        known.add(Need.AUXILIARY)
    if experiment.local is not None:
        known |= {Need.AFTER, Need.LEARNING_RATES}
    names = {name for name, attack in list_attacks().items() if set(attack.needs) <= known}
    if experiment.local is not None or experiment.batch.size >= CLASSES[experiment.data]:
        names.remove("exact")
    if experiment.local is not None:
        names -= {"virtual-batches", "synthetic"}
    if experiment.network.name in ("vgg16", "resnet18"):
        names.remove("calibrated")
    return names


@pytest.mark.parametrize("experiment", LEADERBOARD, ids=lambda experiment: experiment.name)
def test_every_attack_that_can_run_in_a_setting_stands_in_the_leaderboard(experiment):
    assert experiment.attacks[0] == "auto"
    assert set(experiment.attacks[1:]) == can_run(experiment)
    assert experiment.range == "evaluation"
