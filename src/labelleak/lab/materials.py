"""What the trials of an experiment are made of: the data, network and training of its range."""

from functools import lru_cache
from pathlib import Path

from labelleak.lab.datasets import Dataset, load
from labelleak.lab.definition import Experiment, Network, Training
from labelleak.lab.ranges import RANGES, RangeName
from labelleak.lab.tasks import Targets, relabeled


@lru_cache(maxsize=4)
def cached_dataset(
    name: str,
    split: str,
    data_dir: Path | str | None,
    image_size: int | None,
    range_name: RangeName,
    targets: Targets | None = None,
) -> Dataset:
    """The samples of a range in a data set, kept for the next call of this process.

    Args:
        name: Name of the data set; this and the next three are as in `datasets.load`.
        split: The split.
        data_dir: Folder with the data.
        image_size: Side of the images, pixels.
        range_name: Name of the range.
        targets: Targets in place of the classes.

    Returns:
        The data set; its name ends in that of the range, unless it has all samples.

    Raises:
        DataNotFound: The data set is missing.
        ValueError: It has too few samples of each class to keep ranges apart.
    """
    if targets is not None:
        return relabeled(cached_dataset(name, split, data_dir, image_size, range_name), targets)
    whole = load(name, split=split, data_dir=data_dir, image_size=image_size)
    if range_name == "all":
        return whole
    chosen = RANGES[range_name].samples(whole.labels)
    if not len(chosen):
        raise ValueError(
            f"{whole.name} has one sample of each class, which cannot be in two ranges: write "
            'range = "all"'
        )
    return whole.subset(chosen, f"{whole.name}-{range_name}")


def dataset_of(experiment: Experiment, split: str, data_dir: Path | str | None) -> Dataset:
    """The samples of a split that an experiment may use.

    Args:
        experiment: The experiment.
        split: The split.
        data_dir: Folder with the data.

    Returns:
        The data set.

    Raises:
        DataNotFound: The data set is missing.
    """
    return cached_dataset(
        experiment.data,
        split,
        data_dir,
        experiment.image_size,
        experiment.range,
        experiment.targets,
    )


def training_set(experiment: Experiment, data_dir: Path | str | None) -> Dataset:
    """The data set that the experiment's network is made for, and trained on.

    Args:
        experiment: The experiment.
        data_dir: Folder with the data.

    Returns:
        The split ``train`` for a trained network, else the one that batches are drawn from.

    Raises:
        DataNotFound: The data set is missing.
    """
    trained = experiment.training is not None and experiment.training.steps
    return dataset_of(experiment, "train" if trained else experiment.data_split, data_dir)


def network_of(experiment: Experiment, own_seed: int | None = None) -> Network:
    """The network of an experiment with the seed that it has in the experiment's range.

    Args:
        experiment: The experiment.
        own_seed: The trial's own seed, for a network that is another one in each trial.

    Returns:
        The network.
    """
    seed = experiment.network.seed
    if seed == "per-trial":
        return experiment.network.model_copy(update={"seed": own_seed})
    placed = RANGES[experiment.range].numbered(seed)
    return experiment.network.model_copy(update={"seed": placed})


def training_of(experiment: Experiment) -> Training | None:
    """The training of an experiment with the seed that it has in the experiment's range.

    Args:
        experiment: The experiment.

    Returns:
        The training; None for an untrained network.
    """
    training = experiment.training
    if training is None:
        return None
    placed = RANGES[experiment.range].numbered(training.seed)
    return training.model_copy(update={"seed": placed})
