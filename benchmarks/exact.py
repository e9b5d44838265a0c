"""Exact restoration: what it finds and certifies, its time, and above all false certificates.

    python benchmarks/exact.py [--whole] [--batches 70] [--data-dir DIR] [--heads FILE ...]
                               [--output FILE]

Heads: FCN-3 on MNIST, untrained and after 1000 steps, and networks of 100 classes (pairs of
Fashion-MNIST images side by side) behind a ReLU and behind a global average pooling, each trained
here; and those in files: npz with the arrays `weight`, `bias`, `embeddings`, `labels` of any
network. With --whole the server sees the whole update of FCN-3 on MNIST instead, earlier layers and
all; rows of other settings stay in FILE. Of more than 8 samples, and of heads in files, 20 batches
are taken. Gradients are autograd's, in single precision. In the defended settings every batch is
defended by noise, sparsification, quantization, clipping, signs or half precision in turn. Time is
the processor's, in one thread.
"""

import argparse
import json
import statistics
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

import labelleak
from labelleak import defenses
from labelleak.lab.datasets import load as load_data
from labelleak.lab.networks import build
from labelleak.observation import Head, HeadGradient, Observation
from labelleak.training import LocalTraining
from measuring import load, write

POOL = 5000
FEW = 20
# Below this, 1 - p of the label is rounding error in single precision.
INVISIBLE = 1e-6


class Pooled(nn.Module):
    """A small convolutional network whose embeddings are averages, and so never zero."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential()
        for inputs, outputs in ((1, 32), (32, 64), (64, 256)):
            self.features.append(nn.Conv2d(inputs, outputs, 3, 2, 1))
            self.features.append(nn.BatchNorm2d(outputs))
            self.features.append(nn.ReLU())
        self.features.append(nn.AdaptiveAvgPool2d(1))
        self.features.append(nn.Flatten())
        self.fc = nn.Linear(256, 100)

    def forward(self, images: Tensor) -> Tensor:
        """Logits."""
        logits: Tensor = self.fc(self.features(images))
        return logits


class Samples(NamedTuple):
    """A head, and the embeddings of some samples."""

    head: Head
    embeddings: Tensor
    labels: Tensor

    def accuracy(self) -> float:
        """Share of the samples that the network predicts correctly."""
        return float((self.logits().argmax(dim=1) == self.labels).double().mean())

    def logits(self) -> Tensor:
        """Logits of every sample."""
        assert self.head.bias is not None
        return self.embeddings @ self.head.weight.T + self.head.bias

    def pick(self, chosen: Tensor) -> "Samples":
        """A selection of the samples."""
        return Samples(self.head, self.embeddings[chosen], self.labels[chosen])

    def observe(self) -> Observation:
        """What the server sees of one step on all samples."""
        assert self.head.bias is not None
        weight = self.head.weight.clone().requires_grad_()
        bias = self.head.bias.clone().requires_grad_()
        loss = nn.functional.cross_entropy(self.embeddings @ weight.T + bias, self.labels)
        by_weight, by_bias = torch.autograd.grad(loss, [weight, bias])
        gradient = HeadGradient(by_weight, by_bias)
        return Observation(self.head, gradient, training=LocalTraining(batch_size=len(self.labels)))

    def weakest(self) -> float:
        """Smallest 1 - p of a label, computed without cancellation."""
        logits = self.logits().double()
        others = logits.scatter(1, self.labels[:, None], -torch.inf).logsumexp(dim=1)
        return float(torch.sigmoid(others - logits.gather(1, self.labels[:, None])[:, 0]).min())


def pairs(data_dir: str | None) -> tuple[Tensor, Tensor]:
    """Images of two garments side by side, in one of 100 classes, the pairs of their classes."""
    images, labels = load_data("fashion-mnist", data_dir=data_dir).batch(torch.arange(20_000))
    generator = torch.Generator().manual_seed(0)
    one, two = torch.randint(20_000, (2, 20_000), generator=generator)
    return torch.cat([images[one], images[two]], dim=3), labels[one] * 10 + labels[two]


def trained(model: nn.Module, inputs: Tensor, labels: Tensor, steps: int) -> nn.Module:
    """The network after a number of steps of SGD on batches of 64."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, weight_decay=1e-4)
    generator = torch.Generator().manual_seed(1)
    for step in range(steps):
        if step > 0.7 * steps:
            optimizer.param_groups[0]["lr"] = 0.01
        chosen = torch.randint(len(inputs), (64,), generator=generator)
        loss = nn.functional.cross_entropy(model(inputs[chosen]), labels[chosen])
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    return model


