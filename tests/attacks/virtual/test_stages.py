"""Where virtual clients are drawn."""

import numpy as np
import pytest
import torch

from labelleak.attacks.virtual.stages import concentration_about, tens


@pytest.mark.parametrize(("classes", "most"), [(2, 400.0), (10, 400.0), (100, 4000.0)])
def test_many_classes_are_drawn_as_unevenly_as_ten(classes, most):
    even = np.full(classes, 1.0 / classes)
    errors = torch.full((classes,), 1e-6).double()
    assert concentration_about(even, errors) == pytest.approx(most)
    # A share's relative variance is (C - 1) / (concentration + 1).
    source = np.random.default_rng(0)
    drawn = source.dirichlet(np.full(classes, 4.0 * tens(classes) / classes), 4000)
    relative = float(np.var(drawn * classes))
    assert relative == pytest.approx((classes - 1) / (4.0 * tens(classes) + 1), rel=0.1)


def test_shares_scatter_somewhat_more_than_they_err():
    center, errors = np.full(10, 0.1), torch.full((10,), 0.05).double()
    concentration = concentration_about(center, errors)
    drawn = np.random.default_rng(1).dirichlet(concentration * center, 4000)
    assert 1.0 < float(np.var(drawn, axis=0).mean()) / 0.05**2 < 4.0
    assert concentration_about(center, errors, wider=True) < concentration
