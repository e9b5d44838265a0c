"""What updates give away where no classes of samples are counted: shares of pixels, levels, means.

    python benchmarks/loss_shares.py [--only WORD] [--output results/benchmark-loss-shares.json]

Lesions are synthetic, see `lesions`: a brighter disk in each of six grainy images. The levels of
progression and their mean are of scikit-learn's 442 diabetes patients, as are the times of Cox's
likelihood. Batches and networks are of the range "evaluation". A row that the output file has
already is not measured again.

`error` is the mean, and `worst` the largest, error of a share of the pixels or of a mean target,
relative to itself; of centered targets it is in their standard deviations, of levels the error of a
level's share of the samples, and under Cox's likelihood the length of the bias gradient beside that
of the weight. `within` is the share of the batches with an error of at most 5 %; of levels, that of
the batches with all counts right, and under Cox's likelihood, that of the verdicts that it gives
nothing away. `refused` counts the updates that a function did not read. `unflagged` is the share of
the verdicts without a flag, and `silent` counts those of them that are not within. Functions that
return numbers, and no `Restoration`, have no flags.
"""

import argparse
import json
import math
import statistics
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

import labelleak
from labelleak import Loss
from labelleak.attacks import dice_share, level_counts
from labelleak.errors import MissingKnowledge
from labelleak.lab.ranges import EVALUATION
from lesions import SAMPLES, SIDE, lesions, segmenter, tissues
from measuring import Row, load, write

BATCHES, TRAINED = 50, 20
SIZE, LEVELS = 48, 5
# Training of a network that segments: steps of Adam on other images of the same kind.
STEPS, RATE = 300, 1e-2
_NEAR = 0.05


class Outcome(NamedTuple):
    """How far one update's answer is off, and its restoration if it is one."""

    error: float
    right: bool
    found: labelleak.Restoration | None = None


@dataclass(frozen=True)
class Setting:
    """A row: what it is, the outcome of the update of that number, and how many there are."""

    title: str
    outcome: Callable[[int], Outcome]
    batches: int = BATCHES


def seed(index: int, purpose: str) -> int:
    """A seed of the range."""
    return EVALUATION.derive(0, index, purpose)


def off(found: Tensor | float, true: Tensor | float) -> float:
    """Mean error relative to the true value."""
    a, b = torch.as_tensor(found).double(), torch.as_tensor(true).double()
    return float(((a - b).abs() / b.abs()).mean())


def gradients(model: nn.Module, value: Tensor) -> dict[str, Tensor]:
    """By name of the parameter."""
    names = [name for name, _ in model.named_parameters()]
    return dict(zip(names, torch.autograd.grad(value, list(model.parameters())), strict=True))


def pixels(
    share: float, index: int, *, classes: int = 1, steps: int = 0, told: bool = True
) -> Outcome:
    """Shares of the pixels of a batch of images; `told` says whether their number is known."""
    images, masks = lesions(share, seed(index, "lesions"))
    model = trained(share, steps) if steps else segmenter(seed(index, "weights"), classes)
    targets = masks if classes == 1 else tissues(images, masks)
    number = SIDE**2 if told else 0
    loss = Loss("bce", pixels=number) if classes == 1 else Loss(pixels=number)
    sent = gradients(model, loss.value(model(images), targets))
    size = SAMPLES if told else None
    found = labelleak.restore(labelleak.observe(model, sent, batch_size=size, loss=loss))
    assert found.proportions is not None
    true = torch.bincount(targets.long().flatten(), minlength=max(classes, 2)).double()
    true = (true / true.sum())[1:]
    error = off(found.proportions[1:], true)
    return Outcome(error, error <= _NEAR, found)


@cache
def trained(share: float, steps: int) -> nn.Module:
    """A network that has learned to segment images of the same kind."""
    model = segmenter(EVALUATION.derive(0, "trained")).train()
    optimizer = torch.optim.Adam(model.parameters(), lr=RATE)
    for step in range(steps):
        images, masks = lesions(share, seed(step, "training"))
        optimizer.zero_grad()
        functional.binary_cross_entropy_with_logits(model(images), masks).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    return model.eval()


def dice(share: float, index: int) -> Outcome:
    """The share under a Dice loss of the whole batch."""
    images, masks = lesions(share, seed(index, "lesions"))
    model = segmenter(seed(index, "weights"))
    sure = model(images).sigmoid()
    value = 1.0 - (2.0 * (sure * masks).sum() + 1e-5) / (sure.sum() + masks.sum() + 1e-5)
    bias = model[-1].bias
    assert isinstance(bias, Tensor)
    error = off(dice_share(bias, torch.autograd.grad(value, bias)[0]), masks.mean())
    return Outcome(error, error <= _NEAR)


@cache
def patients() -> tuple[Tensor, Tensor]:
    """Standardized measurements of 442 patients, and how far their disease went in a year."""
    from sklearn.datasets import load_diabetes

    measured, progress = load_diabetes(return_X_y=True)
    inputs = torch.tensor(measured, dtype=torch.float32)
    return (inputs - inputs.mean(0)) / inputs.std(0), torch.tensor(progress, dtype=torch.float32)


def drawn(index: int) -> tuple[Tensor, Tensor]:
    """A batch of patients."""
    inputs, progress = patients()
    random = torch.Generator().manual_seed(seed(index, "patients"))
    taken = torch.randperm(len(inputs), generator=random)[:SIZE]
    return inputs[taken], progress[taken]


