"""What limits the counts of one logit behind an untrained network, without auxiliary data.

    python benchmarks/loss_limits.py [--output results/benchmark-loss-limits.json]

The batches of the rows "one logit, untrained, digits" of `losses.py`. Every gradient is a sum over
samples weighted by their residuals, near 1/2 for one class and -1/2 for the other. So its sums show
differences between the classes, and not how far apart the classes' mean logits are, which is an
error of the mean prediction.

`blind` is the share of the batches that are exactly right where the residuals' weighted mean of the
samples' logits stands for their mean, without error; an attack that shrinks it toward zero may be
right more often. `off` is the mean error of that count, and `apart` its correlation, over the
batches, with what the classes' difference alone would make. `informed` is the share of an oracle
that knows each class's mean residual over all samples of the range, which auxiliary data without
end would tell.
"""

import argparse
from pathlib import Path

import torch

from labelleak.lab.definition import Experiment
from labelleak.lab.materials import dataset_of
from labelleak.lab.trial import set_up
from loss_scenes import FRESH
from measuring import Row, load, write

BATCHES = 50


def measured(size: int) -> Row:
    """The figures of one batch size."""
    experiment = Experiment.model_validate(
        {
            "name": "a",
            "data": "mnist-sample",
            "attacks": ["auto"],
            "trials": 1,
            "network": FRESH,
            "batch": {"size": size},
            "loss": {"kind": "bce"},
            "targets": {"positive": [1, 7]},
        }
    )
    dataset = dataset_of(experiment, experiment.data_split, None)
    whole, whole_labels = dataset.batch(torch.arange(len(dataset)))
    right, informed, offs, expected = [], [], [], []
    for index in range(BATCHES):
        scene = set_up(experiment, index, None)
        labels, true = scene.batch.targets, int(scene.batch.true_counts[1])
        with torch.no_grad():
            logits = scene.model(scene.batch.inputs()).double().flatten()
            every = scene.model(whole).double().flatten().sigmoid()
        residuals = torch.sigmoid(logits) - labels
        bias = float(residuals.mean())
        weighted = (residuals @ logits) / residuals.sum()
        blind = size * (float(torch.sigmoid(weighted)) - bias)
        zero, one = (float(every[whole_labels == value].mean()) - value for value in (0, 1))
        told = size * (zero - bias) / (zero - one)
        share = true / size
        apart = float(logits[labels == 1].mean() - logits[labels == 0].mean())
        offs.append(blind - true)
        expected.append(-size / 4 * 2 * share * (1 - share) / (1 - 2 * share) * apart)
        right.append(round(blind) == true)
        informed.append(round(told) == true)
    both = torch.tensor([offs, expected], dtype=torch.float64)
    return {
        "size": size,
        "batches": BATCHES,
        "blind": sum(right) / BATCHES,
        "informed": sum(informed) / BATCHES,
        "off": round(float(both[0].abs().mean()), 4),
        "apart": round(float(torch.corrcoef(both)[0, 1]), 4),
    }


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--output", type=Path)
    given = parser.parse_args()
    torch.set_num_threads(1)
    before, rows = load(), list[Row]()
    for size in (64, 256):
        rows.append(measured(size))
        print(rows[-1], flush=True)
    write(given.output, __doc__, before, threads=1, range="evaluation", rows=rows)


if __name__ == "__main__":
    main()
