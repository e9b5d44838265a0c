"""Heads of many kinds: those that can be read, and those that are refused."""

from types import SimpleNamespace

import pytest
import torch
from forward_networks import CLASSES, Masked, Net, assert_same, batch, by_autograd, network
from torch import nn
from torch.nn import functional as F

from labelleak import capture
from labelleak.errors import AmbiguousHead, InvalidObservation
from labelleak.lab import networks


@pytest.mark.parametrize(
    "wrap",
    [
        lambda logits: logits,
        lambda logits: {"loss": None, "logits": logits},
        lambda logits: SimpleNamespace(loss=None, logits=logits),
        lambda logits: (logits, "more"),
        lambda logits: [logits],
    ],
    ids=["tensor", "dict", "object", "tuple", "list"],
)
def test_inputs_and_outputs_as_of_transformers(wrap):
    model = network(Masked, wrap=wrap)
    generator = torch.Generator().manual_seed(0)
    inputs = {
        "input_ids": torch.randint(50, (70, 9), generator=generator),
        "attention_mask": torch.randint(1, 3, (70, 9), generator=generator).float(),
    }
    labels = torch.randint(CLASSES, (70,), generator=generator)
    gradient = capture(model, inputs, labels).gradient
    model.wrap = lambda logits: logits
    loss = nn.CrossEntropyLoss()(model(**inputs), labels)
    expected = torch.autograd.grad(loss, list(model.classifier.parameters()))
    assert_same(gradient, expected)


def with_output(change, *, keyword=False):
    class Changed(Net):
        def forward(self, images):
            embeddings = self.embed(images)
            return change(self.fc(input=embeddings) if keyword else self.fc(embeddings))

    return network(Changed)


def test_a_log_softmax_after_the_head():
    model, (images, labels) = with_output(lambda logits: F.log_softmax(logits, dim=1)), batch(9)
    gradient = capture(model, images, labels).gradient
    loss = F.nll_loss(model(images), labels)
    assert_same(gradient, torch.autograd.grad(loss, list(model.fc.parameters())))


def test_a_head_that_is_called_by_keyword():
    model, (images, labels) = with_output(lambda logits: logits, keyword=True), batch(9)
    assert_same(capture(model, images, labels).gradient, by_autograd(model, images, labels))


@pytest.mark.parametrize(
    "change",
    [
        lambda logits: logits.softmax(dim=1),
        lambda logits: 2.0 * logits,
        lambda logits: logits[:, :-1],
        lambda logits: logits.mean(),
        lambda logits: logits.relu(),
        lambda _: None,
        lambda _: (),
        lambda _: {"scores": 1},
        lambda logits: {"logits": logits + 1.0},
        lambda logits: logits.log_softmax(dim=0),
    ],
)
def test_an_output_that_is_not_the_heads(change):
    images, labels = batch(9)
    with pytest.raises(InvalidObservation, match="output is not what layer 'fc' puts out"):
        capture(with_output(change), images, labels)


def test_a_hidden_layer_is_no_head():
    model = networks.build("fcn-3", classes=10, image_shape=(1, 4, 4))
    with pytest.raises(InvalidObservation, match=r"output is not what layer 'hidden\.2' puts out"):
        capture(model, torch.rand(3, 1, 4, 4), torch.arange(3), head="hidden.2")


def test_no_such_head():
    with pytest.raises(AmbiguousHead, match="'top' is not among the tensors"):
        capture(network(), *batch(3), head="top")


def test_a_model_without_parameters():
    with pytest.raises(AmbiguousHead, match="among 0 tensors"):
        capture(nn.Flatten(), *batch(3))


@pytest.mark.parametrize("calls", [0, 2])
def test_a_head_that_runs_never_or_twice(calls):
    class Repeated(Net):
        def forward(self, images):
            embeddings = self.embed(images)
            if not calls:
                return F.linear(embeddings, self.fc.weight, self.fc.bias)
            return sum(self.fc(embeddings) for _ in range(calls)) / calls

    with pytest.raises(InvalidObservation, match=f"ran {calls} times"):
        capture(network(Repeated), *batch(9))


def test_logits_of_a_sequence():
    class Sequence(nn.Module):
        def __init__(self):
            super().__init__()
            self.embeddings = nn.Embedding(50, 12)
            self.score = nn.Linear(12, CLASSES, bias=False)

        def forward(self, tokens):
            return self.score(self.embeddings(tokens))

    tokens, labels = torch.arange(10).reshape(5, 2), torch.arange(5)
    with pytest.raises(InvalidObservation, match="one embedding per sample"):
        capture(Sequence(), tokens, labels)


class Tied(nn.Module):
    """Like language models, whose decoder is their table of embeddings."""

    def __init__(self, *, table_first):
        super().__init__()
        for name in ("table", "decoder") if table_first else ("decoder", "table"):
            layer = nn.Embedding(CLASSES, 12) if name == "table" else nn.Linear(12, CLASSES)
            self.add_module(name, layer)
        self.decoder.weight = self.table.weight

    def forward(self, tokens):
        return self.decoder(self.table(tokens).mean(dim=1))


@pytest.mark.parametrize("table_first", [True, False])
def test_a_head_that_shares_its_weight(table_first):
    tokens, labels = torch.arange(6).reshape(3, 2), torch.arange(3)
    model = Tied(table_first=table_first)
    with pytest.raises((InvalidObservation, AmbiguousHead), match=r"'table'|among the tensors"):
        capture(model, tokens, labels, head="decoder")
    if not table_first:
        with pytest.raises(InvalidObservation, match="'decoder' shares its weight with 'table'"):
            capture(model, tokens, labels)


def test_a_head_that_is_frozen():
    """A model loaded for inference has the gradient that a client would compute."""
    model, (images, labels) = network(), batch(9)
    expected = by_autograd(model, images, labels)
    assert_same(capture(model.requires_grad_(False), images, labels).gradient, expected)


def test_a_head_with_an_argument_of_another_name():
    class Other(nn.Linear):
        def forward(self, features):
            return super().forward(features)

    class Keyword(Net):
        def __init__(self):
            super().__init__()
            self.fc = Other(4 * 4 * 4, CLASSES)

        def forward(self, images):
            return self.fc(features=self.embed(images))

    model, (images, labels) = network(Keyword), batch(9)
    assert_same(capture(model, images, labels).gradient, by_autograd(model, images, labels))


def test_a_head_that_is_not_linear():
    class Cosine(nn.Linear):
        def forward(self, input):
            return F.linear(F.normalize(input), F.normalize(self.weight))

    model = network()
    model.fc = Cosine(4 * 4 * 4, CLASSES, bias=False)
    with pytest.raises(InvalidObservation, match=r"does more than weight @ embedding \+ bias"):
        capture(model, *batch(9))


def test_a_hook_that_changes_the_logits():
    model = network()
    model.fc.register_forward_hook(lambda _module, _inputs, output: 3.0 * output)
    with pytest.raises(InvalidObservation, match=r"does more than weight @ embedding \+ bias"):
        capture(model, *batch(9))


def test_a_wrapped_model():
    model, (images, labels) = network(), batch(9)
    observation = capture(nn.DataParallel(model), images, labels)
    assert observation.head.name == "fc"
    assert observation.model is model
    assert_same(observation.gradient, by_autograd(model, images, labels))


def test_a_single_layer():
    images, labels = batch(9)
    model = nn.Linear(72, CLASSES)
    gradient = capture(model, images.flatten(1), labels).gradient
    loss = nn.CrossEntropyLoss()(model(images.flatten(1)), labels)
    assert_same(gradient, torch.autograd.grad(loss, list(model.parameters())))