def body(index: int, outputs: int | None) -> nn.Sequential:
    """A hidden layer, and a head of so many outputs, or none."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed(index, "weights"))
        hidden = [nn.Linear(patients()[0].shape[1], 32), nn.ReLU()]
        return nn.Sequential(*hidden, *([] if outputs is None else [nn.Linear(32, outputs)]))


def mean_target(index: int, *, centered: bool) -> Outcome:
    """The mean target under a squared error; centered ones are off by a share of their spread."""
    (inputs, progress), model = drawn(index), body(index, 1)
    whole = patients()[1]
    targets = (progress - whole.mean()) / whole.std() if centered else progress
    found = labelleak.mean_targets(labelleak.capture(model, inputs, targets, loss="mse"))
    mean = targets.mean()
    error = float((found - mean).abs()) if centered else off(found, mean)
    return Outcome(error, error <= _NEAR)


def levels(index: int, *, zero: bool) -> Outcome:
    """Counts of five levels of progression, from a CORAL layer."""
    inputs, progress = drawn(index)
    # Cut where a fifth of all patients is, so that batches are uneven by chance alone.
    cuts = torch.quantile(patients()[1], torch.arange(1, LEVELS) / LEVELS)
    level = torch.bucketize(progress, cuts)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed(index, "layer"))
        weight = nn.Linear(32, 1, bias=False).weight.detach()
    weight = (torch.zeros_like(weight) if zero else weight).requires_grad_()
    biases = torch.linspace(1.0, -1.0, LEVELS - 1).requires_grad_()
    logits = body(index, None)(inputs) @ weight.T + biases
    above = (level[:, None] > torch.arange(LEVELS - 1)).float()
    each = functional.binary_cross_entropy_with_logits(logits, above, reduction="none")
    of_weight, of_biases = torch.autograd.grad(each.sum(dim=1).mean(), [weight, biases])
    found = level_counts(weight, biases, of_weight, of_biases, SIZE).counts
    true = torch.bincount(level, minlength=LEVELS)
    return Outcome(float((found - true).abs().double().mean()) / SIZE, torch.equal(found, true))


def cox(index: int) -> Outcome:
    """The bias gradient of Cox's partial likelihood, relative to that of the weight."""
    (inputs, times), model = drawn(index), body(index, 1)
    risk = model(inputs)[times.argsort(descending=True), 0]
    value = -(risk - risk.logcumsumexp(dim=0)).mean()
    sent = gradients(model, value)
    found = labelleak.restore(labelleak.observe(model, sent, batch_size=SIZE, loss="cox"))
    error = float(sent["2.bias"].abs().max() / sent["2.weight"].norm())
    return Outcome(error, labelleak.Flag.BIAS_GIVES_NOTHING in found.flags, found)


def settings() -> Iterator[Setting]:
    """All rows."""
    for share in (0.01, 0.05, 0.2):
        yield Setting(f"lesions of {share:.0%}, BCE, untrained", partial(pixels, share))
    for share in (0.05, 0.2):
        yield Setting(
            f"lesions of {share:.0%} in two tissues, cross-entropy, untrained",
            partial(pixels, share, classes=3),
        )
    for share in (0.01, 0.05, 0.2):
        yield Setting(f"lesions of {share:.0%}, batch Dice, untrained", partial(dice, share))
    for told in (True, False):
        also = "" if told else ", number of pixels not told"
        yield Setting(
            f"lesions of 5%, BCE, {STEPS} steps{also}",
            partial(pixels, 0.05, steps=STEPS, told=told),
            TRAINED,
        )
    yield Setting("five levels, CORAL from a weight of zeros", partial(levels, zero=True))
    yield Setting("five levels, CORAL, untrained", partial(levels, zero=False))
    yield Setting("mean target, squared error, untrained", partial(mean_target, centered=False))
    yield Setting(
        "mean target, centered and in standard deviations, untrained",
        partial(mean_target, centered=True),
    )
    yield Setting("Cox: bias gradient beside that of the weight", cox)


def measured(setting: Setting) -> Row:
    """The figures of a row."""
    rows, refused = list[Outcome](), 0
    for index in range(setting.batches):
        try:
            rows.append(setting.outcome(index))
        except MissingKnowledge:
            refused += 1
    found = [(one.found, one.right) for one in rows if one.found is not None]
    flagged = [restored.unreliable for restored, _ in found]
    return {
        "title": setting.title,
        "batches": setting.batches,
        "refused": refused,
        "error": figure(statistics.fmean(one.error for one in rows)),
        "worst": figure(max(one.error for one in rows)),
        "within": round(sum(one.right for one in rows) / setting.batches, 4),
        "unflagged": round(1 - statistics.fmean(flagged), 4) if flagged else None,
        "silent": sum(not one.unreliable and not right for one, right in found) if found else None,
    }


def figure(value: float) -> float:
    """To four significant digits."""
    return float(f"{value:.4g}") if math.isfinite(value) else value


def main() -> None:
    """Measure every row, print it, and keep it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--only", default="", help="rows whose titles hold this")
    parser.add_argument("--output", type=Path)
    given = parser.parse_args()
    torch.set_num_threads(1)
    before, kept = load(), dict[str, Any]()
    if given.output is not None and given.output.is_file():
        kept = {row["title"]: row for row in json.loads(given.output.read_text())["rows"]}
    for setting in settings():
        if given.only in setting.title and setting.title not in kept:
            kept[setting.title] = measured(setting)
            print(json.dumps(kept[setting.title]), flush=True)
    rows = [kept[one.title] for one in settings() if one.title in kept]
    write(given.output, __doc__, before, threads=1, range="evaluation", rows=rows)


if __name__ == "__main__":
    main()
