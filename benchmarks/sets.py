"""Which classes are there when nobody told the batch size: how often the set is right, and flagged.

    python benchmarks/sets.py [--batches 4] [--development] [--output results/benchmark-sets.json]

Networks on the MNIST sample of the package, with 10 classes (digits), 2 (odd or even) and 100 (two
digits side by side), untrained and after some steps of SGD, and synthetic heads of non-negative
embeddings that resemble each other. Gradients are autograd's. Single attacks see the head's, in
single and in double precision; the audit (`auto`) sees the whole update, in single precision.

Ranges are those of `labelleak.lab.ranges`: networks are trained on the range's images of the train
split, and batches are drawn from its images of the test split. The bounds of
`labelleak.attacks.presence` were chosen before there were such ranges, on small seeds and images of
the train split: on no batch of either range.

`before` is the rule that stood before: a share was there above half of the median share of the
classes with any, or above two standard errors where the attack has them. `flagged` is the share of
the batches with a flag under which the verdict is not to be relied on.
"""

import argparse
from collections import defaultdict
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from functools import cache, partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

import labelleak
from labelleak.lab.datasets import load as load_data
from labelleak.lab.datasets.samplers import draw
from labelleak.lab.networks import build
from labelleak.lab.ranges import DEVELOPMENT, EVALUATION, Range
from labelleak.restoration import UNRELIABLE, Flag, Restoration
from measuring import Row, load, write

SIZES = (1, 2, 4, 8, 24, 64)
KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    "one class": ("single_class", {}),
    "two classes": ("random_classes", {"num_classes": 2}),
    "four classes": ("random_classes", {"num_classes": 4}),
    "random": ("random", {}),
    "Dirichlet": ("dirichlet", {"alpha": 0.5}),
}
ATTACKS = ("ilrg", "pooled", "zlg")
AUDIT = "audit"
AUDIT_SECONDS = 2.0
PAIRS = 20_000
FEATURES = 64


@dataclass(frozen=True)
class Setting:
    """A network, its number of classes, and for how many steps it is trained (SGD, batches of 64).

    A network named ``head`` is a synthetic one, of embeddings that differ by so much.
    """

    network: str
    classes: int
    steps: int = 0
    spread: float = 0.0

    def title(self) -> str:
        """For a reader."""
        kind = f"{self.network} {self.spread}" if self.spread else self.network
        return f"{kind}, C = {self.classes}" + (f", {self.steps} steps" if self.steps else "")


SETTINGS = (
    *(Setting(name, c) for name in ("fcn-3", "fcn-2", "lenet5") for c in (2, 10, 100)),
    *(Setting("head", c, spread=spread) for spread in (0.1, 0.5) for c in (2, 10, 100)),
    *(Setting(name, 10, steps) for name in ("fcn-3", "lenet5") for steps in (20, 300)),
)


class Samples(NamedTuple):
    """Images (two of them side by side where there are 100 classes) and their labels."""

    images: Tensor
    pairs: Tensor | None
    labels: Tensor

    def pick(self, chosen: Tensor) -> Tensor:
        """Inputs of some samples."""
        if self.pairs is None:
            return self.images[chosen]
        return torch.cat([self.images[side[chosen]] for side in self.pairs], dim=3)


@cache
def samples(split: str, where: Range, classes: int) -> Samples:
    """Those of a range in a split."""
    dataset = load_data("mnist-sample", split=split)
    images, labels = dataset.batch(where.samples(dataset.labels))
    if classes == 10:
        return Samples(images, None, labels)
    if classes == 2:
        return Samples(images, None, labels % 2)
    random = torch.Generator().manual_seed(0)
    pairs = torch.randint(len(labels), (2, PAIRS), generator=random)
    return Samples(images, pairs, labels[pairs[0]] * 10 + labels[pairs[1]])


def network(setting: Setting, where: Range, seed: int) -> nn.Module:
    """A network of its own for every seed, in evaluation mode."""
    shape = (1, 28, 56 if setting.classes == 100 else 28)
    model = build(setting.network, classes=setting.classes, image_shape=shape, seed=seed)
    if setting.steps:
        known = samples("train", where, setting.classes)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
        random = torch.Generator().manual_seed(seed)
        for _ in range(setting.steps):
            chosen = torch.randint(len(known.labels), (64,), generator=random)
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(model(known.pick(chosen)), known.labels[chosen])
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
    return model.eval()


def head(setting: Setting, seed: int) -> tuple[nn.Module, Tensor]:
    """A synthetic head, and the embedding that all samples resemble."""
    random = torch.Generator().manual_seed(seed)
    model = nn.Sequential()
    model.add_module("fc", nn.Linear(FEATURES, setting.classes))
    weight, bias = model.parameters()
    with torch.no_grad():
        weight.copy_(0.5 * torch.randn(weight.shape, generator=random) / FEATURES**0.5)
        bias.copy_(0.05 * torch.randn(bias.shape, generator=random))
    return model, torch.randn(FEATURES, generator=random)


def batches(
    setting: Setting, where: Range, number: int
) -> Iterator[tuple[str, int, nn.Module, Tensor, Tensor]]:
    """Kind, size, network, inputs and labels of so many batches of every kind and size."""
    for seed in map(where.numbered, range(number)):
        if setting.network == "head":
            model, common = head(setting, seed)
            labels = torch.arange(setting.classes).repeat(max(SIZES))
        else:
            model = network(setting, where, seed)
            known = samples("test", where, setting.classes)
            labels = known.labels
        for size in SIZES:
            # A batch of one sample is of one class.
            for kind in KINDS if size > 1 else ("one class",):
                sampler, options = KINDS[kind]
                if "num_classes" in options:
                    options = {"num_classes": min(setting.classes, options["num_classes"])}
                own = where.derive(seed, size, kind)
                chosen = draw(sampler, labels, size, own, **options, replacement=True)
                if setting.network == "head":
                    random = torch.Generator().manual_seed(own)
                    noise = torch.randn(size, FEATURES, generator=random)
                    inputs = (common + setting.spread * noise).relu()
                else:
                    inputs = known.pick(chosen)
                yield kind, size, model, inputs, labels[chosen]


