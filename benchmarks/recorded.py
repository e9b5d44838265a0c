"""Are the recorded results still what this code gives?

    python benchmarks/recorded.py --data-dir ~/data --output again.jsonl [--trials 80] [--seed 0]
    python benchmarks/recorded.py --data-dir ~/data --output new.jsonl --against old.jsonl

Runs a sample of the trials in `results/leaderboard` and `results/quick` again and compares each
restoration with its record: the scores, the flags, whether it is certified, and the error. The
sample takes turns over the two folders and over their experiments, so that it covers as many
settings as it has trials.

Every trial is one line of the output, written as soon as it ends: the same command resumes where it
was interrupted, and an interruption (Ctrl-C) still prints the summary. A line holds the counts, the
set and the flags of each attack, and `differs`: for each attack that differs from its record, in
which fields.

Networks that the cache does not hold are trained when they are needed, after all other trials.
Another processor gives them other weights, and so other restorations. `--against` compares with the
output of another version of the code on the same machine and cache, which tells the two apart. On a
busy machine `auto` and `exact` may reach their time limits, and then certify less.
"""

import argparse
import json
import os
import random
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from labelleak.lab import paper
from labelleak.lab.definition import Experiment
from labelleak.lab.experiment_grid import read_grid
from labelleak.lab.keys import definition_of
from labelleak.lab.materials import network_of, training_of, training_set
from labelleak.lab.pretraining import is_trained, train
from labelleak.lab.sources import Source
from labelleak.lab.store import Record, read_records
from labelleak.lab.trial import run_trial
from labelleak.observation import Observation
from labelleak.restoration import Restoration

ROOT = Path(__file__).parent.parent
# The data sets with which `results/quick` was recorded.
SOURCES = {
    "mnist": Source("mnist"),
    "cifar100": Source("tiny-imagenet-100"),
    "imagenet": Source("imagenet", "test", replacement=True),
}
# A training of half an hour, inversions of 20 minutes, and the largest forward passes.
SLOW = (
    "epochs on 25,000 images",
    "ResNet-18 on CIFAR-100, untrained, K = 16, labels",
    "ResNet-152 on ImageNet",
    "ResNet-101 on ImageNet",
    "ResNet-50 on ImageNet, untrained, K = 4096",
)
RECORDED_FIELDS = ("counts", "rounded", "certified", "flags", "error", "spoke", "predicted")
RESTORED_FIELDS = ("counts", "rounded", "present", "certified", "flags", "error")


class Trial(NamedTuple):
    """A recorded trial."""

    folder: str
    experiment: Experiment
    number: int
    record: Record


def recorded_trials(folder: str, experiments: list[Experiment]) -> list[list[Trial]]:
    """The recorded trials that are fast enough, by experiment."""
    known: dict[str, tuple[Experiment, int]] = {}
    for experiment in experiments:
        for index in range(experiment.trials):
            # Studies share trials: each belongs to the first.
            known.setdefault(experiment.definition_key(index), (experiment, index))
    groups: dict[str, list[Trial]] = {}
    for record in read_records(ROOT / "results" / folder):
        slow = any(text in record["experiment"] for text in SLOW)
        definition = definition_of(record)
        if definition in known and not slow:
            trial = Trial(folder, *known[definition], record)
            groups.setdefault(trial.experiment.name, []).append(trial)
    return list(groups.values())


def in_turns(groups: list[list[Trial]], rng: random.Random) -> Iterator[Trial]:
    """One trial of each group in random order, then another of each, and so on."""
    for group in groups:
        rng.shuffle(group)
    rng.shuffle(groups)
    while any(groups):
        for group in groups:
            if group:
                yield group.pop()


def sample(trials: int, seed: int) -> list[Trial]:
    """Trials of both folders in equal parts; slow ones last, and stages of training in order."""
    leaderboard = read_grid(ROOT / "results" / "leaderboard" / "grid.toml")
    studies = [paper.study(name, "quick", SOURCES) for name in paper.names()]
    quick = [experiment for study in studies for experiment in study.experiments]
    half = trials // 2
    chosen = []
    for folder, experiments, number in (
        ("leaderboard", leaderboard, trials - half),
        ("quick", quick, half),
    ):
        turns = in_turns(recorded_trials(folder, experiments), random.Random(seed))
        chosen += [trial for trial, _ in zip(turns, range(number), strict=False)]
    return sorted(chosen, key=_order)


