"""Made-up whole updates for `fuzz.py`: a layer, an activation and a head of few classes.

Everything follows from one seed. `whole_truth` tells the server what is so, `whole_lies` one thing
that is not, the activation for example. Sizes run down to where equations are as many as unknowns,
and inputs are repeated, nearly repeated, sparse, binary or of low rank.
"""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

import labelleak
from labelleak.loss import Loss
from made_up import DOUBLE, Draw, Made, repeated

ACTIVATIONS: dict[str, tuple[Callable[[], nn.Module], Callable[[Tensor], Tensor]]] = {
    "tanh": (nn.Tanh, torch.tanh),
    "gelu": (nn.GELU, functional.gelu),
    "gelu by tanh": (
        lambda: nn.GELU("tanh"),
        lambda outputs: functional.gelu(outputs, approximate="tanh"),
    ),
    "silu": (nn.SiLU, functional.silu),
    "sigmoid": (nn.Sigmoid, torch.sigmoid),
    "relu": (nn.ReLU, torch.relu),
}
Gradients = dict[str, Tensor]


class Pooled(nn.Module):
    """A layer and a head with a function between them that no module names, as in RoBERTa."""

    def __init__(self, function: Callable[[Tensor], Tensor], layer: nn.Linear, head: nn.Linear):
        super().__init__()
        self.dense, self.dropout, self.head = layer, nn.Dropout(0.1), head
        self.function = function

    def forward(self, inputs: Tensor) -> Tensor:
        """Logits."""
        logits: Tensor = self.head(self.dropout(self.function(self.dense(inputs))))
        return logits


def whole_truth(seed: int) -> Made:
    """An observation whose every fact is right."""
    return _made_whole(seed, lying=False)


def whole_lies(seed: int) -> Made:
    """An observation with one fact that is wrong, or an update that something was done to."""
    return _made_whole(seed, lying=True)


