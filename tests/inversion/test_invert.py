import math

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

import labelleak
from labelleak.errors import InvalidObservation, LabelLeakError, MissingKnowledge
from labelleak.inversion import DLG, IG, Analytic, assess, invert, match, methods
from labelleak.inversion import task as task_module
from labelleak.inversion.derivatives import SecondDerivatives
from labelleak.inversion.methods import search
from labelleak.inversion.objective import squared_distance
from labelleak.inversion.task import Task
from labelleak.lab.datasets import load
from labelleak.lab.networks import build

SHAPE = (1, 28, 28)


@pytest.fixture(scope="module")
def digits():
    return load("mnist-sample")


def observed(model, inputs, labels, **knowledge):
    loss = nn.functional.cross_entropy(model.eval()(inputs), labels)
    gradients = torch.autograd.grad(loss, list(model.parameters()))
    return labelleak.observe(model, gradients, batch_size=len(labels), **knowledge)


def of_two_classes(digits):
    """Three digits of two classes: a set of classes does not tell how many of each."""
    return [*(digits.labels == 3).nonzero()[:2, 0].tolist(), int((digits.labels == 5).nonzero()[0])]


class Client:
    """A batch of real digits, and what the server sees of it."""

    def __init__(self, digits, indices, network="fcn-2", **options):
        self.indices = torch.tensor(indices)
        self.inputs, self.labels = digits.batch(self.indices)
        self.truth = digits.images[self.indices] / 255
        self.model = build(network, classes=10, image_shape=SHAPE, seed=13, **options)
        self.seen = observed(self.model, self.inputs, self.labels)
        self.normalisation = {"mean": digits.mean, "std": digits.std}

    def invert(self, method, **options):
        return invert(self.seen, method, image_shape=SHAPE, **self.normalisation, **options)

    def psnr(self, found):
        return assess(found.images[match(found.images, self.truth)], self.truth).mean("psnr")


@pytest.mark.parametrize("index", [0, 7])
def test_the_analytic_method_reads_a_single_digit_off_the_first_layer(digits, index):
    client = Client(digits, [index], "fcn-3")
    found = client.invert(Analytic())
    assert client.psnr(found) > 60
    assert (found.method, found.mode, found.labels, found.distance) == (
        "analytic",
        None,
        None,
        None,
    )


def test_the_analytic_method_gives_means_of_several_digits(digits):
    client = Client(digits, [0, 1, 2])
    found = client.invert(Analytic())
    assert found.images.shape == client.truth.shape
    gradient = client.seen.gradients
    weight, bias = gradient["hidden.0.weight"].double(), gradient["hidden.0.bias"].double()
    strongest = int(bias.abs().argmax())
    mean, std = digits.mean[0], digits.std[0]
    expected = (weight[strongest] / bias[strongest] * std + mean).clamp(0, 1)
    torch.testing.assert_close(found.images[0].flatten().double(), expected, atol=1e-5, rtol=1e-4)


def test_ig_finds_a_digit_by_its_restored_label(digits):
    client = Client(digits, [4])
    found = client.invert(IG(iterations=120))
    assert found.labels.tolist() == client.labels.tolist()
    assert found.restoration.attack == "exact"
    assert client.psnr(found) > 25
    assert found.distance < 0.01
    assert (found.iterations, found.interrupted) == (120, False)


def test_dlg_finds_a_digit_and_its_label(digits):
    client = Client(digits, [4], activation="swish")
    found = client.invert(DLG(iterations=30), mode="free")
    assert found.labels.tolist() == client.labels.tolist()
    assert client.psnr(found) > 40
    assert found.iterations < 30  # nothing more to be had


def test_restored_and_given_labels_give_the_very_same_images(digits):
    client = Client(digits, [4, 9, 2, 0])
    restored = client.invert(IG(iterations=10))
    shuffled = client.labels[[2, 0, 3, 1]]
    given = client.invert(IG(iterations=10), mode="given", labels=shuffled)
    assert restored.labels.tolist() == given.labels.tolist() == sorted(client.labels.tolist())
    assert torch.equal(restored.images, given.images)
    assert given.restoration is None


