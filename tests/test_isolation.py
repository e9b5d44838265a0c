import pytest
import torch
from torch import nn

from labelleak.isolation import isolated


@pytest.fixture
def model():
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Dropout(0.5), nn.BatchNorm1d(4))
    model[3].eval()
    return model


def state(model):
    return {name: value.clone() for name, value in model.state_dict().items()}


def test_buffers_and_modes_are_as_before(model):
    before, buffer = state(model), model[1].running_mean
    with isolated(model):
        model.train()
        model(torch.ones(8, 3))
        assert int(model[1].num_batches_tracked) == 1
        model.eval()
    assert [module.training for module in model] == [True, True, True, False]
    assert model.training
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert model[1].running_mean is buffer


def test_they_are_so_after_an_error_too(model):
    def fail():
        model(torch.ones(8, 3))
        model.eval()
        raise ZeroDivisionError

    before = state(model)
    with pytest.raises(ZeroDivisionError), isolated(model):
        fail()
    assert model.training
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_there_are_no_gradients_inside_unless_asked_for(model):
    with isolated(model):
        assert not model(torch.ones(8, 3)).requires_grad
        with torch.enable_grad():
            assert model(torch.ones(8, 3)).requires_grad
    assert torch.is_grad_enabled()


def test_a_buffer_that_modules_share_stays_shared_and_none_stays_none(model):
    model[3].running_mean = model[1].running_mean
    model[3].running_var = None
    with isolated(model):
        assert model[3].running_mean is model[1].running_mean
        assert model[3].running_var is None
    assert model[3].running_mean is model[1].running_mean


def test_random_numbers_are_the_caller_s(model):
    torch.manual_seed(0)
    with isolated(model):
        inside = torch.rand(3)
    torch.manual_seed(0)
    assert torch.equal(inside, torch.rand(3))
    assert not torch.equal(inside, torch.rand(3))
