"""Classifiers of which the head runs on every token, and the logits of one token are put out."""

import pytest
import torch
from forward_networks import assert_same
from torch import nn

from labelleak import capture, observe
from labelleak.errors import InvalidObservation

CLASSES, TOKENS, WORDS, PAD = 4, 9, 40, 0


class Classifier(nn.Module):
    """As GPT2ForSequenceClassification: words, a causal body, and the last token's score."""

    def __init__(self, *, pick="last", bias=False, pair=False):
        super().__init__()
        self.words = nn.Embedding(WORDS, 12)
        self.body = nn.GRU(12, 16, batch_first=True)
        self.score = nn.Linear(16, CLASSES, bias=bias)
        self.pick, self.pair = pick, pair

    def forward(self, input_ids, attention_mask=None):
        hidden, _ = self.body(self.words(input_ids))
        logits = self.score(hidden)
        samples = torch.arange(len(input_ids))
        if self.pick == "last":
            place = (torch.arange(TOKENS) * (input_ids != PAD)).argmax(dim=1)
            logits = logits[samples, place]
        elif self.pick == "first":
            logits = logits[:, 0]
        elif self.pick == "mean":
            logits = logits.mean(dim=1)
        elif self.pick == "greatest":
            logits = logits.amax(dim=1)
        return (logits, hidden) if self.pair else {"logits": logits}


def batch(size=70, side="right"):
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(1, WORDS, (size, TOKENS), generator=generator)
    lengths = torch.randint(1, TOKENS + 1, (size,), generator=generator)
    place = torch.arange(TOKENS)
    padded = place >= lengths[:, None] if side == "right" else place < TOKENS - lengths[:, None]
    labels = torch.randint(CLASSES, (size,), generator=generator)
    return {"input_ids": tokens.masked_fill(padded, PAD)}, labels


def network(dtype=torch.float64, **options):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return Classifier(**options).to(dtype).eval()


def by_autograd(model, inputs, labels):
    output = model(**inputs)
    logits = output["logits"] if isinstance(output, dict) else output[0]
    nn.CrossEntropyLoss()(logits, labels).backward()
    return {name: value.grad for name, value in model.named_parameters()}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("options", [{}, {"bias": True}, {"pick": "first"}, {"pair": True}])
def test_the_gradient_is_that_of_the_token_that_is_picked(options, side, dtype):
    model, (inputs, labels) = network(dtype, **options), batch(side=side)
    observation = capture(model, inputs, labels)
    gradients = by_autograd(model, inputs, labels)
    expected = [value for name, value in gradients.items() if name.startswith("score")]
    tolerance = {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 0.03}[dtype]
    assert_same(observation.gradient, expected, tolerance)
    assert observation.head.name == "score"
    seen = observe(model, gradients, batch_size=len(labels))
    assert seen.head.name == "score"
    assert torch.equal(seen.gradient.weight, gradients["score.weight"])


@pytest.mark.parametrize("side", ["left", "right"])
def test_tokens_of_equal_logits_are_told_apart_by_where_the_model_looks(side):
    """A head of two directions, rounded: many tokens have the same logits."""
    model, (inputs, labels) = network(), batch(side=side)
    with torch.no_grad():
        model.score.weight.mul_(0).add_(1e-2 * torch.eye(CLASSES, 16))
    runs = []
    rounded = model.score.register_forward_hook(
        lambda _layer, _entered, left: (runs.append(1), 0.0 * left)[1]
    )
    with torch.no_grad():
        model.score.weight.zero_()
    observation = capture(model, inputs, labels)
    rounded.remove()
    # Twice for each piece of the batch.
    assert len(runs) == 4
    gradients = by_autograd(model, inputs, labels)
    assert_same(observation.gradient, [gradients["score.weight"]], 1e-12)


@pytest.mark.parametrize("pick", ["mean", "greatest", "all"])
def test_what_is_no_token_of_a_sample(pick):
    inputs, labels = batch()
    with pytest.raises(InvalidObservation, match="one embedding per sample to one vector"):
        capture(network(pick=pick), inputs, labels)


def test_an_output_of_another_layer():
    class Other(Classifier):
        def forward(self, input_ids):
            return super().forward(input_ids)["logits"] + 1.0

    with torch.random.fork_rng(devices=[]):
        model = Other().eval()
    inputs, labels = batch()
    with pytest.raises(InvalidObservation, match="one embedding per sample to one vector"):
        capture(model, inputs, labels)
