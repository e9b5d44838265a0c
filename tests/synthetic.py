"""Batches of embeddings with true labels, and what a server sees of them."""

from collections import OrderedDict
from dataclasses import dataclass, replace

import torch
from torch import nn
from torch.nn.functional import one_hot

from labelleak.attacks.registry import Need
from labelleak.loss import Loss
from labelleak.observation import Auxiliary, Head, HeadGradient, Observation
from labelleak.training import LocalTraining


def rng(seed=0):
    return torch.Generator().manual_seed(seed)


def losses(classes):
    """Options of `torch.nn.CrossEntropyLoss`: all combinations that attacks can read."""
    return [
        {"reduction": reduction, "label_smoothing": smoothing, "weight": weight}
        for reduction in ("mean", "sum")
        for smoothing in (0.0, 0.2)
        for weight in (None, torch.linspace(0.5, 2.0, classes, dtype=torch.float64))
    ]


def told(**knowledge):
    """Fields of an `Observation` from single facts about loss and training."""
    loss = {"reduction", "label_smoothing", "class_weights"} & set(knowledge)
    names = {
        "batch_size": "batch_size",
        "local_steps": "steps",
        "local_epochs": "epochs",
        "learning_rates": "learning_rate",
    }
    training = names.keys() & set(knowledge)
    fields = {name: knowledge[name] for name in knowledge.keys() - loss - training}
    if loss:
        fields["loss"] = Loss(**{name: knowledge[name] for name in loss})
    if training:
        fields["training"] = LocalTraining(**{names[name]: knowledge[name] for name in training})
    return fields


@dataclass
class Batch:
    """A head (float64), and the embeddings and labels of a client's batch."""

    weight: torch.Tensor
    bias: torch.Tensor
    embeddings: torch.Tensor
    labels: torch.Tensor

    @property
    def counts(self):
        return torch.bincount(self.labels, minlength=len(self.weight))

    @property
    def present(self):
        return self.counts > 0

    def gradient(self, dtype=torch.float64):
        """The head's gradient of the mean cross-entropy, in closed form."""
        probabilities = (self.embeddings @ self.weight.T + self.bias).softmax(1)
        errors = probabilities - one_hot(self.labels, len(self.weight))
        return HeadGradient(
            (errors.T @ self.embeddings / len(self.labels)).to(dtype), errors.mean(0).to(dtype)
        )

    def autograd(self, **loss):
        """The head's gradient of any `torch.nn.CrossEntropyLoss`, by autograd."""
        weight, bias = (x.clone().requires_grad_() for x in (self.weight, self.bias))
        logits = self.embeddings @ weight.T + bias
        torch.nn.CrossEntropyLoss(**loss)(logits, self.labels).backward()
        return HeadGradient(weight.grad, bias.grad)

    def observe(self, gradient=None, *, bias=True, dtype=torch.float64, **knowledge):
        """What the server sees; knows the batch size unless told otherwise."""
        gradient = gradient or self.gradient(dtype)
        if not bias:
            gradient = replace(gradient, bias=None)
        head = Head(self.weight.to(dtype), self.bias.to(dtype) if bias else None, "fc")
        return Observation(head, gradient, **told(**{"batch_size": len(self.labels), **knowledge}))

    def observe_under(self, loss, **knowledge):
        """What a server sees that knows the loss, given by its options in `losses`."""
        return self.observe(
            self.autograd(**loss),
            reduction=loss["reduction"],
            label_smoothing=loss["label_smoothing"],
            class_weights=loss["weight"],
            **knowledge,
        )

    def model(self, *, bias=True):
        """A network of this head alone: its inputs are the embeddings."""
        layer = nn.Linear(*reversed(self.weight.shape), bias=bias).double()
        state = {"weight": self.weight, "bias": self.bias}
        layer.load_state_dict(state if bias else {"weight": self.weight})
        return nn.Sequential(OrderedDict(fc=layer))

    def auxiliary(self, per_class=3, seed=1):
        """Other samples near the batch's mean embedding, the same number of each class."""
        labels = torch.arange(len(self.weight)).repeat(per_class)
        noise = torch.randn(len(labels), self.weight.shape[1], generator=rng(seed)).double()
        return Auxiliary((self.embeddings.mean(dim=0) * (1 + 0.1 * noise)), labels)

    def observe_for(self, needs):
        """What a server sees that knows what these needs ask for, and nothing more."""
        batch = self
        if Need.ONE_SAMPLE in needs:
            batch = replace(self, embeddings=self.embeddings[:1], labels=self.labels[:1])
        counted = {Need.ONE_SAMPLE, Need.BATCH_SIZE} & set(needs)
        known = {
            Need.MODEL: {"model": batch.model(bias=Need.BIAS in needs)},
            Need.GRADIENTS: {"gradients": batch.gradients()},
            Need.INPUT_SHAPE: {"input_shape": batch.embeddings.shape[1:]},
            Need.AUXILIARY: {"auxiliary": batch.auxiliary()},
            Need.AFTER: {"after": batch.after(0.1)},
            Need.LEARNING_RATES: {"learning_rates": (0.1,)},
        }
        knowledge = {"batch_size": len(batch.labels) if counted else None}
        for need in needs:
            knowledge |= known.get(need, {})
        gradient = batch.gradient()
        if Need.WEIGHT not in needs and Need.BIAS in needs:
            gradient = HeadGradient(torch.zeros_like(gradient.weight), gradient.bias)
        return batch.observe(gradient, bias=Need.BIAS in needs, **knowledge)

    def gradients(self):
        """The gradient by name, of every parameter of `model`."""
        gradient = self.gradient()
        return {"fc.weight": gradient.weight, "fc.bias": gradient.bias}

    def after(self, learning_rate):
        """The state dict after one step of gradient descent."""
        gradients = self.gradients()
        return {
            "fc.weight": self.weight - learning_rate * gradients["fc.weight"],
            "fc.bias": self.bias - learning_rate * gradients["fc.bias"],
        }