def observed(
    model: nn.Module, inputs: Tensor, labels: Tensor, dtype: torch.dtype
) -> labelleak.Observation:
    """What a server sees that knows the model and its whole gradient, and no batch size."""
    model = model.to(dtype)
    names = [name for name, _ in model.named_parameters()]
    loss = nn.functional.cross_entropy(model(inputs.to(dtype)), labels)
    gradients = torch.autograd.grad(loss, list(model.parameters()))
    named = dict(zip(names, gradients, strict=True))
    return labelleak.observe(model, named, input_shape=inputs.shape[1:])


def old_set(found: Restoration) -> Tensor:
    """The baseline: the set by the rule that stood before."""
    if found.counts is not None or found.raw is None or found.proportions is None:
        return found.present
    if found.standard_errors is not None:
        return found.proportions > 2.0 * found.standard_errors
    shares = found.raw.clamp(0.0, 1.0)
    return shares > 0.5 * shares[shares > 0].median()


def outcome(found: Restoration, true: Tensor) -> dict[str, bool]:
    """Whether the set is right and flagged, by the rule before and by the rule now."""
    return {
        "before": torch.equal(old_set(found), true),
        "flagged_before": bool(set(found.flags) & (UNRELIABLE - {Flag.SET_NOT_SURE})),
        "right": torch.equal(found.present, true),
        "flagged": found.unreliable,
        "not_sure": Flag.SET_NOT_SURE in found.flags,
    }


def measured(
    setting: Setting, where: Range, number: int
) -> list[tuple[dict[str, Any], dict[str, bool]]]:
    """Every batch of a setting under every attack that applies."""
    torch.set_num_threads(1)
    results = []
    for kind, size, model, inputs, labels in batches(setting, where, number):
        true = torch.bincount(labels, minlength=setting.classes) > 0
        for dtype in (torch.float64, torch.float32):
            seen = observed(model, inputs, labels, dtype)
            of_head = replace(seen, gradients=None)
            names = ATTACKS if setting.network != "head" else ATTACKS[:2]
            found = {name: labelleak.restore(of_head, name) for name in names}
            if dtype == torch.float32:
                found[AUDIT] = labelleak.restore(seen, time_limit=AUDIT_SECONDS)
            for name, restoration in found.items():
                key = {"setting": setting, "kind": kind, "size": size, "attack": name}
                results.append((key, outcome(restoration, true)))
    return results


def summed(results: list[tuple[dict[str, Any], dict[str, bool]]], *by: str) -> list[Row]:
    """Rates over all batches that agree in some respects."""
    groups: dict[tuple[Any, ...], list[dict[str, bool]]] = defaultdict(list)
    for key, row in results:
        groups[tuple(key[name] for name in by)].append(row)
    return [
        {
            **{name: value.title() if name == "setting" else value for name, value in named},
            "batches": len(rows),
            "right_before": rate([row["before"] for row in rows]),
            "right": rate([row["right"] for row in rows]),
            "flagged_before": rate([row["flagged_before"] for row in rows]),
            "flagged": rate([row["flagged"] for row in rows]),
            "not_sure": rate([row["not_sure"] for row in rows]),
            "right_unflagged_before": rate(
                [row["before"] for row in rows if not row["flagged_before"]]
            ),
            "right_unflagged": rate([row["right"] for row in rows if not row["flagged"]]),
        }
        for group, rows in groups.items()
        for named in [tuple(zip(by, group, strict=True))]
    ]


def rate(values: list[bool]) -> float | None:
    """Share of what is true; None of nothing."""
    return round(sum(values) / len(values), 4) if values else None


def main() -> None:
    """Measure, print two tables, and write the figures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--batches", type=int, default=4)
    parser.add_argument("--development", action="store_true")
    parser.add_argument("--output", type=Path)
    given = parser.parse_args()
    where = DEVELOPMENT if given.development else EVALUATION
    before = load()
    results = []
    with ProcessPoolExecutor(2, mp_context=get_context("spawn")) as pool:
        for some in pool.map(partial(measured, where=where, number=given.batches), SETTINGS):
            results += some
            title = some[0][0]["setting"].title()
            for row in summed(some, "attack"):
                print(f"{title:<28}{columns(row)}", flush=True)
    untrained = [one for one in results if not one[0]["setting"].steps]
    ten = [one for one in untrained if one[0]["setting"].classes == 10]
    of_kinds = summed(ten, "attack", "kind", "size")
    for row in of_kinds:
        print(f"{row['kind']:<14}{row['size']:>4}          {columns(row)}")
    print(f"{'all':<28}{columns(summed(results, 'attack')[0])}")
    write(
        given.output,
        __doc__,
        before,
        threads=2,
        range=where.name,
        batches=given.batches,
        attacks=summed(results, "attack"),
        settings=summed(results, "setting", "attack"),
        untrained_ten_classes=of_kinds,
    )


def columns(row: Row) -> str:
    """Rates of a row for the terminal."""
    names = ("right_before", "right", "flagged", "right_unflagged_before", "right_unflagged")
    values = "".join("       -" if row[name] is None else f"{row[name]:>8.3f}" for name in names)
    return f"{row['attack']:<8}{row['batches']:>6}{values}"


if __name__ == "__main__":
    main()
