import math

import pytest
import torch

from labelleak.errors import InvalidObservation, MissingKnowledge
from labelleak.training import LocalTraining


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("recipe", "message"),
    [
        ({"optimizer": "lion"}, "optimizer 'lion' cannot be read: use 'sgd' or 'adam' or"),
        ({"optimizer": "adam", "momentum": 0.9}, "momentum 0.9 of adam: only SGD and RMSprop"),
        ({"optimizer": "adam", "options": {"alpha": 0.9}}, "'adam' has no option 'alpha'"),
        ({"options": {"eps": 1e-8}}, "'sgd' has no option 'eps': there are these: none"),
        ({"nesterov": True}, "Nesterov's momentum needs SGD with a momentum above 0"),
        ({"batch_size": 0}, "batch size 0: it must be at least 1"),
        ({"batch_size": 2.5}, "batch size 2.5: it must be a whole number"),
        ({"steps": -1}, "local steps -1: it must be at least 1"),
        *(({"steps": steps}, "local steps .* a whole number") for steps in (2.5, "2", True)),
        ({"epochs": True}, "local epochs True: it must be a whole number"),
        ({"epochs": 2, "steps": 5}, "2 local epochs in 5 local steps"),
        *(
            ({"learning_rate": rate}, "learning rate .*: it must be positive and finite")
            for rate in (0.0, -0.1, math.nan, math.inf, "0.1", [0.1, -0.1], [0.1, None])
        ),
        ({"learning_rate": [0.1, 0.1], "steps": 3}, "2 learning rates for 3 local steps"),
        ({"learning_rate": []}, "0 learning rates for the local steps"),
        *(({"momentum": value}, "momentum") for value in (1.0, -0.1, math.nan, "0.9")),
        *(({"weight_decay": value}, "weight decay") for value in (-1.0, math.inf, None)),
        *(({"proximal": value}, "proximal term") for value in (-1.0, math.nan)),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(recipe, message):
    with pytest.raises(InvalidObservation, match=message) as refused:
        LocalTraining(**recipe)
    assert "\n" not in str(refused.value)


def test_one_rate_for_each_step_counts_the_steps():
    recipe = LocalTraining(learning_rate=[0.1, 0.2])
    assert recipe.learning_rate == recipe.step_sizes == (0.1, 0.2)
    assert recipe.resolved().steps == 2
    with pytest.raises(InvalidObservation, match="2 learning rates for 1 local steps"):
        LocalTraining(learning_rate=[0.1, 0.2], batch_size=8).resolved(8)


@pytest.mark.parametrize(
    ("recipe", "instances", "steps", "batch_size"),
    [
        # 64 samples in batches of 32, two epochs: all there is to say.
        ({"batch_size": 32, "epochs": 2}, 64, 4, 32),
        # 100 samples in batches of 32: 3 full ones and one of 4.
        ({"batch_size": 32}, 100, 4, 32),
        ({"batch_size": 32, "epochs": 2}, 100, 8, 32),
        # A batch larger than the data is all the data.
        ({"batch_size": 64, "epochs": 3}, 20, 3, 20),
        # The batch size follows from the rest.
        ({"steps": 5}, 100, 5, 20),
        ({"steps": 4}, 101, 4, 26),
        # drop_last: 3 of 4 batches.
        ({"batch_size": 32, "steps": 3}, 100, 3, 32),
        ({"batch_size": 8, "steps": 6, "epochs": 2}, None, 6, 8),
        ({"steps": 6}, None, 6, None),
    ],
)
def test_steps_and_batch_size_follow_from_the_number_of_samples(
    recipe, instances, steps, batch_size
):
    found = LocalTraining(**recipe).resolved(instances)
    assert (found.steps, found.batch_size) == (steps, batch_size)
    assert found.resolved(instances) == found


def test_the_number_of_steps_is_not_guessed():
    for recipe, instances in (({}, None), ({"batch_size": 32}, None), ({}, 100)):
        with pytest.raises(MissingKnowledge, match="the number of local steps is not known"):
            LocalTraining(**recipe).resolved(instances)
    assert LocalTraining(epochs=3).resolved(one_step=True).steps == 3


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("recipe", "instances"),
    [
        ({"batch_size": 32}, -3),
        ({"batch_size": 32}, 2.5),
        ({"batch_size": 32}, math.nan),
        ({"batch_size": 32}, 10**15),
        ({"batch_size": 32, "steps": 10**9}, 100),
    ],
)
def test_numbers_of_samples_that_cannot_be(recipe, instances):
    with pytest.raises(InvalidObservation):
        LocalTraining(**recipe).resolved(instances)


def test_momentum_carries_a_gradient_into_later_steps():
    """By hand: 0.1 + 0.5 * (0.2 + 0.5 * 0.4), 0.2 + 0.5 * 0.4, 0.4."""
    recipe = LocalTraining(learning_rate=[0.1, 0.2, 0.4], momentum=0.5)
    assert recipe.step_sizes == pytest.approx((0.3, 0.4, 0.4))
    assert recipe.reach == pytest.approx(1.1)
    assert LocalTraining(learning_rate=0.1, steps=3).step_sizes == pytest.approx((0.1, 0.1, 0.1))


def test_what_is_not_known_has_no_sizes():
    for recipe in ({"steps": 3}, {"learning_rate": 0.1}):
        unknown = LocalTraining(**recipe)
        assert (unknown.step_sizes, unknown.reach, unknown.mean_place) == (None, None, None)
    assert LocalTraining(steps=3).took_part is None


def test_the_mean_place_of_even_steps():
    """Steps start at 0, 1/4, 2/4 and 3/4 of the way; the place of a step is its beginning."""
    assert LocalTraining(learning_rate=0.1, steps=4).mean_place == pytest.approx(3 / 8)
    assert LocalTraining(learning_rate=0.1, steps=1).mean_place == 0.0


def test_what_nobody_told_is_not_known():
    recipe = LocalTraining(learning_rate=0.1, steps=3)
    assert (recipe.optimizer, recipe.momentum) == (None, None)
    # It is read as plain SGD.
    told = LocalTraining("sgd", learning_rate=0.1, steps=3, momentum=0.0)
    assert recipe.step_sizes == told.step_sizes
    assert recipe != told


def test_nesterov_momentum_moves_the_weights_one_step_further_at_once():
    """By hand: the change of a weight whose gradient is 1 in one step and 0 in all others."""
    recipe = LocalTraining(
        learning_rate=[0.1, 0.2, 0.05, 0.3], momentum=0.9, nesterov=True, steps=4
    )
    for place, size in enumerate(recipe.step_sizes):
        weight = torch.zeros(1, dtype=torch.float64, requires_grad=True)
        optimizer = torch.optim.SGD([weight], lr=1.0, momentum=0.9, nesterov=True)
        for step, rate in enumerate(recipe.learning_rate):
            optimizer.param_groups[0]["lr"] = rate
            weight.grad = torch.full_like(weight, float(step == place))
            optimizer.step()
        assert size == pytest.approx(-float(weight.detach()))


def test_an_adaptive_optimizer_is_not_sgd():
    assert LocalTraining().is_sgd
    assert LocalTraining("sgd").is_sgd
    assert not LocalTraining("adam", options={"betas": (0.9, 0.99)}).is_sgd