def untrained(classes, features, size, seed=0, *, spread=0.1, scale=0.5, dtype=torch.float64):
    """A head at its initialization, and non-negative embeddings that differ little.

    Head and embeddings are exact in the given dtype, as those of a client that computes in it.
    """
    generator = rng(seed)

    def randn(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    embeddings = (randn(features) + spread * randn(size, features)).relu()
    if not bool(embeddings.any()):
        # Of few features all may be inactive, and then the weight has no gradient.
        embeddings[:, 0] = 1.0
    return Batch(
        (scale * randn(classes, features) / features**0.5).to(dtype).double(),
        (0.05 * randn(classes)).to(dtype).double(),
        embeddings.to(dtype).double(),
        torch.randint(classes, (size,), generator=generator),
    )


def one_embedding(classes, features, size, seed=0):
    """All samples have the same embedding: iLRG's assumption, met exactly."""
    return untrained(classes, features, size, seed, spread=0.0)


def separated(classes, features, size, seed=0):
    """All samples of a class are the same, and no present class is mistaken for another.

    Embeddings and predictions differ between the classes, and yet the quotients that iLRG takes
    are the embeddings exactly: a row of a present class is made of that class's samples alone.
    Only the first half of the classes is present, each on its own features; all probability that
    they lose goes to the other half.
    """
    generator = rng(seed)
    present = classes // 2
    assert features % present == 0
    own = torch.eye(present, dtype=torch.float64).repeat_interleave(features // present, dim=1)
    prototypes = own * (0.5 + torch.rand(own.shape, generator=generator, dtype=torch.float64))
    weight = torch.randn(classes, features, generator=generator, dtype=torch.float64)
    weight[:present] = own * weight[:present].abs() - 1000.0 * (1.0 - own)
    bias = torch.randn(classes, generator=generator, dtype=torch.float64)
    labels = torch.randint(present, (size,), generator=generator)
    return Batch(weight, bias, prototypes[labels], labels)


def emitted_by_hand(evidence, impact, total, offset):
    """Algorithm 1 of Wainakh et al., with one argmin over all classes per label."""
    left, labels = list(evidence), []
    negative = [label for label, value in enumerate(evidence) if value < 0]
    for label in sorted(negative, key=lambda label: evidence[label])[:total]:
        labels.append(label)
        left[label] -= impact[label]
    left = [value - shift for value, shift in zip(left, offset, strict=True)]
    while len(labels) < total:
        least = left.index(min(left))
        labels.append(least)
        left[least] -= impact[least]
    return [labels.count(label) for label in range(len(evidence))]
