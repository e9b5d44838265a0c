import pytest
import torch

from inverting import SHAPE, Client
from labelleak.errors import InvalidObservation, MissingKnowledge
from labelleak.inversion import DLG, IG, Analytic, invert
from labelleak.inversion.methods import search
from labelleak.inversion.reconstruction import make_method


def test_restored_and_given_labels_give_the_same_images(digits):
    client = Client(digits, [4, 9, 2, 0])
    double = {"dtype": torch.float64}
    restored = client.invert(IG(iterations=10), **double)
    shuffled = client.labels[[2, 0, 3, 1]]
    given = client.invert(IG(iterations=10), mode="given", labels=shuffled, **double)
    assert restored.labels.tolist() == given.labels.tolist() == sorted(client.labels.tolist())
    # Rounding in double precision flips no sign of a derivative, which is what IG steps by.
    torch.testing.assert_close(restored.images, given.images, rtol=0.0, atol=1e-6)
    assert given.restoration is None


def test_free_labels_are_one_for_each_image_and_shared_ones_one_for_all(digits):
    client = Client(digits, [4, 9, 2])
    assert client.invert(IG(iterations=2), mode="free").labels.shape == (3,)
    assert client.invert(IG(iterations=2), mode="shared").labels is None
    task = client.task()
    for rows in (3, 1):
        few, more = (search(IG(iterations=n), task, None, rows, seed=0) for n in (1, 60))
        assert few.logits.shape == more.logits.shape == (rows, 10)
        assert not torch.equal(few.logits, more.logits)
        assert more.distances[0] < few.distances[0]


def test_double_precision_on_request(digits):
    client = Client(digits, [4])
    found = client.invert(IG(iterations=2), dtype=torch.float64)
    assert found.images.dtype == torch.float64
    assert next(client.model.parameters()).dtype == torch.float32


def test_the_callers_network_is_left_alone(digits):
    client = Client(digits, [4])
    client.model.train()
    before = {name: value.clone() for name, value in client.model.state_dict().items()}
    client.invert(IG(iterations=3))
    assert client.model.training
    assert all(p.grad is None for p in client.model.parameters())
    for name, value in client.model.state_dict().items():
        assert torch.equal(value, before[name])


def refused(client, **changes):
    options = {"image_shape": SHAPE, **client.normalization, **changes}
    return invert(client.seen, IG(iterations=1), **options)


def test_numbers_that_do_not_fit_are_refused(digits):
    client = Client(digits, [4, 5])
    with pytest.raises(InvalidObservation, match="one number for each of 1 channels"):
        refused(client, mean=(0.1, 0.2, 0.3))
    with pytest.raises(InvalidObservation, match="must be positive"):
        refused(client, std=(0.0,))
    with pytest.raises(InvalidObservation, match="3 labels for a batch of 2"):
        refused(client, mode="given", labels=torch.tensor([1, 2, 3]))
    with pytest.raises(InvalidObservation, match="labels run from 1 to 10"):
        refused(client, mode="given", labels=torch.tensor([1, 10]))
    with pytest.raises(ValueError, match="belong to the mode 'given'"):
        refused(client, labels=torch.tensor([1, 2]))
    with pytest.raises(ValueError, match="belong to the mode 'given'"):
        refused(client, mode="given")


def test_labels_are_restored_by_an_attack_that_counts(digits):
    # Three digits of two classes: a set of classes does not tell how many of each.
    threes, fives = ((digits.labels == label).nonzero()[:, 0].tolist() for label in (3, 5))
    client = Client(digits, [*threes[:2], fives[0]])
    with pytest.raises(MissingKnowledge, match="'idlg' restores no counts"):
        client.invert(IG(iterations=1), attack="idlg")


def test_methods_have_names():
    assert make_method("ig", iterations=3, restarts=None) == IG(iterations=3)
    assert make_method("dlg", restarts=2) == DLG(restarts=2)
    assert make_method("analytic", iterations=None) == Analytic()


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("gd", {}, "method 'gd': choose one of ig, dlg, analytic"),
        ("dlg", {"learning_rate": 0.1}, "the method dlg has no learning_rate"),
        ("analytic", {"iterations": 3}, "the method analytic has no iterations"),
        ("ig", {"learning_rate": -1.0}, "learning_rate -1.0: it must be positive"),
    ],
)
def test_settings_that_a_method_cannot_have_are_refused(name, settings, message):
    with pytest.raises(ValueError, match=message):
        make_method(name, **settings)
