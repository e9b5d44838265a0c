"""A site trains with DP-SGD by Opacus, and audits every step: leakage beside epsilon.

    python examples/opacus-loop/train.py                 # without DP, clipping only, and with noise
    python examples/opacus-loop/train.py --noise 0.5 2

All runs of a seed draw the same batches. Records of all steps are written below --out, one file
per run, and a summary of the runs to summary.json, from which `figure.py` draws.
"""

import argparse
import json
import math
import warnings
from itertools import product
from pathlib import Path
from statistics import mean
from typing import Any

import torch
from opacus import PrivacyEngine
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from labelleak.federated import Policy
from labelleak.federated.opacus import LeakageAudit
from labelleak.lab.datasets import draw, load
from labelleak.lab.networks import build

SAMPLES, BATCH_SIZE, BOUND, DELTA = 1000, 32, 1.0, 1e-5
UNBOUND = 1e6


def train(
    own: TensorDataset, noise: float, bound: float, learning_rate: float, seed: int, out: Path
) -> dict[str, Any]:
    """One epoch: the training loop as it is, and the audit that looks on."""
    torch.manual_seed(seed)
    model = build("fcn-3", classes=10, image_shape=(1, 28, 28), seed=seed)
    engine = PrivacyEngine(accountant="rdp")
    model, optimizer, loader = engine.make_private(
        module=model,
        optimizer=torch.optim.SGD(model.parameters(), lr=learning_rate),
        data_loader=DataLoader(own, batch_size=BATCH_SIZE),
        noise_multiplier=noise,
        max_grad_norm=bound,
        noise_generator=torch.Generator().manual_seed(seed),  # the batches do not depend on it
    )
    run = f"noise {noise:g}, bound {bound:g}, rate {learning_rate:g}, seed {seed}"
    policy = Policy(action="record", records=str(out / "records"))
    audit = LeakageAudit(optimizer, model, policy, client=run, engine=engine, delta=DELTA)
    attack = None
    steps: dict[str, list[Any]] = {"epsilon": [], "samples": [], "restored": [], "guessed": []}
    for inputs, labels in loader:
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(inputs), labels).backward()  # type: ignore[no-untyped-call]
        audit.labels(labels)
        optimizer.step()
        assert audit.decision is not None
        record = audit.decision.record
        assert record.audit is not None, record.error
        attack = record.audit["attack"]
        epsilon = record.epsilon or math.inf
        steps["epsilon"].append(round(epsilon, 4) if math.isfinite(epsilon) else None)
        steps["samples"].append(len(labels))
        steps["restored"].append(round(record.audit["score"]["accuracy"], 4))
        steps["guessed"].append(round(guess(record.audit["true_counts"]), 4))
    return {
        "noise_multiplier": noise,
        "max_grad_norm": bound if bound < UNBOUND else None,
        "learning_rate": learning_rate,
        "seed": seed,
        "delta": DELTA,
        "attack": attack,
        "test_accuracy": test_accuracy(model),
        "steps": steps,
    }


def guess(counts: list[int]) -> float:
    """Share of the labels that equal counts of all classes get right."""
    number, classes = sum(counts), len(counts)
    equal = [number // classes + (index < number % classes) for index in range(classes)]
    return sum(map(min, counts, equal)) / number


@torch.no_grad()
def test_accuracy(model: nn.Module) -> float:
    """Share of the other digits that the model tells."""
    digits = load("mnist-sample")
    inputs, labels = digits.batch(torch.arange(4000, 5000))
    return float((model.eval()(inputs).argmax(dim=1) == labels).double().mean())


def own_data(seed: int) -> TensorDataset:
    """The site's data: class shares from a Dirichlet distribution, of the first 4000 digits."""
    digits = load("mnist-sample")
    own = draw("dirichlet", digits.labels[:4000], SAMPLES, seed, replacement=True)
    return TensorDataset(*digits.batch(own))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("labelleak-runs/opacus"))
    parser.add_argument("--noise", type=float, nargs="*", default=[0.25, 0.5, 1, 2, 4, 8])
    parser.add_argument("--learning-rates", type=float, nargs="+", default=[0.1])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    arguments = parser.parse_args()
    # Of Opacus: the noise is from no secure generator, and no gradient reaches the inputs.
    warnings.filterwarnings("ignore", message="Secure RNG turned off|Full backward hook is firing")
    arguments.out.mkdir(parents=True, exist_ok=True)
    print(" rate  noise  bound  epsilon  restored  guessed  test accuracy")
    privacy = [(0.0, UNBOUND), *((noise, BOUND) for noise in (0.0, *arguments.noise))]
    runs = []
    for rate, (noise, bound), seed in product(arguments.learning_rates, privacy, arguments.seeds):
        run = train(own_data(seed), noise, bound, rate, seed, arguments.out)
        epsilon, steps = run["steps"]["epsilon"][-1], run["steps"]
        print(
            f"{rate:>5g} {noise:>6g} {'none' if bound == UNBOUND else format(bound, 'g'):>6}",
            f"{'none' if epsilon is None else format(epsilon, '.2f'):>8}",
            f"{mean(steps['restored']):>9.1%} {mean(steps['guessed']):>8.1%}",
            f"{run['test_accuracy']:>14.1%}",
            flush=True,
        )
        runs.append(run)
    lines = ",\n".join(json.dumps(run) for run in runs)
    (arguments.out / "summary.json").write_text(f"[\n{lines}\n]\n")


if __name__ == "__main__":
    main()
