import math

import pytest
import torch

from inverting import Client
from labelleak.errors import LabelLeakError
from labelleak.inversion import DLG, IG
from labelleak.inversion.methods import search
from labelleak.inversion.task import Task

# In double precision rounding moves no pixel by more: the sign of a derivative, which is what IG
# steps by, changes only where the derivative is as small as rounding, 1e-16 of its usual size.
NEAR = {"dtype": torch.float64}
SAME = {"rtol": 0.0, "atol": 1e-6}


def test_ig_finds_a_digit_by_its_restored_label(digits):
    client = Client(digits, [4])
    found = client.invert(IG(iterations=120))
    assert found.labels.tolist() == client.labels.tolist()
    assert found.restoration.attack == "exact"
    assert client.psnr(found) > 25
    assert found.distance < 0.01
    assert (found.iterations, found.interrupted) == (120, False)


def test_dlg_finds_a_digit_and_its_label_and_ends_where_nothing_more_is_to_be_had(digits):
    client = Client(digits, [4], activation="swish")
    found = client.invert(DLG(iterations=200), mode="free")
    assert found.labels.tolist() == client.labels.tolist()
    assert client.psnr(found) > 40
    assert found.iterations < 200


def test_images_are_pixels_and_start_from_the_seed(digits):
    client = Client(digits, [4, 9])
    first = client.invert(IG(iterations=2), seed=5, **NEAR).images
    again = client.invert(IG(iterations=2), seed=5, **NEAR).images
    torch.testing.assert_close(first, again, **SAME)
    other = client.invert(IG(iterations=2), seed=6, **NEAR).images
    assert float((first - other).abs().mean()) > 0.1
    assert 0 <= float(first.min()) <= float(first.max()) <= 1


def test_the_restart_of_least_distance_is_taken(digits):
    client = Client(digits, [4, 9, 1, 2])
    found = client.invert(IG(iterations=5, restarts=3), seed=2, **NEAR)
    assert len(found.distances) == 3
    assert found.distance == min(found.distances)
    alone = [client.invert(IG(iterations=5), seed=2 + restart, **NEAR) for restart in range(3)]
    assert list(found.distances) == pytest.approx([one.distance for one in alone], rel=1e-6)
    best = found.distances.index(found.distance)
    torch.testing.assert_close(found.images, alone[best].images, **SAME)


def test_the_learning_rate_falls_thrice(digits):
    client = Client(digits, [4])
    steps = []

    class Adam(torch.optim.Adam):
        def step(self, closure=None):
            steps.append(self.param_groups[0]["lr"])
            return super().step(closure)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.optim, "Adam", Adam)
        client.invert(IG(iterations=16))
    assert steps == pytest.approx([0.1] * 6 + [0.01] * 4 + [0.001] * 4 + [0.0001] * 2)


def test_an_interruption_keeps_the_best_so_far(digits):
    client = Client(digits, [4, 9])

    def interrupt(restart, iteration, distance):
        assert math.isfinite(distance)
        if (restart, iteration) == (2, 25):
            raise KeyboardInterrupt

    found = client.invert(IG(iterations=60, restarts=3), progress=interrupt, **NEAR)
    assert (found.interrupted, found.iterations, len(found.distances)) == (True, 85, 2)
    # The restart that was finished is better.
    whole = client.invert(IG(iterations=60), **NEAR)
    torch.testing.assert_close(found.images, whole.images, **SAME)


@pytest.mark.parametrize("how", ["interrupted", "lost to NaN"])
def test_dlg_ends_at_the_best_that_its_line_search_tried(digits, monkeypatch, how):
    client = Client(digits, [4], activation="swish")
    step, seen = Task.step, []

    def ending(self, images, *rest):
        if len(seen) == 30:
            images.data.fill_(1e3 if how == "interrupted" else math.nan)
            if how == "interrupted":
                raise KeyboardInterrupt
        if len(seen) < 30:
            seen.append(float(step(self, images, *rest).distance))
        return step(self, images, *rest)

    monkeypatch.setattr(Task, "step", ending)
    found = client.invert(DLG(iterations=3))
    assert found.interrupted == (how == "interrupted")
    assert found.distance == pytest.approx(min(seen), rel=1e-5)


def told_by(client, method, clock):
    """What a search tells, with a clock of its own."""
    told = []
    search(method, client.task(), client.labels, 1, 0, lambda *what: told.append(what), clock=clock)
    return told


def test_progress_tells_restart_iteration_and_distance(digits):
    told = told_by(Client(digits, [4]), IG(iterations=60, restarts=2), lambda: 0.0)
    assert [what[:2] for what in told] == [(r, i) for r in (1, 2) for i in (1, 25, 50)]
    assert told[2][2] < told[0][2]


def test_a_slow_search_tells_every_iteration(digits):
    seconds = iter(range(1000))
    told = told_by(Client(digits, [4]), IG(iterations=4), lambda: float(next(seconds)))
    assert [what[:2] for what in told] == [(1, 1), (1, 2), (1, 3), (1, 4)]


@pytest.mark.parametrize(
    "settings",
    [
        {"iterations": 0},
        {"restarts": 0},
        {"learning_rate": -1.0},
        {"learning_rate": math.inf},
        {"total_variation": -1.0},
        {"total_variation": 1e308},
    ],
)
def test_impossible_settings_are_refused(settings):
    with pytest.raises(ValueError, match=next(iter(settings))):
        IG(**settings)


def test_a_search_that_leads_nowhere_says_so(digits):
    client = Client(digits, [4], activation="swish")
    with pytest.raises(LabelLeakError, match="NaN or infinite in every restart"):
        client.invert(IG(iterations=3, learning_rate=1e38), mode="free")
