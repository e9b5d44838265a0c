from dataclasses import replace

import pytest
import torch
from torch import nn

from labelleak.attacks import restore
from labelleak.attacks.cost import Budget, check_decomposition, check_time
from labelleak.errors import MissingKnowledge
from labelleak.observation import Head, HeadGradient, Observation
from labelleak.training import LocalTraining
from synthetic import one_embedding, untrained

SMALL = untrained(20, 40, 6)


def test_dummies_go_through_small_models_only():
    seen = replace(SMALL.observe(), model=SMALL.model(), input_shape=(40,))
    assert Budget(seen, 10.0).allows_calibrated
    # 800 multiplications for each of 6,000 inputs, at 1e10 a second.
    assert Budget(seen, 1.01 * 800 * 6000 / 1e10).allows_calibrated
    assert not Budget(seen, 0.99 * 800 * 6000 / 1e10).allows_calibrated
    assert not Budget(SMALL.observe(), 10.0).allows_calibrated
    assert not Budget(replace(seen, input_shape=(41,)), 10.0).allows_calibrated


def test_auxiliary_inputs_take_the_place_of_dummies():
    seen = replace(
        SMALL.observe(), model=SMALL.model(), input_shape=(40,), auxiliary=SMALL.auxiliary(3)
    )
    assert Budget(seen, 1.01 * 800 * 60 / 1e10).allows_calibrated
    assert not Budget(seen, 0.99 * 800 * 60 / 1e10).allows_calibrated


def test_a_convolution_multiplies_in_every_place():
    model = nn.Sequential(nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(16, 3))
    head = Head(model[3].weight, model[3].bias, "3")
    seen = replace(one_embedding(3, 16, 4).observe(), head=head, model=model.train())
    work = 4 * 2 * 9 * 4 + 16 * 3
    known = replace(seen, input_shape=(2, 4, 4))
    assert Budget(known, 1.01 * work * 6000 / 1e10).allows_calibrated
    assert not Budget(known, 0.99 * work * 6000 / 1e10).allows_calibrated
    # Without the shape of an input nobody can tell.
    assert not Budget(seen, 1e9).allows_calibrated
    assert all(module.training for module in model.modules())
    assert int(model[1].num_batches_tracked) == 0


def test_equations_between_all_classes_are_left_out_where_they_take_too_long():
    seen = untrained(300, 8, 4).observe()
    assert Budget(seen, 1.01 * 300**3 / 1e10).allows_equations
    assert not Budget(seen, 0.99 * 300**3 / 1e10).allows_equations


def test_large_heads_are_neither_decomposed_nor_squared():
    many = one_embedding(17_000, 4, 24).observe()
    assert not Budget(many, 1e9).has_room
    assert not Budget(many, 1e9).allows_equations
    assert Budget(many, 1e9).allows_search
    assert not Budget(untrained(2000, 1500, 2).observe(), 1e9).allows_search


@pytest.mark.parametrize("attack", ["ilrg", "rlg", "calibrated"])
def test_more_classes_than_fit_into_memory_are_refused_with_the_reason(attack):
    model = nn.Sequential(nn.Linear(1, 1), nn.Linear(1, 16_385))
    gradient = torch.zeros(16_385, 1)
    gradient[:2, 0] = torch.tensor([1.0, -1.0])
    seen = Observation(
        Head(model[1].weight, model[1].bias),
        HeadGradient(gradient, gradient[:, 0]),
        training=LocalTraining(batch_size=1),
        model=model,
    )
    with pytest.raises(MissingKnowledge, match=r"16385 of them take 2 GB.*use 'pooled'"):
        restore(seen, attack)


def test_equations_that_would_outlast_the_limit_are_refused_beforehand():
    classes = 6000
    ones = torch.ones(classes)
    seen = Observation(Head(ones[:, None], ones), HeadGradient(ones[:, None], ones))
    with pytest.raises(MissingKnowledge, match="6000 of them take about 7 s"):
        restore(seen, "ilrg", time_limit=2.0)
    check_time(seen, "ilrg", 10.0)


@pytest.mark.parametrize("attack", ["pooled", "damped"])
def test_more_classes_than_can_be_pooled_in_time_are_refused_where_a_limit_is_told(attack):
    seen = one_embedding(3000, 2, 4).observe()
    with pytest.raises(MissingKnowledge, match=r"3000 of them take about 0.0 s.*use 'llbg'"):
        restore(seen, attack, time_limit=0.009)
    assert Budget(seen, 0.016).allows_pooling
    assert restore(seen, attack, time_limit=0.011).counts is not None
    # Without a bias gradient it has to be restored first.
    without = replace(seen, gradient=HeadGradient(seen.gradient.weight, None))
    assert not Budget(without, 0.029).allows_pooling
    assert Budget(without, 0.031).allows_pooling


def test_decompositions_that_would_outlast_the_limit_are_refused_beforehand():
    ones = torch.ones(4000, 900)
    seen = Observation(Head(ones, None), HeadGradient(ones, None))
    with pytest.raises(MissingKnowledge, match=r"4000 classes and 900 features.*about 2 s"):
        restore(seen, "rlg", time_limit=1.0)
    check_decomposition(seen, "rlg", 2.0)
    # Its complement has as many columns as there are classes.
    half = Observation(Head(ones[:1000], None), HeadGradient(ones[:1000], None))
    with pytest.raises(MissingKnowledge, match="1000 classes"):
        check_decomposition(half, "rlg", 0.9)
