"""Where virtual clients are drawn."""

import numpy as np
import pytest
import torch

from labelleak.attacks.virtual.stages import Stages, concentration_about, tens


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


class Recorded(Stages):
    """Stages that have happened, with these errors and numbers of virtual clients."""

    draw = shown = add = known = left_of_stage = end_stage = None

    def __init__(self, trained, wrong, sizes):
        super().__init__()
        self.trained, self.wrong, self.sizes = trained, wrong, sizes


@pytest.mark.parametrize("known", [60, 600])
def test_stages_end_where_more_virtual_clients_are_in_vain(known):
    """Errors that fall with the root of the number go on, lent virtual clients or not."""
    sizes = [known, known + 16, known + 32]
    for power, ends in ((0.5, False), (0.25, False), (0.1, True), (0.0, True)):
        wrong = [0.1 * (size / known) ** -power for size in sizes]
        assert Recorded(80, wrong, sizes).has_settled == ends
        assert not Recorded(48, wrong, sizes).has_settled
        assert not Recorded(80, wrong[:2], sizes[:2]).has_settled