def embedded(model: nn.Module, inputs: Tensor, labels: Tensor) -> Samples:
    """The head and the embeddings of the first samples."""
    model.eval()
    layer = model.fc
    assert isinstance(layer, nn.Linear)
    seen: list[Tensor] = []
    layer.register_forward_hook(lambda _, given, __: seen.append(given[0]))
    with torch.no_grad():
        for start in range(0, POOL, 250):
            model(inputs[start : start + 250])
    head = Head(layer.weight.detach(), layer.bias.detach())
    return Samples(head, torch.cat(seen), labels[:POOL])


def from_file(path: Path) -> Samples:
    """A head and samples that were saved by `numpy.savez`."""
    with np.load(path) as file:
        names = ("weight", "bias", "embeddings", "labels")
        weight, bias, embeddings, labels = (torch.from_numpy(file[name]) for name in names)
    return Samples(Head(weight, bias), embeddings, labels)


def defended(seen: Observation, number: int) -> Observation:
    """The gradient after one of the defenses, of varying strength."""
    generator = torch.Generator().manual_seed(number)
    size = float(seen.gradient.weight.square().mean().sqrt())
    ways: list[defenses.Defense] = [
        partial(defenses.gaussian_noise, std=1e-6 * size, generator=generator),
        partial(defenses.gaussian_noise, std=1e-5 * size, generator=generator),
        partial(defenses.gaussian_noise, std=1e-2 * size, generator=generator),
        partial(defenses.sparsify, percent=10.0),
        partial(defenses.quantize, bits=8, generator=generator),
        partial(defenses.clip_norm, max_norm=0.1),
        defenses.sign,
        half_precision,
    ]
    return defenses.defend(seen, ways[number % len(ways)])


