import pytest
import torch
from torch import nn
from update_files import ENDINGS, save, tensors
from update_models import CLASSES


@pytest.fixture(params=ENDINGS, ids=["safetensors", "pt"])
def ending(request):
    return request.param


@pytest.fixture
def before(tmp_path):
    return save(tensors(0), tmp_path / "before.safetensors")


@pytest.fixture
def model():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return nn.Sequential(
            nn.Linear(6, 20), nn.BatchNorm1d(20), nn.ReLU(), nn.Linear(20, CLASSES)
        )
