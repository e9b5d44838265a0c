"""Plug-ins as a user writes them, in a module of a folder that is forgotten again."""

import importlib
import sys
from contextlib import contextmanager

from labelleak.attacks import registry
from labelleak.plugins import add_folder, loading

MODULE = '''
import torch
from torch.nn import functional
from labelleak import Loss, Restoration
from labelleak.attacks import Gives, Need, register
from labelleak.lab.datasets import Dataset

@register("own-signs", title="Signs", needs=(Need.BIAS,), gives=(Gives.SET,), assumes="nothing",
          reference="a test")
def attack(observation, *, threshold=0.0):
    """Classes whose bias falls."""
    return Restoration(observation.gradient.bias < -threshold)

@register("own-broken", title="Broken", gives=(Gives.SET,), assumes="nothing", reference="a test")
def broken(observation):
    return {}["nothing"]

def shrink(gradients, factor, *, generator):
    """Scale, and leave the noise out."""
    return {name: factor * value for name, value in gradients.items()}

def forget(gradients):
    return {}

class Net(torch.nn.Module):
    def __init__(self, num_classes, image_shape, width=8):
        super().__init__()
        self.hidden = torch.nn.Linear(int(torch.tensor(image_shape).prod()), width)
        self.out = torch.nn.Linear(width, num_classes)

    def forward(self, x):
        return self.out(self.hidden(x.flatten(1)).relu())

def wrong_net(classes):
    return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.LazyLinear(classes + 1))

def numbers(split):
    """Vectors of floating-point numbers, the class in the first."""
    random = torch.Generator().manual_seed(len(split))
    labels = torch.arange(60) % 3
    return Dataset("numbers", torch.rand(60, 5, generator=random), labels, 3, None, (), ())

def no_data(split):
    return [1, 2]

def sharp(factor=2.0):
    """Cross-entropy of logits that are multiplied."""
    return Loss.custom(lambda logits, labels: functional.cross_entropy(factor * logits, labels))

def fragile():
    return Loss.custom(lambda logits, labels: {}["nothing"])

def sets():
    return Loss("bce")

def no_loss():
    return "bce"

own_number = 3
'''


@contextmanager
def written(folder, name="own_plugins_of_a_test", text=MODULE):
    """A module in an added folder; gives its name, and forgets it and its attacks."""
    path, attacks, folders = [*sys.path], dict(registry._ATTACKS), [*loading._folders]
    (folder / f"{name}.py").write_text(text)
    add_folder(folder)
    importlib.invalidate_caches()
    importlib.import_module(name)
    try:
        yield name
    finally:
        sys.modules.pop(name, None)
        sys.path[:], loading._folders[:] = path, folders
        registry._ATTACKS.clear()
        registry._ATTACKS.update(attacks)
