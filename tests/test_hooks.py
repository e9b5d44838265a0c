import pytest
import torch
from torch import nn

from labelleak.hooks import hooked, recorded


class Scale(nn.Module):
    def forward(self, values, factor=1.0):
        return factor * values


def test_every_run_is_recorded_in_order():
    layer = Scale()
    with recorded(layer) as runs:
        layer(torch.ones(2), 3.0)
        layer(values=torch.zeros(1))
    assert [(run.entered.tolist(), run.left.tolist()) for run in runs] == [
        ([1.0, 1.0], [3.0, 3.0]),
        ([0.0], [0.0]),
    ]
    layer(torch.ones(2))
    assert len(runs) == 2


@pytest.mark.parametrize("by_name", [False, True])
def test_what_enters_and_what_leaves_can_be_replaced(by_name):
    layer = Scale()
    with hooked(
        layer,
        entering=lambda _, value: value + 1.0,
        leaving=lambda _, entered, left: 10.0 * left + entered,
    ):
        one = torch.ones(1)
        found = layer(values=one, factor=2.0) if by_name else layer(one, factor=2.0)
    # The first argument is 2, the layer makes 4 of it.
    assert found.tolist() == [42.0]


def test_a_function_without_a_result_changes_nothing():
    layer, seen = Scale(), []
    with hooked(
        layer,
        entering=lambda _, value: seen.append(value),
        leaving=lambda _, entered, left: seen.append(left),
    ):
        assert layer(torch.ones(1), 2.0).tolist() == [2.0]
    assert [value.tolist() for value in seen] == [[1.0], [2.0]]


def test_several_layers_say_which_of_them_runs():
    layers = [nn.Identity(), nn.Identity(), nn.Identity()]
    seen = []
    with hooked(layers[0], layers[2], entering=lambda layer, _: seen.append(layers.index(layer))):
        nn.Sequential(*layers)(torch.ones(1))
    assert seen == [0, 2]


def test_a_layer_that_takes_nothing_enters_none():
    class Constant(nn.Module):
        def forward(self):
            return 3

    with recorded(layer := Constant()) as runs:
        layer()
    assert runs == [(None, 3)]


def test_hooks_are_gone_whatever_happens():
    layer = Scale()
    with (
        pytest.raises(ZeroDivisionError),
        hooked(layer, entering=lambda *_: 1 / 0, leaving=lambda *_: None),
    ):
        layer(torch.ones(1))
    assert not layer._forward_hooks
    assert not layer._forward_pre_hooks
