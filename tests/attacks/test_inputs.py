from dataclasses import replace

import pytest
import torch
from torch import nn

from labelleak.attacks.inputs import auxiliary_of, dummies, guessed_shape, smooth_noise
from labelleak.errors import MissingKnowledge
from labelleak.lab.networks import build
from labelleak.observation import Auxiliary
from synthetic import rng, untrained

BATCH = untrained(4, 6, 8)


def test_dummies():
    observation = BATCH.observe(input_shape=(2, 3))
    noise = dummies(observation, "random", 4000)
    assert noise.shape == (4000, 2, 3)
    assert abs(float(noise.mean())) < 0.05
    assert abs(float(noise.std()) - 1) < 0.05
    assert torch.equal(noise, dummies(observation, "random", 4000))
    assert dummies(observation, "zeros", 9).eq(0).all()
    assert dummies(observation, "ones", 9).eq(1).all()


def test_the_shape_of_the_auxiliary_data_will_do():
    observation = BATCH.observe(auxiliary=BATCH.auxiliary())
    assert dummies(observation, "random", 5).shape == (5, 6)


def test_what_is_missing_is_named():
    with pytest.raises(MissingKnowledge, match="auxiliary data is missing"):
        auxiliary_of(BATCH.observe())
    with pytest.raises(MissingKnowledge, match="shape of one input"):
        dummies(BATCH.observe(), "random", 3)


def test_classes_that_are_absent():
    auxiliary = Auxiliary(torch.ones(2, 6), torch.tensor([1, 1]))
    observation = BATCH.observe(auxiliary=auxiliary)
    assert auxiliary_of(observation, every_class=False) is auxiliary
    with pytest.raises(MissingKnowledge, match=r"no sample of 3 classes \(0, 2, 3\)"):
        auxiliary_of(observation)


def test_shapes_are_guessed_where_they_can_be():
    lenet = build("lenet5", classes=4, image_shape=(3, 32, 32))
    assert guessed_shape(lenet, lenet.features[0][0], "calibrated") == (3, 32, 32)
    fcn = build("fcn-2", classes=4, image_shape=(1, 28, 28))
    assert guessed_shape(fcn, fcn.hidden[0], "calibrated") == (1, 28, 28)
    head = BATCH.model().fc
    assert guessed_shape(head, head, "calibrated") == (6,)
    odd = nn.Sequential(nn.Conv2d(1, 2, 3), nn.Flatten(), nn.Linear(7, 6))
    with pytest.raises(MissingKnowledge, match="shape of the model's inputs"):
        guessed_shape(odd, odd[0], "calibrated")


@pytest.mark.parametrize("shape", [(1, 28, 28), (3, 16, 20), (40,)])
def test_noise_has_mean_square_one_and_is_smooth(shape):
    rough, smooth = smooth_noise(shape, 200, (0.5, 2.0), rng(0))
    for fields in (rough, smooth):
        assert fields.shape == (200, *shape)
        assert float(fields.square().mean()) == pytest.approx(1.0, abs=0.05)
    if len(shape) == 3:
        steps = [float((f[..., 1:] - f[..., :-1]).square().mean()) for f in (rough, smooth)]
        assert steps[1] < 0.2 * steps[0]


def test_a_shape_of_the_observation_goes_first():
    observation = BATCH.observe(auxiliary=BATCH.auxiliary())
    assert dummies(replace(observation, input_shape=(6,)), "zeros", 1).shape == (2, 6)
