import math

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

import labelleak
from inverting import SHAPE, Client, observed
from labelleak.errors import InvalidObservation, MissingKnowledge
from labelleak.inversion import IG, invert
from labelleak.inversion import task as task_module
from labelleak.inversion.derivatives import SecondDerivatives
from labelleak.inversion.objective import squared_distance
from labelleak.inversion.task import Task
from labelleak.lab.networks import build


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
    negatives = task.negatives(normalize=False)
    images = inputs.clone().requires_grad_()
    # Rounding alone: single precision has seven digits, and the distance is a square.
    whole = sum(float(gradient.square().sum()) for gradient in gradients)
    assert task.distance(images, labels, squared_distance, negatives) < 1e-10 * whole
    plain = Task(labelleak.observe(model, gradients, batch_size=4), SHAPE)
    assert plain.distance(images, labels, squared_distance, negatives) > 1e-3 * whole


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
    # In double precision both ways give the same signs, which is what IG steps by.
    right = client.invert(IG(iterations=2), dtype=torch.float64)
    monkeypatch.setattr(task_module, "SecondDerivatives", Wrong)
    found = client.invert(IG(iterations=2), dtype=torch.float64)
    torch.testing.assert_close(found.images, right.images)


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
        client.invert(IG(iterations=1))