def half_precision(gradient: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """The gradient rounded to 16 bits, as if to send less."""
    return {name: value.bfloat16().to(value.dtype) for name, value in gradient.items()}


class WholeModel(NamedTuple):
    """A network whose whole update is visible, and samples for it."""

    model: nn.Module
    inputs: Tensor
    labels: Tensor
    at_head: Samples

    def accuracy(self) -> float:
        """Share of the samples that the network predicts correctly."""
        return self.at_head.accuracy()

    def pick(self, chosen: Tensor) -> "WholeModel":
        """A selection of the samples."""
        at_head = self.at_head.pick(chosen)
        return WholeModel(self.model, self.inputs[chosen], self.labels[chosen], at_head)

    def observe(self) -> Observation:
        """What the server sees of one step on all samples."""
        loss = nn.functional.cross_entropy(self.model(self.inputs), self.labels)
        gradients = torch.autograd.grad(loss, list(self.model.parameters()))
        names = [name for name, _ in self.model.named_parameters()]
        return labelleak.observe(
            self.model, dict(zip(names, gradients, strict=True)), batch_size=len(self.labels)
        )

    def weakest(self) -> float:
        """Smallest 1 - p of a label."""
        return self.at_head.weakest()


def measure(
    samples: Samples | WholeModel, size: int, batches: int, *, defend: bool
) -> dict[str, Any]:
    """Figures over the batches of one setting, beside those of iLRG on the same batches."""
    totals: Counter[str] = Counter()
    seconds, accuracy, lnacc, ilrg_accuracy, ilrg_lnacc = [], [], [], [], []
    for number in range(batches):
        generator = torch.Generator().manual_seed(number)
        chosen = torch.randint(len(samples.labels), (size,), generator=generator)
        batch = samples.pick(chosen)
        seen = defended(batch.observe(), number) if defend else batch.observe()
        truth = torch.bincount(batch.labels, minlength=seen.classes)
        visible = batch.weakest() > INVISIBLE
        totals["visible"] += visible
        beside = labelleak.score(labelleak.restore(seen, "ilrg"), truth)
        ilrg_accuracy.append(beside.accuracy or 0.0)
        ilrg_lnacc.append(beside.lnacc or 0.0)
        start = time.process_time()
        try:
            found = labelleak.restore(seen, "exact", time_limit=5.0 if defend else 120.0)
        except labelleak.MissingKnowledge:
            totals["refused"] += 1
            continue
        finally:
            seconds.append(time.process_time() - start)
        right = found.counts is not None and torch.equal(found.counts, truth)
        totals["certified"] += found.certified
        totals["certified_visible"] += found.certified and visible
        totals["exact_visible"] += right and visible
        totals["false_certificates"] += found.certified and not right
        if found.counts is not None:
            scored = labelleak.score(found, truth)
            accuracy.append(scored.accuracy or 0.0)
            lnacc.append(scored.lnacc or 0.0)
    keys = ("visible", "certified", "certified_visible", "exact_visible", "false_certificates")
    return {
        "batches": batches,
        **{key: totals[key] for key in (*keys, "refused")},
        "accuracy": statistics.fmean(accuracy) if accuracy else None,
        "lnacc": statistics.fmean(lnacc) if lnacc else None,
        "ilrg_accuracy": statistics.fmean(ilrg_accuracy),
        "ilrg_lnacc": statistics.fmean(ilrg_lnacc),
        "seconds_median": statistics.median(seconds),
        "seconds_most": max(seconds),
    }


def heads(
    data_dir: str | None, files: list[Path]
) -> Iterator[tuple[str, Samples, tuple[int, ...]]]:
    """Every head with its name and its batch sizes."""
    digits = load_data("mnist", data_dir=data_dir)
    mnist = digits.batch(torch.arange(len(digits)))
    fcn = partial(build, "fcn-3", seed=0)
    small: dict[str, Any] = {"classes": 10, "image_shape": (1, 28, 28)}
    wide: dict[str, Any] = {"classes": 100, "image_shape": (1, 28, 56)}
    yield "fcn-3, mnist, 1000 steps", embedded(trained(fcn(**small), *mnist, 1000), *mnist), (4, 8)
    yield "fcn-3, mnist, untrained", embedded(fcn(**small), *mnist), (4, 8)
    garments = pairs(data_dir)
    model = trained(fcn(**wide), *garments, 2000)
    yield "fcn-3, 100 classes, 2000 steps", embedded(model, *garments), (8, 24)
    for path in files:
        yield path.stem, from_file(path), (8, 24)
    torch.manual_seed(0)
    model = trained(Pooled(), *garments, 1000)
    yield "pooled, 100 classes, 1000 steps", embedded(model, *garments), (8, 24)


def whole(data_dir: str | None) -> Iterator[tuple[str, WholeModel, tuple[int, ...]]]:
    """FCN-3 with its name and its batch sizes."""
    digits = load_data("mnist", data_dir=data_dir)
    mnist = digits.batch(torch.arange(len(digits)))
    pool = tuple(part[:POOL] for part in mnist)
    for name, steps in (("1000 steps", 1000), ("untrained", 0)):
        model = build("fcn-3", seed=0, classes=10, image_shape=(1, 28, 28))
        if steps:
            trained(model, *mnist, steps)
        at_head = embedded(model, *mnist)
        samples = WholeModel(model, pool[0], pool[1], at_head)
        yield f"fcn-3, mnist, {name}, whole update", samples, (4, 8, 16, 24)


def main() -> None:
    """Measure every setting, print a line for each, and write the figures as they come."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--whole", action="store_true")
    parser.add_argument("--batches", type=int, default=70)
    parser.add_argument("--data-dir", default=None)
    parser.add_argument("--heads", type=Path, nargs="*", default=[])
    parser.add_argument("--output", type=Path, default=None)
    given = parser.parse_args()
    torch.set_num_threads(1)
    results: list[dict[str, Any]] = []
    if given.output and given.output.exists():
        results = json.loads(given.output.read_text())["results"]
    settings = whole(given.data_dir) if given.whole else heads(given.data_dir, given.heads)
    before = load()
    for name, samples, sizes in settings:
        for size in sizes:
            from_files = name in {path.stem for path in given.heads}
            batches = min(FEW, given.batches) if size > 8 or from_files else given.batches
            for defend in (False, True):
                setting = {"network": name, "batch_size": size, "defended": defend}
                row = measure(samples, size, batches, defend=defend)
                others = [r for r in results if any(r[key] != setting[key] for key in setting)]
                results[:] = [*others, setting | {"network_accuracy": samples.accuracy()} | row]
                print(json.dumps(results[-1]), flush=True)
                write(given.output, __doc__, before, 1, results=results)


if __name__ == "__main__":
    main()
