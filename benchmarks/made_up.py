"""Made-up observations for `fuzz.py`: odd heads, embeddings and labels, and what a server is told.

Everything follows from one seed. `truth` tells the server what is so, `lies` one thing that is not,
`claims` a batch, a number of classes or of steps that no client can have; `confident` is of
networks that are sure, and mostly wrong.
"""

import math
import random
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from labelleak.loss import Loss, Reduction
from labelleak.observation import Head, HeadGradient, Observation
from labelleak.training import LocalTraining

DOUBLE = torch.float64


class Made(NamedTuple):
    """An observation, the true counts, and what it was made of."""

    observation: Observation
    counts: Tensor
    facts: dict[str, Any]


class Batch(NamedTuple):
    """A head and a batch before it, all float64 but the labels."""

    weight: Tensor
    bias: Tensor
    embeddings: Tensor
    labels: Tensor


class Draw:
    """Two sources of randomness from one seed: of choices and of tensors."""

    def __init__(self, seed: int) -> None:
        self.choices = random.Random(seed)
        self.generator = torch.Generator().manual_seed(seed)

    def one_of(self, *options: Any) -> Any:
        """One of the options, each as likely as the others."""
        return self.choices.choice(options)

    def chance(self, share: float) -> bool:
        """True with this probability."""
        return self.choices.random() < share

    def normal(self, *shape: int) -> Tensor:
        """Standard normal, float64."""
        return torch.randn(*shape, generator=self.generator, dtype=DOUBLE)

    def indices(self, below: int, number: int) -> Tensor:
        """Whole numbers from 0 to below `below`."""
        return torch.randint(below, (number,), generator=self.generator)


def truth(seed: int) -> Made:
    """An observation whose every fact is right."""
    return _made(seed, lying=False)


def lies(seed: int) -> Made:
    """An observation with one fact that is wrong, or a gradient that something was done to."""
    return _made(seed, lying=True)