def _made_whole(seed: int, *, lying: bool) -> Made:
    draw = Draw(seed)
    kind = draw.one_of("tanh", "tanh", *ACTIVATIONS)
    is_named, classes = draw.chance(0.7), draw.one_of(2, 2, 2, 3, 4)
    width, features = (draw.one_of(3, 6, 10, 16, 24, 40, 64, 96) for _ in range(2))
    most = max(1, min(width, features + 1) // 2)
    size = draw.one_of(draw.choices.randint(1, most), most, most + draw.choices.randint(0, 3))
    size = min(size, 24)
    inputs, facts = _inputs(draw, size, features)
    layer, head = nn.Linear(features, width), nn.Linear(width, classes)
    _fill(draw, layer, head)
    client = draw.one_of(*[torch.float32] * 4, DOUBLE)
    model = _model(kind, layer, head, is_named=is_named).to(client).eval()
    labels, how = _labels(draw, model, inputs.to(client), classes)
    reduction = draw.one_of("mean", "mean", "mean", "sum")
    gradients = _gradients(model, inputs.to(client), labels, reduction)
    told: int | None = size
    lie = draw.one_of(*WHOLE_LIES, *["another activation"] * 3) if lying else None
    if lie == "another activation":
        other = draw.one_of(*(name for name in ACTIVATIONS if name != kind))
        wrong = _model(other, layer, head, is_named=is_named).to(client).eval()
        gradients = _renamed(gradients, model, wrong)
        model, facts = wrong, facts | {"other": other}
    elif lie == "another batch size":
        # A batch of every sample twice has the same gradient, and half of the samples may be it.
        others = [other for other in range(2, 2 * size + 2) if math.gcd(other, size) == 1]
        told = draw.one_of(*others) if size > 1 else 1
    elif lie is not None:
        gradients = WHOLE_LIES[lie](draw, gradients)
    elif draw.chance(0.1):
        told = None
    facts |= {"C": classes, "width": width, "features": features, "K": size, "told": told}
    facts |= {"activation": kind, "named": is_named, "labels": how, "reduction": reduction}
    facts |= {"lie": lie, "client": str(client)}
    seen = labelleak.observe(
        model,
        gradients,
        head="3" if is_named else "head",
        batch_size=told,
        loss=Loss(reduction=reduction),
    )
    return Made(seen, torch.bincount(labels, minlength=classes), facts)


def _model(kind: str, layer: nn.Linear, head: nn.Linear, *, is_named: bool) -> nn.Module:
    module, function = ACTIVATIONS[kind]
    if is_named:
        return nn.Sequential(layer, module(), nn.Dropout(0.1), head)
    return Pooled(function, layer, head)


def _fill(draw: Draw, layer: nn.Linear, head: nn.Linear) -> None:
    """Weights as before training, of another size, and heads with rows that are alike."""
    sizes = draw.one_of(0.2, 1.0, 1.0, 1.0, 3.0), draw.one_of(1.0, 1.0, 4.0, 20.0, 60.0)
    with torch.no_grad():
        for module, scale in zip((layer, head), sizes, strict=True):
            weight = draw.normal(*module.weight.shape) * scale / module.in_features**0.5
            module.weight.copy_(weight)
            module.bias.copy_(draw.normal(len(module.bias)) * draw.one_of(0.0, 0.3, 1.0))
        if draw.chance(0.1):
            head.weight[0] = head.weight[-1] * draw.one_of(1.0, 1.0 + 1e-3)
        if draw.chance(0.05):
            head.weight[:, : head.in_features // 2] = 0.0


def _inputs(draw: Draw, size: int, features: int) -> tuple[Tensor, dict[str, Any]]:
    kind = draw.one_of("normal", "normal", "alike", "relu", "binary", "low rank", "clustered")
    made = draw.normal(size, features)
    if kind == "alike":
        made = made[:1] + 10.0 ** -draw.choices.randint(1, 4) * made
    elif kind == "relu":
        made = made.relu()
    elif kind == "binary":
        made = (made > 0).double()
    elif kind == "low rank":
        rank = draw.choices.randint(1, min(features, size))
        made = draw.normal(size, rank) @ draw.normal(rank, features)
    elif kind == "clustered":
        centers = draw.normal(draw.choices.randint(1, 3), features)
        near = 10.0 ** -draw.choices.randint(1, 6)
        made = centers[draw.indices(len(centers), size)] + near * made
    changes = repeated(draw, made, often=0.2, nearly=0.15, finest=7)
    return made * draw.one_of(1.0, 1.0, 0.1, 4.0), {"inputs": kind, "changes": changes}


def _labels(draw: Draw, model: nn.Module, inputs: Tensor, classes: int) -> tuple[Tensor, str]:
    how = draw.one_of("uniform", "uniform", "one", "predicted", "wrong", "mixed")
    labels = draw.indices(classes, len(inputs))
    with torch.no_grad():
        logits = model(inputs)
    if how == "one":
        return labels[:1].expand(len(inputs)).clone(), how
    if how == "predicted":
        return logits.argmax(dim=1), how
    if how == "wrong":
        return logits.argmin(dim=1), how
    if how == "mixed":
        return torch.where(draw.indices(2, len(inputs)) > 0, logits.argmax(dim=1), labels), how
    return labels, how


def _gradients(model: nn.Module, inputs: Tensor, labels: Tensor, reduction: str) -> Gradients:
    loss = functional.cross_entropy(model(inputs), labels, reduction=reduction)
    names = [name for name, _ in model.named_parameters()]
    return dict(zip(names, torch.autograd.grad(loss, list(model.parameters())), strict=True))


def _renamed(gradients: Gradients, model: nn.Module, other: nn.Module) -> Gradients:
    names = {id(value): name for name, value in other.named_parameters()}
    return {names[id(value)]: gradients[name] for name, value in model.named_parameters()}


def _noisy(draw: Draw, gradients: Gradients) -> Gradients:
    std = 10.0 ** -draw.choices.randint(1, 8)
    return {
        name: value
        + (std * value.norm() / value.numel() ** 0.5 * draw.normal(*value.shape)).to(value)
        for name, value in gradients.items()
    }


def _clipped(draw: Draw, gradients: Gradients) -> Gradients:
    factor = draw.one_of(0.1, 0.5, 0.7, 0.9, 0.97, 1.05, 2.0)
    return {name: value * factor for name, value in gradients.items()}


def _clipped_apart(draw: Draw, gradients: Gradients) -> Gradients:
    return {name: value * draw.one_of(0.5, 0.8, 1.0) for name, value in gradients.items()}


def _thinned(draw: Draw, gradients: Gradients) -> Gradients:
    share = draw.one_of(0.05, 0.3, 0.9)
    least = {name: value.abs().flatten().quantile(share) for name, value in gradients.items()}
    return {
        name: torch.where(value.abs() >= least[name], value, 0.0)
        for name, value in gradients.items()
    }


def _halved(draw: Draw, gradients: Gradients) -> Gradients:
    kind = draw.one_of(torch.bfloat16, torch.float16)
    return {name: value.to(kind).to(value) for name, value in gradients.items()}


def _other_layer(draw: Draw, gradients: Gradients) -> Gradients:
    """The gradient of the layer is another one of the same rank."""
    changed = dict(gradients)
    name = next(name for name, value in gradients.items() if value.ndim == 2)
    mixed = torch.linalg.qr(draw.normal(len(gradients[name]), len(gradients[name]))).Q
    for kind in ("weight", "bias"):
        own = name.rpartition(".")[0] + "." + kind
        changed[own] = mixed.to(gradients[own]) @ gradients[own]
    return changed


WHOLE_LIES: dict[str, Callable[[Draw, Gradients], Gradients]] = {
    "another batch size": lambda _, gradients: gradients,
    "noise": _noisy,
    "clipped": _clipped,
    "clipped by layer": _clipped_apart,
    "sparsified": _thinned,
    "half precision": _halved,
    "another layer": _other_layer,
}