def _order(trial: Trial) -> tuple[int, str, int, str, int]:
    experiment = trial.experiment
    steps = 0 if experiment.training is None else experiment.training.steps
    network = experiment.network.name if steps else ""
    slow = (steps > 0) * 2 + (experiment.inversion is not None)
    return slow, network, steps, experiment.name, trial.number


def run_again(trial: Trial, data_dir: Path) -> Record:
    """Run a trial, after the training that it needs, and compare it with its record."""
    experiment = trial.experiment
    network, training = network_of(experiment), training_of(experiment)
    if training is not None:
        dataset = training_set(experiment, data_dir)
        if not is_trained(network, training, dataset):
            print(f"training for {experiment.name}", file=sys.stderr)
            train(network, [training], dataset)
    attacks: dict[str, Record] = {}

    def watch(name: str, _: Observation, found: Restoration) -> None:
        attacks[name] = restored(found)

    record = run_trial(experiment, trial.number, data_dir, watch=watch)
    for name, outcome in record["attacks"].items():
        if outcome["error"] is not None:
            attacks[name] = dict.fromkeys(RESTORED_FIELDS) | {"error": outcome["error"]}
    return {
        "key": trial.record["key"],
        "folder": trial.folder,
        "experiment": experiment.name,
        "trial": trial.number,
        "attacks": attacks,
        "differs": differences(trial.record["attacks"], record["attacks"], RECORDED_FIELDS),
    }


def restored(found: Restoration) -> Record:
    """A restoration as plain data."""
    return {
        "counts": None if found.counts is None else found.counts.tolist(),
        "rounded": None if found.rounded is None else found.rounded.tolist(),
        "present": found.present.nonzero()[:, 0].tolist(),
        "certified": found.certified,
        "flags": [flag.name.lower() for flag in found.flags],
        "error": None,
    }


def differences(before: Record, after: Record, fields: tuple[str, ...]) -> dict[str, list[str]]:
    """The fields in which each attack differs; attacks without a difference are left out."""
    found = {}
    for name, old in before.items():
        new = after.get(name, {})
        changed = [field for field in fields if new.get(field) != old.get(field)]
        if changed:
            found[name] = changed
    return found


def print_differences(title: str, compared: list[tuple[Record, dict[str, list[str]]]]) -> None:
    """Print every restoration that differs, and how many are the same."""
    print(f"\n{title}")
    same, total = 0, 0
    for line, differs in compared:
        total += len(line["attacks"])
        same += len(line["attacks"]) - len(differs)
        for name, fields in differs.items():
            where = f"{line['folder']}: {line['experiment']} #{line['trial']}"
            print(f"  {where}: {name} differs in {', '.join(fields)}")
    print(f"{same} of {total} restorations are the same, in {len(compared)} trials.")


def read(path: Path) -> dict[str, Record]:
    """The lines of an output by key; a line cut off by an interruption is left out."""
    return {record["key"]: record for record in read_records(path)} if path.is_file() else {}


def main() -> None:
    """Run the sample, and print what differs."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--data-dir", type=Path, required=True)
    parser.add_argument("--output", type=Path, required=True, help="JSON lines; made or resumed")
    parser.add_argument("--trials", type=int, default=80)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--cache", type=Path, help="where trained networks are kept")
    parser.add_argument("--against", type=Path, help="an earlier output to compare with")
    arguments = parser.parse_args()
    if arguments.cache is not None:
        os.environ["LABELLEAK_CACHE"] = str(arguments.cache)
    trials = sample(arguments.trials, arguments.seed)
    lines = read(arguments.output)
    try:
        for number, trial in enumerate(trials, start=1):
            key = trial.record["key"]
            if key not in lines:
                lines[key] = run_again(trial, arguments.data_dir)
                with arguments.output.open("a", encoding="utf-8") as file:
                    file.write(json.dumps(lines[key]) + "\n")
            print(f"{number} of {len(trials)}: {trial.experiment.name}", file=sys.stderr)
    except KeyboardInterrupt:
        print("Interrupted: the same command resumes.", file=sys.stderr)
    chosen = [lines[trial.record["key"]] for trial in trials if trial.record["key"] in lines]
    print_differences("Against the records:", [(line, line["differs"]) for line in chosen])
    if arguments.against is not None:
        before = read(arguments.against)
        both = [line for line in chosen if line["key"] in before]
        compared = [
            (line, differences(before[line["key"]]["attacks"], line["attacks"], RESTORED_FIELDS))
            for line in both
        ]
        print_differences(f"Against {arguments.against}:", compared)
    print(f"\nNever in the sample, as too slow: {', '.join(SLOW)}.")


if __name__ == "__main__":
    main()