def claims(seed: int) -> Made:
    """An observation with up to 1e6 classes, and up to 1e9 samples or many steps claimed."""
    draw = Draw(seed)
    classes = int(10 ** draw.choices.uniform(0.5, 6.0))
    features = draw.one_of(1, 4, 32, 128, 512)
    features = max(1, min(features, 3 * 10**7 // classes))
    size = min(draw.one_of(1, 2, 8, 24), 10**7 // classes)
    weight = draw.normal(classes, features) / features**0.5
    embeddings = draw.normal(size, features)
    embeddings = embeddings.relu() if draw.chance(0.5) else embeddings
    batch = Batch(weight, draw.normal(classes), embeddings, draw.indices(classes, size))
    gradient, by_bias = _gradient(batch, torch.float32, torch.ones(classes), Loss())
    told = draw.one_of(None, size, 10**3, 10**6, 10**9)
    steps = draw.one_of(1, 1, 1, 7, 10**4) if told is not None else 1
    training = LocalTraining(batch_size=told, steps=steps, learning_rate=0.1)
    observation = Observation(
        Head(weight.float(), batch.bias.float(), "head"),
        HeadGradient(gradient, by_bias if draw.chance(0.8) else None),
        training=training,
    )
    facts = {"C": classes, "m": features, "K": size, "told": told, "steps": steps}
    return Made(observation, torch.bincount(batch.labels, minlength=classes), facts)


def confident(seed: int) -> Made:
    """An observation of few labels whose predictions are sure and mostly wrong; all facts right."""
    draw = Draw(seed)
    classes, features = draw.one_of(4, 6, 10, 12, 20, 30, 50), draw.one_of(8, 12, 20, 32, 64)
    size = draw.choices.randint(2, max(2, min(classes, features) - 1))
    scale, labels = draw.one_of(5.0, 15.0, 40.0, 100.0), draw.one_of(1, 2, 3)
    client = draw.one_of(torch.float32, DOUBLE)
    embeddings = draw.normal(size, features) + draw.one_of(0.0, 0.5)
    batch = Batch(
        (scale * draw.normal(classes, features) / features**0.5).to(client),
        (0.1 * draw.normal(classes)).to(client),
        embeddings.relu() if draw.chance(0.3) else embeddings,
        draw.indices(classes, labels)[draw.indices(labels, size)],
    )
    gradient, by_bias = _gradient(batch, client, torch.ones(classes), Loss())
    knows_bias, told = draw.chance(0.5), size if draw.chance(0.9) else None
    observation = Observation(
        Head(batch.weight, batch.bias, "head"),
        HeadGradient(gradient, by_bias if knows_bias else None),
        training=LocalTraining(batch_size=told),
    )
    facts = {"C": classes, "m": features, "K": size, "told": told, "scale": scale}
    facts |= {"labels": labels, "bias": knows_bias, "client": str(client)}
    return Made(observation, torch.bincount(batch.labels, minlength=classes), facts)


def _made(seed: int, *, lying: bool) -> Made:
    draw = Draw(seed)
    batch, facts = _batch(draw)
    classes, size = len(batch.weight), len(batch.labels)
    lie = draw.one_of(*LIES) if lying else None
    loss, weights = _loss(draw, classes)
    client = draw.one_of(*[torch.float32] * 6, DOUBLE, DOUBLE, torch.bfloat16, torch.float16)
    arithmetic = DOUBLE if client == DOUBLE else torch.float32
    weight, bias = batch.weight.to(arithmetic), batch.bias.to(arithmetic)
    as_sent = batch._replace(weight=weight, bias=bias)
    gradient, by_bias = _gradient(as_sent, arithmetic, weights, loss)
    told: int | None = None if lie is None and draw.chance(0.1) else size
    if lie is not None:
        gradient, by_bias, told, loss = LIES[lie](draw, gradient, by_bias, size, loss)
    gradient, by_bias = gradient.to(client), by_bias.to(client)
    knows_bias = draw.chance(0.8)
    facts |= {"lie": lie, "told": told, "reduction": loss.reduction, "bias": knows_bias}
    facts |= {"client": str(client), "class_weights": loss.class_weights is not None}
    observation = Observation(
        Head(weight, bias if knows_bias or draw.chance(0.5) else None, "head"),
        HeadGradient(gradient, by_bias if knows_bias else None),
        loss=loss,
        training=LocalTraining(batch_size=told),
    )
    return Made(observation, torch.bincount(batch.labels, minlength=classes), facts)


def _batch(draw: Draw) -> tuple[Batch, dict[str, Any]]:
    classes = draw.one_of(2, 2, 3, 3, 4, 4, 5, 6, 8, 10, 10, 12, 16, 20, 30, 50)
    features = draw.one_of(1, 2, 3, 4, 6, 8, 12, 16, 20, 32, 48, 64)
    size = _size(draw, classes, features)
    embeddings, kind = _embeddings(draw, size, features)
    weight, bias, head = _head(draw, classes, features)
    labels = draw.indices(classes, size)
    how = draw.one_of("uniform", "uniform", "one", "two", "skew", "predicted", "wrong", "mixed")
    if how == "one":
        labels = labels[:1].expand(size).clone()
    elif how == "two":
        labels = draw.indices(classes, 2)[draw.indices(2, size)]
    elif how == "skew":
        drawn = [min(classes - 1, int(draw.choices.expovariate(1.0))) for _ in range(size)]
        labels = torch.tensor(drawn)
    if head == "trained":
        # Predictions of this certainty, right or wrong.
        sure = draw.one_of(3.0, 8.0, 15.0, 20.0, 40.0)
        shift = torch.zeros(size, dtype=torch.int64)
        if how == "wrong":
            shift += 1
        elif how == "mixed":
            shift = draw.indices(2, size)
        target = torch.nn.functional.one_hot((labels + shift) % classes, classes).double()
        weight = (torch.linalg.pinv(embeddings) @ (sure * target - bias)).T
    elif how in ("predicted", "wrong", "mixed"):
        logits = embeddings @ weight.T + bias
        predicted = logits.argmin(dim=1) if how == "wrong" else logits.argmax(dim=1)
        taken = draw.indices(2, size) > 0 if how == "mixed" else torch.ones(size) > 0
        labels = torch.where(taken, predicted, labels)
    facts = {"C": classes, "m": features, "K": size, "head": head, "labels": how}
    return Batch(weight, bias, embeddings, labels), facts | kind


def _size(draw: Draw, classes: int, features: int) -> int:
    few = min(classes, features)
    size: int = draw.one_of(
        draw.choices.randint(1, 4),
        max(1, few - draw.choices.randint(0, 3)),
        draw.choices.randint(1, few),
        few + draw.choices.randint(0, 3),
        draw.choices.randint(1, 3 * classes),
    )
    return min(size, 40)


def _embeddings(draw: Draw, size: int, features: int) -> tuple[Tensor, dict[str, Any]]:
    kind = draw.one_of(
        "relu", "relu", "normal", "sparse", "low rank", "binary", "positive", "clustered", "one-hot"
    )
    made = draw.normal(size, features)
    if kind == "relu":
        made = made.relu()
    elif kind == "sparse":
        made = (made - 1.0).relu()
    elif kind == "low rank":
        rank = draw.choices.randint(1, min(features, size))
        made = draw.normal(size, rank) @ draw.normal(rank, features)
    elif kind == "binary":
        made = (made > 0).double()
    elif kind == "positive":
        made = torch.sigmoid(made)
    elif kind == "clustered":
        centers = draw.normal(draw.choices.randint(1, 3), features).relu()
        near = 10.0 ** -draw.choices.randint(1, 8)
        made = centers[draw.indices(len(centers), size)] + near * made
    elif kind == "one-hot":
        made = torch.nn.functional.one_hot(draw.indices(features, size), features).double()
    scale = draw.one_of(1.0, 1.0, 1.0, 1e-3, 30.0)
    made = made * scale
    changes = repeated(draw, made, often=0.25, nearly=0.2, finest=8)
    if draw.chance(0.12):
        changes.append("dead")
        made[draw.indices(size, size // 2 + 1)] = 0.0
    if draw.chance(0.06):
        changes.append("one is huge")
        made[0] *= 1e4
    return made, {"embeddings": kind, "scale": scale, "changes": changes}


def repeated(draw: Draw, made: Tensor, *, often: float, nearly: float, finest: int) -> list[str]:
    """Repeat some samples in place, with these chances, or nearly so; what was done."""
    changes, (size, features) = [], made.shape
    if draw.chance(often):
        changes.append("repeated")
        made[draw.indices(size, size // 2 + 1)] = made[draw.indices(size, size // 2 + 1)]
    if draw.chance(nearly):
        changes.append("nearly repeated")
        near = 10.0 ** -draw.choices.randint(2, finest)
        made[0] = made[-1] * (1.0 + near * draw.normal(features))
    return changes


def _head(draw: Draw, classes: int, features: int) -> tuple[Tensor, Tensor, str]:
    kind: str = draw.one_of(
        "normal",
        "normal",
        "normal",
        "equal rows",
        "near rows",
        "low rank",
        "zero",
        *["trained"] * 2,
    )
    weight, bias = draw.normal(classes, features), draw.normal(classes) * draw.one_of(0, 0.1, 1)
    one, other = draw.indices(classes, 2).tolist()
    if kind == "equal rows":
        weight[one], bias[one] = weight[other], bias[other]
    elif kind == "near rows":
        weight[one] = weight[other] + 1e-6 * draw.normal(features)
        bias[one] = bias[other]
    elif kind == "low rank":
        weight = draw.normal(classes, 1) @ draw.normal(1, features)
    elif kind == "zero":
        weight = weight * 0.0
    size = draw.one_of(1.0, 1.0, 1.0 / math.sqrt(features), 1e-4, 0.03, 5.0, 30.0, 1e3)
    return weight * size, bias, kind


def _loss(draw: Draw, classes: int) -> tuple[Loss, Tensor]:
    reduction: Reduction = "sum" if draw.chance(0.12) else "mean"
    if not draw.chance(0.12):
        return Loss(reduction=reduction), torch.ones(classes)
    spread = draw.one_of(0.5, 2.0, 10.0) * torch.rand(classes, generator=draw.generator)
    weights = spread + draw.one_of(0.1, 0.5)
    return Loss(reduction=reduction, class_weights=weights), weights


def _gradient(
    batch: Batch, arithmetic: torch.dtype, weights: Tensor, loss: Loss
) -> tuple[Tensor, Tensor]:
    """Gradients of weight and bias, in the client's arithmetic."""
    weight, bias, embeddings = (part.to(arithmetic) for part in batch[:3])
    q = torch.softmax(embeddings @ weight.T + bias, dim=1)
    q[torch.arange(len(q)), batch.labels] -= 1.0
    own = weights.to(arithmetic)[batch.labels]
    q = q * (own / own.sum() if loss.averages else own)[:, None]
    return q.T @ embeddings, q.sum(dim=0)


Told = tuple[Tensor, Tensor, int, Loss]
Lie = Callable[[Draw, Tensor, Tensor, int, Loss], Told]


def _other_size(draw: Draw, weight: Tensor, bias: Tensor, size: int, loss: Loss) -> Told:
    # A size that is wrong by a whole factor gives the same gradient: a batch of every sample twice.
    near = range(max(2, size - 4), size + 5)
    others = [other for other in near if other % size and size % other]
    if not others:
        return _noise(draw, weight, bias, size, loss)
    return weight, bias, draw.one_of(*others), loss


def _other_scale(draw: Draw, weight: Tensor, bias: Tensor, size: int, loss: Loss) -> Told:
    factor = draw.one_of(0.1, 0.5, 0.9, 1.01, 2.0, 10.0, size / (size + 1))
    return weight * factor, bias * factor, size, loss


def _other_reduction(draw: Draw, weight: Tensor, bias: Tensor, size: int, loss: Loss) -> Told:
    reduction: Reduction = "sum" if loss.averages else "mean"
    other = Loss(reduction=reduction, class_weights=loss.class_weights)
    return weight, bias, size, other


def _noise(draw: Draw, weight: Tensor, bias: Tensor, size: int, loss: Loss) -> Told:
    std = 10.0 ** -draw.choices.randint(0, 8) * float(weight.square().mean().sqrt())
    noisy = weight + std * draw.normal(*weight.shape).to(weight)
    return noisy, bias + std * draw.normal(len(bias)).to(bias), size, loss


def _sparsified(draw: Draw, weight: Tensor, bias: Tensor, size: int, loss: Loss) -> Told:
    kept = max(1, int(weight.numel() * draw.one_of(0.1, 0.5, 0.95)))
    least = weight.abs().flatten().topk(kept).values[-1]
    return torch.where(weight.abs() >= least, weight, 0.0), bias, size, loss


def _quantized(draw: Draw, weight: Tensor, bias: Tensor, size: int, loss: Loss) -> Told:
    step = float(weight.abs().max()) / draw.one_of(7, 127, 32767) or 1.0
    return (weight / step).round() * step, (bias / step).round() * step, size, loss


def _shuffled_bias(draw: Draw, weight: Tensor, bias: Tensor, size: int, loss: Loss) -> Told:
    if len(bias) == 2:
        # That of two classes changes its sign, as the embedding may.
        return _noise(draw, weight, bias, size, loss)
    return weight, bias[torch.randperm(len(bias), generator=draw.generator)], size, loss


def _another_layer(draw: Draw, weight: Tensor, bias: Tensor, size: int, loss: Loss) -> Told:
    rank = draw.choices.randint(1, min(weight.shape))
    other = draw.normal(len(weight), rank) @ draw.normal(rank, weight.shape[1])
    return (other - other.mean(dim=0)).to(weight), bias, size, loss


LIES: dict[str, Lie] = {
    "another batch size": _other_size,
    "another scale": _other_scale,
    "another reduction": _other_reduction,
    "noise": _noise,
    "sparsified": _sparsified,
    "quantized": _quantized,
    "bias of other classes": _shuffled_bias,
    "another layer": _another_layer,
}