def test_free_labels_are_one_for_each_image_and_shared_ones_one_for_all(digits):
    client = Client(digits, [4, 9, 2])
    assert client.invert(IG(iterations=2), mode="free").labels.shape == (3,)
    assert client.invert(IG(iterations=2), mode="shared").labels is None
    task = Task(client.seen, SHAPE, **client.normalisation)
    for rows in (3, 1):
        few, more = (search(IG(iterations=n), task, None, rows, seed=0) for n in (1, 60))
        assert few.logits.shape == more.logits.shape == (rows, 10)
        assert not torch.equal(few.logits, more.logits)
        assert more.distances[0] < few.distances[0]


def test_images_are_pixels_and_start_from_the_seed(digits):
    client = Client(digits, [4, 9])
    first = client.invert(IG(iterations=2), seed=5).images
    assert torch.equal(first, client.invert(IG(iterations=2), seed=5).images)
    assert not torch.equal(first, client.invert(IG(iterations=2), seed=6).images)
    assert 0 <= float(first.min()) <= float(first.max()) <= 1


def test_the_restart_of_least_distance_is_taken(digits):
    client = Client(digits, [4, 9, 1, 2])
    found = client.invert(IG(iterations=5, restarts=3), seed=2)
    assert len(found.distances) == 3
    assert found.distance == min(found.distances)
    alone = [client.invert(IG(iterations=5), seed=2 + restart) for restart in range(3)]
    assert list(found.distances) == [one.distance for one in alone]
    best = found.distances.index(found.distance)
    assert torch.equal(found.images, alone[best].images)


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


def test_double_precision_on_request(digits):
    client = Client(digits, [4])
    found = client.invert(IG(iterations=2), dtype=torch.float64)
    assert found.images.dtype == torch.float64
    assert next(client.model.parameters()).dtype == torch.float32


def test_an_interruption_keeps_the_best_so_far(digits):
    client = Client(digits, [4, 9])

    def interrupt(restart, iteration, distance):
        assert math.isfinite(distance)
        if (restart, iteration) == (2, 25):
            raise KeyboardInterrupt

    found = client.invert(IG(iterations=60, restarts=3), progress=interrupt)
    assert (found.interrupted, found.iterations, len(found.distances)) == (True, 85, 2)
    whole = client.invert(IG(iterations=60))
    assert torch.equal(found.images, whole.images)  # the finished one is better


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


def test_progress_tells_restart_iteration_and_distance(digits):
    told = []
    client = Client(digits, [4])
    client.invert(IG(iterations=50, restarts=2), progress=lambda *what: told.append(what))
    # More often where an iteration takes long.
    assert {what[:2] for what in told} >= {(r, i) for r in (1, 2) for i in (1, 25, 50)}
    assert {what[:2]: what[2] for what in told}[1, 50] < told[0][2]


def test_a_slow_search_tells_every_iteration(digits, monkeypatch):
    monkeypatch.setattr(methods, "_TELL_AFTER", 0.0)
    told = []
    client = Client(digits, [4])
    client.invert(IG(iterations=4), progress=lambda *what: told.append(what))
    assert [what[:2] for what in told] == [(1, 1), (1, 2), (1, 3), (1, 4)]


def test_the_loss_is_the_clients(digits):
    inputs, labels = digits.batch(torch.tensor([0, 1, 2, 3]))
    model = build("fcn-2", classes=10, image_shape=SHAPE, seed=1).eval()
    weights = torch.linspace(0.5, 2, 10)
    loss = nn.functional.cross_entropy(
        model(inputs), labels, weights, reduction="sum", label_smoothing=0.1
    )
    gradients = torch.autograd.grad(loss, list(model.parameters()))
    told = labelleak.Loss(reduction="sum", label_smoothing=0.1, class_weights=weights)
    seen = labelleak.observe(model, gradients, batch_size=4, loss=told)
    task = Task(seen, SHAPE)
    negatives = task.negatives(normalise=False)
    images = inputs.clone().requires_grad_()
    assert task.distance(images, labels, squared_distance, negatives) == 0.0
    plain = Task(labelleak.observe(model, gradients, batch_size=4), SHAPE)
    assert plain.distance(images, labels, squared_distance, negatives) > 1e-3


