"""Models of other libraries; stand-ins for those that are not installed here."""

import importlib.metadata
import sys
from types import ModuleType, SimpleNamespace

import pytest
import torch
from torch import nn

from labelleak.errors import BrokenPlugin
from labelleak.lab.networks import build_plugin, network_plugin, other

IMAGES, TOKENS = torch.rand(2, 3, 8, 8), torch.tensor([[5, 6, 0], [7, 8, 9]])


def library(monkeypatch, name, **contents):
    """Put a module with these contents in the place of a library."""
    module = ModuleType(name)
    vars(module).update(contents)
    monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.setattr(other, "version", lambda package: "9.9")
    return module


def timm_model(name, num_classes, in_chans, img_size=8):
    assert name == "vit_tiny"
    return nn.Sequential(nn.Flatten(), nn.Linear(in_chans * img_size**2, num_classes))


def test_timm_is_told_the_classes_and_the_channels(monkeypatch):
    library(monkeypatch, "timm", create_model=timm_model, is_model="vit_tiny".__eq__)
    model = build_plugin("timm:vit_tiny", classes=4, example=IMAGES, seed=1)
    assert model(IMAGES).shape == (2, 4)
    same, another = (
        build_plugin("timm:vit_tiny", classes=4, example=IMAGES, seed=seed) for seed in (1, 2)
    )
    assert torch.equal(same[1].weight, model[1].weight)
    assert not torch.equal(another[1].weight, model[1].weight)
    plugin = network_plugin("timm:vit_tiny", {})
    assert (plugin.package, plugin.module) == ("timm 9.9", "timm")
    before = plugin.code
    monkeypatch.setattr(other, "version", lambda package: "9.10")
    assert network_plugin("timm:vit_tiny", {}).code != before
    with pytest.raises(BrokenPlugin, match=r"shape \(3, 8, 8\) cannot be used: RuntimeError: mat1"):
        build_plugin("timm:vit_tiny", classes=4, example=IMAGES, seed=1, img_size=9)
    with pytest.raises(BrokenPlugin, match=r"timm 9\.10 has no model 'vit_huge', as in timm:vit_t"):
        network_plugin("timm:vit_huge", {})


class Reader(nn.Module):
    """As a classifier of transformers: a configuration, and an output with logits."""

    config_class = SimpleNamespace

    def __init__(self, config):
        super().__init__()
        self.config = config
        self.words = nn.Embedding(10, config.hidden_size)
        self.classifier = nn.Linear(config.hidden_size, config.num_labels)

    def forward(self, input_ids, attention_mask):
        assert attention_mask.tolist() == [[1, 1, 0], [1, 1, 1]][: len(input_ids)]
        mean = (self.words(input_ids) * attention_mask[..., None]).mean(dim=1)
        return SimpleNamespace(logits=self.classifier(mean))


def test_transformers_get_tokens_with_a_mask(monkeypatch):
    library(monkeypatch, "transformers", Reader=Reader)
    model = build_plugin(
        "transformers:Reader", classes=3, example=TOKENS, seed=0, hidden_size=4, pad_token_id=0
    )
    assert model(TOKENS).shape == (2, 3)
    assert model.training
    with pytest.raises(BrokenPlugin, match="has no model 'Writer'"):
        network_plugin("transformers:Writer", {})


def test_torchvision_is_told_the_classes(monkeypatch):
    def get_model(name, num_classes):
        return nn.Sequential(nn.Flatten(), nn.Linear(192, num_classes))

    models = library(
        monkeypatch, "torchvision.models", get_model=get_model, list_models=lambda: ["resnet18"]
    )
    library(monkeypatch, "torchvision", models=models)
    model = build_plugin("torchvision:resnet18", classes=5, example=IMAGES, seed=0)
    assert model(IMAGES).shape == (2, 5)


@pytest.mark.parametrize("name", ["timm", "torchvision", "transformers"])
def test_a_library_that_is_not_installed_is_named(monkeypatch, name):
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(BrokenPlugin, match=f"network '{name}:x'.*{name}"):
        network_plugin(f"{name}:x", {})


def test_a_module_that_is_already_made_is_no_network(monkeypatch):
    library(monkeypatch, "own_made_network", net=nn.Linear(2, 2))
    with pytest.raises(BrokenPlugin, match="name a function or a class that makes the module"):
        network_plugin("own_made_network:net", {})


def test_versions_are_those_of_the_installed_packages():
    assert network_plugin("torch.nn:Linear", {"in_features": 1, "out_features": 1}).package == (
        f"torch {importlib.metadata.version('torch')}"
    )
