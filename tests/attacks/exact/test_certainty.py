"""What makes a sample certain: it stands apart from the others, and is there whole times."""

import pytest
import torch
from exact_batches import DENSE, FLOAT, extended

from labelleak.attacks.exact.certainty import (
    agreed_divisor,
    couplings,
    has_whole_weight,
    stand_apart,
)
from labelleak.attacks.exact.head_factors import factorize
from synthetic import rng

FACTORS = factorize(DENSE.observe(), 8, rng())
POINTS = extended(DENSE) @ FACTORS.right
INSIDE = FACTORS.logit_gradients(POINTS, DENSE.labels) @ FACTORS.left / 8.0


def test_samples_of_one_batch_are_biorthogonal_within_the_errors():
    coupling, errors = couplings(FACTORS, POINTS, INSIDE)
    assert ((coupling - torch.eye(8, dtype=FLOAT)).abs() <= errors).all()
    assert stand_apart(FACTORS, POINTS, INSIDE).all()
    assert stand_apart(FACTORS, POINTS[:0], INSIDE[:0]).tolist() == []


def test_a_sample_found_twice_stands_apart_neither_time():
    twice = [0, 1, 2, 0]
    apart = stand_apart(FACTORS, POINTS[twice], INSIDE[twice])
    assert apart.tolist() == [False, True, True, False]


def test_a_mixture_of_two_samples_accuses_both():
    points = torch.cat([POINTS[:3], POINTS[:2].mean(dim=0, keepdim=True)])
    inside = torch.cat([INSIDE[:3], INSIDE[:2].sum(dim=0, keepdim=True)])
    assert stand_apart(FACTORS, points, inside).tolist() == [False, False, True, False]


def test_a_direction_that_is_all_error_stands_apart_from_nothing_and_accuses_none():
    """Its singular value is far below the client's rounding."""
    values = FACTORS.values.clone()
    values[-1] *= 1e-9
    blurred = type(FACTORS)(**{**vars_of(FACTORS), "values": values})
    eye = torch.eye(8, dtype=FLOAT)
    # Coordinates along the singular vectors, with the largest part along the weakest of them.
    points, inside = eye + eye[-1], eye * values
    apart = stand_apart(blurred, points[[0, 7]], inside[[0, 7]])
    assert not apart[1]


def vars_of(factors):
    return {name: getattr(factors, name) for name in factors.__dataclass_fields__}


@pytest.mark.parametrize(
    ("inverse", "whole"),
    [
        (8.0, True),
        (4.0, True),
        (8.6, True),
        (9.2, False),
        (5.7, False),
        (0.4, False),
        (80.0, False),
    ],
)
def test_a_certain_sample_is_there_a_whole_number_of_times(inverse, whole):
    weights = torch.tensor([inverse], dtype=FLOAT)
    assert has_whole_weight(weights, 8.0).tolist() == [whole]


def test_weights_agree_on_what_the_loss_divides_by_or_nothing_is_said():
    def agreed(*weights):
        return agreed_divisor(torch.tensor(weights, dtype=FLOAT))

    assert agreed(8.0, 8.0, 3.1) == 8.0
    # Half of the samples are there twice.
    assert agreed(4.0, 4.0, 4.0, 8.0, 8.0, 8.0) in (4.0, 8.0)
    assert agreed(1.41, 3.59, 78.7, 33467.0, 1.6e6) is None
    assert agreed() is None