def test_the_callers_network_is_left_alone(digits):
    client = Client(digits, [4])
    client.model.train()
    before = {name: value.clone() for name, value in client.model.state_dict().items()}
    client.invert(IG(iterations=3))
    assert client.model.training
    assert all(p.grad is None for p in client.model.parameters())
    for name, value in client.model.state_dict().items():
        assert torch.equal(value, before[name])


# What cannot be inverted


def refused(client, **changes):
    options = {"image_shape": SHAPE, **client.normalisation, **changes}
    return invert(client.seen, IG(iterations=1), **options)


def test_needs_that_are_missing_are_named(digits):
    client = Client(digits, [4])
    head = labelleak.capture(client.model, client.inputs, client.labels)
    with pytest.raises(MissingKnowledge, match="the gradient of every parameter"):
        invert(head, image_shape=SHAPE)
    gradients = dict(client.seen.gradients)
    nameless = labelleak.observe(client.model.state_dict(), gradients)
    with pytest.raises(MissingKnowledge, match=r"the model .*; the batch size"):
        invert(nameless, image_shape=SHAPE)
    several = labelleak.observe(
        client.model, gradients, training=labelleak.LocalTraining(batch_size=1, steps=2)
    )
    with pytest.raises(InvalidObservation, match=r"2 local steps.*FedSGD"):
        invert(several, image_shape=SHAPE)


def test_a_gradient_of_another_network_is_refused(digits):
    client = Client(digits, [4])
    other = build("fcn-3", classes=10, image_shape=SHAPE)
    seen = labelleak.observe(other, dict(client.seen.gradients), batch_size=1)
    with pytest.raises(
        InvalidObservation, match=r"not of this network: it has no hidden\.2\.weight"
    ):
        invert(seen, image_shape=SHAPE)
    gradients = {**client.seen.gradients, "hidden.0.bias": torch.ones(7)}
    seen = labelleak.observe(client.model, gradients, batch_size=1)
    with pytest.raises(InvalidObservation, match=r"hidden\.0\.bias is 7 in the gradient, and 300"):
        invert(seen, image_shape=SHAPE)
    gradients = {**client.seen.gradients, "more": torch.ones(7)}
    seen = labelleak.observe(client.model, gradients, batch_size=1)
    with pytest.raises(InvalidObservation, match="the network has no more;"):
        invert(seen, image_shape=SHAPE)


@pytest.mark.parametrize("value", [math.nan, 0.0])
def test_a_broken_gradient_is_refused(digits, value):
    client = Client(digits, [4])
    gradients = {n: torch.full_like(g, value) for n, g in client.seen.gradients.items()}
    if value == 0.0:
        seen = client.seen
        object.__setattr__(seen, "gradients", gradients)
    else:
        gradients |= {n: g for n, g in client.seen.gradients.items() if n.startswith("fc")}
        seen = labelleak.observe(client.model, gradients, batch_size=1)
    with pytest.raises(InvalidObservation, match=r"NaN or infinite|zero everywhere"):
        invert(seen, image_shape=SHAPE)


@pytest.mark.parametrize("shape", [(3, 28, 28), (1, 8, 8)])
def test_images_of_another_shape_are_refused(digits, shape):
    client = Client(digits, [4])
    with pytest.raises(InvalidObservation, match="does not take images") as caught:
        invert(client.seen, image_shape=shape)
    assert "\n" not in str(caught.value)


class Odd(nn.Module):
    """A network with something in its way."""

    def __init__(self, how):
        super().__init__()
        self.how = how
        self.first, self.fc = nn.Linear(784, 12), nn.Linear(12, 10)

    def forward(self, images):
        hidden = torch.sigmoid(self.first(images.flatten(1)))
        if self.how == "detach":
            hidden = hidden.detach()
        elif self.how == "argmax":
            hidden = nn.functional.one_hot(hidden.argmax(1), 12).float()
        elif self.how == "in place":
            hidden.clamp_(0.2, 0.8)
        return self.fc(hidden)


