"""Settings of the leaderboard, and their batches: shared by benchmarks that attack them anew."""

from collections.abc import Iterator
from pathlib import Path

from labelleak.lab.definition import Experiment
from labelleak.lab.experiment_grid import read_grid
from labelleak.lab.materials import network_of, training_of, training_set
from labelleak.lab.pretraining import train
from labelleak.lab.trial import Scene, set_up

GRID = Path(__file__).parent.parent / "results" / "leaderboard" / "grid.toml"


def leaderboard() -> dict[str, Experiment]:
    """The recorded leaderboard's settings by name."""
    return {experiment.name: experiment for experiment in read_grid(GRID)}


def scenes_of(experiment: Experiment, batches: int, data_dir: Path | None) -> Iterator[Scene]:
    """The first batches of a setting; its network is trained first where none is kept."""
    stage = training_of(experiment)
    if stage is not None:
        train(network_of(experiment), [stage], training_set(experiment, data_dir))
    return (set_up(experiment, index, data_dir) for index in range(batches))
