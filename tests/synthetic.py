"""Batches of embeddings with true labels, and what a server sees of them."""

from dataclasses import dataclass, replace

import torch
from torch.nn.functional import one_hot

from labelleak.observation import Head, HeadGradient, Observation


def rng(seed=0):
    return torch.Generator().manual_seed(seed)


@dataclass
class Batch:
    """A head (float64), and the embeddings and labels of one client's batch."""

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
        head = Head(self.weight.to(dtype), self.bias.to(dtype) if bias else None)
        return Observation(head, gradient, **{"batch_size": len(self.labels), **knowledge})


def untrained(classes, features, size, seed=0, *, spread=0.1, scale=0.5, dtype=torch.float64):
    """A head fresh from its initialisation: non-negative embeddings that differ little.

    Head and embeddings are exact in the given dtype, so that a gradient in it is as well rounded
    as a client's.
    """
    generator = rng(seed)

    def randn(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    embeddings = (randn(features) + spread * randn(size, features)).relu()
    return Batch(
        (scale * randn(classes, features) / features**0.5).to(dtype).double(),
        (0.05 * randn(classes)).to(dtype).double(),
        embeddings.to(dtype).double(),
        torch.randint(classes, (size,), generator=generator),
    )


def model_of(batch, *, bias=True):
    """The network that is the batch's head and nothing else: embeddings are its inputs."""
    model = torch.nn.Linear(*reversed(batch.weight.shape), bias=bias, dtype=torch.float64)
    model.load_state_dict(
        {"weight": batch.weight, "bias": batch.bias} if bias else {"weight": batch.weight}
    )
    return model


def one_embedding(classes, features, size, seed=0):
    """Every sample has the same embedding: what iLRG assumes of an untrained network, exactly."""
    return untrained(classes, features, size, seed, spread=0.0)


def separated(classes, features, size, seed=0):
    """Samples of one class are the same, and no present class is taken for another present one.

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