@pytest.mark.parametrize("how", ["detach", "argmax", "in place"])
def test_a_network_without_a_way_back_is_refused_in_one_line(digits, how):
    model = Odd("no").eval()
    inputs, labels = digits.batch(torch.tensor([1, 2]))
    seen = observed(model, inputs, labels)
    model.how = how
    with pytest.raises(InvalidObservation, match="not differentiable") as caught:
        invert(seen, image_shape=SHAPE)
    assert "\n" not in str(caught.value)


class Around(nn.Module):
    """A network that is called in a way of its own."""

    def __init__(self, network, how):
        super().__init__()
        self.network, self.how = network, how
        self.attention = nn.MultiheadAttention(10, 2, batch_first=True)
        self.fc = nn.Linear(10, 10)

    def forward(self, images):
        if self.how == "checkpoint":
            logits = checkpoint(self.network, images, use_reentrant=False)
        else:
            logits = self.network(images)
        words = logits[:, None]
        words = torch.cat([words, words.tanh()], dim=1)
        return self.fc(self.attention(words, words, words, need_weights=False)[0].sum(dim=1))


@pytest.mark.parametrize("how", ["checkpoint", "attention"])
def test_networks_with_attention_and_checkpoints_are_inverted_all_the_same(digits, how):
    torch.manual_seed(0)
    lenet = build("lenet5", classes=10, image_shape=SHAPE, batchnorm=True, activation="swish")
    model = Around(lenet, how)
    inputs, labels = digits.batch(torch.tensor([4]))
    seen = observed(model, inputs, labels, head="fc")
    found = invert(seen, IG(iterations=3), image_shape=SHAPE, mode="given", labels=labels)
    again = invert(seen, IG(iterations=6), image_shape=SHAPE, mode="given", labels=labels)
    assert again.distance < found.distance


def test_fast_derivatives_that_are_wrong_are_not_taken(digits, monkeypatch):
    class Wrong(SecondDerivatives):
        def __torch_function__(self, func, types, args=(), kwargs=None):
            result = func(*args, **(kwargs or {}))
            return result * 1.1 if func is nn.functional.conv2d else result

    client = Client(digits, [4], "lenet5", activation="swish")
    right = client.invert(IG(iterations=2))
    monkeypatch.setattr(task_module, "SecondDerivatives", Wrong)
    torch.testing.assert_close(client.invert(IG(iterations=2)).images, right.images)


@pytest.mark.filterwarnings("ignore:.*weight_norm:FutureWarning")
def test_a_network_that_cannot_be_copied_is_one_line(digits):
    model = nn.Sequential(
        nn.Flatten(), nn.utils.weight_norm(nn.Linear(784, 12)), nn.ReLU(), nn.Linear(12, 10)
    )
    seen = observed(model, *digits.batch(torch.tensor([4])))
    with pytest.raises(InvalidObservation, match="cannot be copied") as caught:
        invert(seen, image_shape=SHAPE)
    assert "\n" not in str(caught.value)


def test_a_network_with_nan_is_refused(digits):
    client = Client(digits, [4])
    nn.init.constant_(client.model.hidden[0].weight, math.nan)
    with pytest.raises(InvalidObservation, match="are its weights finite"):
        refused(client)


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
    with pytest.raises(MissingKnowledge, match="'idlg' restores no counts"):
        refused(Client(digits, of_two_classes(digits)), attack="idlg")


@pytest.mark.parametrize(
    "settings",
    [
        {"iterations": 0},
        {"restarts": 0},
        {"learning_rate": -1.0},
        {"learning_rate": math.inf},
        {"total_variation": -1.0},
    ],
)
def test_impossible_settings_are_refused(settings):
    with pytest.raises(ValueError, match=next(iter(settings))):
        IG(**settings)


def test_a_search_that_leads_nowhere_says_so(digits):
    client = Client(digits, [4], activation="swish")
    with pytest.raises(LabelLeakError, match="NaN or infinite in every restart"):
        client.invert(IG(iterations=3, learning_rate=1e38), mode="free")


def test_the_analytic_method_needs_a_fully_connected_first_layer(digits):
    client = Client(digits, [4], "lenet5")
    with pytest.raises(InvalidObservation, match="first layer is fully connected"):
        client.invert(Analytic())
