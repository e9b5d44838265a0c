"""Small networks and batches, and the gradient of their head by autograd."""

from copy import deepcopy

import torch
from torch import nn

CLASSES = 7


class Net(nn.Module):
    """Convolution, BatchNorm, dropout (off by default), and a head."""

    def __init__(self, *, bias=True, dropout=0.0):
        super().__init__()
        self.conv = nn.Conv2d(2, 4, 3)
        self.norm = nn.BatchNorm2d(4)
        self.dropout = nn.Dropout(dropout)
        self.fc = nn.Linear(4 * 4 * 4, CLASSES, bias=bias)

    def embed(self, images):
        return self.dropout(self.norm(self.conv(images)).relu()).flatten(1)

    def forward(self, images):
        return self.fc(self.embed(images))


def batch(size, dtype=torch.float32, seed=0):
    generator = torch.Generator().manual_seed(seed)
    images = torch.randn(size, 2, 6, 6, generator=generator, dtype=torch.float64).to(dtype)
    return images, torch.randint(CLASSES, (size,), generator=generator)


def network(cls=Net, *, dtype=torch.float32, train=False, **options):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        model = cls(**options).to(dtype)
        if hasattr(model, "norm"):
            # Statistics as after some training.
            model.norm.running_mean.normal_()
            model.norm.running_var.uniform_(0.5, 2.0)
    return model.train(train)


def by_autograd(model, images, labels, *, class_weights=None, **options):
    """The head's gradient by a backward pass of a copy of the model."""
    model = deepcopy(model)
    if class_weights is not None:
        options["weight"] = class_weights.to(images.dtype)
    loss = nn.CrossEntropyLoss(**options)(model(images), labels)
    return torch.autograd.grad(loss, list(model.fc.parameters()))


# Relative to the norm. Measured over instruction sets and threads: at most 2.3e-7 in single and
# 6e-16 in double precision. A sample that is missing or counted twice makes 5e-3 or more.
TOLERANCE = {torch.bfloat16: 0.02, torch.float32: 1e-5, torch.float64: 1e-12}


def assert_same(gradient, expected, tolerance=None):
    """Both parts of a head's gradient, within rounding errors of their format."""
    found = [gradient.weight] + ([] if gradient.bias is None else [gradient.bias])
    assert len(found) == len(expected)
    for one, two in zip(found, expected, strict=True):
        assert one.dtype == two.dtype
        assert (one - two).norm() <= (tolerance or TOLERANCE[two.dtype]) * two.norm()


class Masked(nn.Module):
    """Like the classifiers of transformers: keyword arguments in, an object with logits out."""

    def __init__(self, wrap):
        super().__init__()
        self.embeddings = nn.Embedding(50, 12)
        self.classifier = nn.Linear(12, CLASSES)
        self.wrap = wrap

    def forward(self, input_ids, attention_mask):
        weights = attention_mask / attention_mask.sum(dim=1, keepdim=True)
        pooled = (self.embeddings(input_ids) * weights[..., None]).sum(dim=1)
        return self.wrap(self.classifier(pooled))
