"""Heads that are 1x1 convolutions, against autograd: every pixel is a sample."""

from dataclasses import replace

import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from torch.nn import functional

import labelleak
from labelleak import Auxiliary, LocalTraining, Loss
from labelleak.errors import AmbiguousHead, InvalidObservation
from labelleak.updates import find_head, read_observation, whole_gradient
from labelleak.updates.ends import Accepted
from synthetic import rng

TIGHT = {torch.float32: 1e-6, torch.float64: 1e-12}
SAMPLES, SIZE, LABELS = 5, (6, 7), 3
PIXELS = SIZE[0] * SIZE[1]
LAYERS = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}


def network(outputs, dimensions=2, dtype=torch.float64, **options):
    layer = LAYERS[dimensions]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return (
            nn.Sequential(layer(1, 4, 3, padding=1), nn.ReLU(), layer(4, outputs, 1, **options))
            .to(dtype)
            .eval()
        )


def images(size=SIZE, dtype=torch.float64):
    return torch.randn(SAMPLES, 1, *size, generator=rng(1), dtype=torch.float64).to(dtype)


def classes(size=SIZE, void=None):
    found = torch.randint(LABELS, (SAMPLES, *size), generator=rng(2))
    return found if void is None else found.masked_fill(found == 2, void)


def findings(outputs, size=SIZE):
    return torch.randint(2, (SAMPLES, outputs, *size), generator=rng(2))


def gradients_of(model, value):
    names = [name for name, _ in model.named_parameters()]
    return dict(zip(names, torch.autograd.grad(value, list(model.parameters())), strict=True))


def assert_near(found, expected, dtype):
    scale = float(expected.abs().max())
    assert float((found - expected).abs().max()) <= TIGHT[dtype] * scale


@pytest.mark.parametrize("dtype", TIGHT)
@pytest.mark.parametrize("size", [(9,), SIZE, (3, 4, 5)], ids=str)
@pytest.mark.parametrize("kind", ["classes", "void", "findings", "one logit", "masked"])
def test_a_capture_is_the_gradient_of_torchs_own_loss(kind, size, dtype):
    pixels = torch.Size(size).numel()
    outputs = 1 if kind in ("one logit", "masked") else LABELS
    model, inputs = network(outputs, len(size), dtype), images(size, dtype)
    exact = model.double()
    logits = exact(inputs.double())
    if kind in ("classes", "void"):
        targets = classes(size, 255 if kind == "void" else None)
        loss = Loss(ignore_index=255 if kind == "void" else None, pixels=0)
        value = functional.cross_entropy(logits, targets, ignore_index=255)
        kept = int((targets != 255).sum())
    else:
        targets, loss = findings(outputs, size), Loss("bce", masked=kind == "masked")
        weights = torch.ones_like(logits)
        if kind == "masked":
            targets[::2, :, :1] = -1
            weights = (targets >= 0).to(logits)
        value = (
            functional.binary_cross_entropy_with_logits(
                logits, targets.clamp_min(0).double(), weights, reduction="sum"
            )
            / weights.sum()
        )
        kept = int((targets >= 0).sum()) if outputs == 1 else SAMPLES * pixels
    expected = gradients_of(exact, value)
    model = model.to(dtype)
    seen = labelleak.capture(model, inputs, targets, loss=loss)
    part = slice(1, 2) if outputs == 1 else slice(None)
    assert_near(seen.gradient.weight[part], expected["2.weight"].flatten(1), dtype)
    assert_near(seen.gradient.bias[part], expected["2.bias"], dtype)
    assert seen.batch_size == seen.num_instances == kept
    assert seen.loss.pixels == pixels
    assert seen.head.per_pixel
    pieces = zip(inputs.split(2), targets.split(2), strict=True)
    in_pieces = labelleak.capture(model, pieces, loss=replace(loss, pixels=0))
    assert_near(in_pieces.gradient.weight, seen.gradient.weight, dtype)
    whole = whole_gradient(model, zip(inputs.split(2), targets.split(2), strict=True), loss=loss)
    assert_near(whole["0.weight"], expected["0.weight"], dtype)


def test_a_one_logit_map_may_come_without_its_channel():
    model, inputs, targets = network(1), images(), findings(1)
    seen = labelleak.capture(model, inputs, targets, loss="bce")
    bare = labelleak.capture(model, inputs, targets[:, 0].float(), loss="bce")
    assert torch.equal(bare.gradient.weight, seen.gradient.weight)


def step(loss, targets, model):
    value = loss.value(model(images()), targets)
    return gradients_of(model, value)


def test_gradients_are_read_as_those_of_pixels():
    model, targets = network(1), findings(1)
    sent = step(Loss("bce"), targets, model)
    by_shape = labelleak.observe(
        model, sent, batch_size=SAMPLES, loss=Loss("bce", pixels=0), input_shape=(1, *SIZE)
    )
    told = labelleak.observe(
        model.state_dict(), sent, batch_size=SAMPLES, loss=Loss("bce", pixels=PIXELS)
    )
    captured = labelleak.capture(model, images(), targets, loss="bce")
    for seen in (by_shape, told):
        assert seen.batch_size == SAMPLES * PIXELS == captured.batch_size
        assert seen.loss.pixels == PIXELS
        torch.testing.assert_close(seen.gradient.weight, captured.gradient.weight)
    assert by_shape.model(images()).shape == (SAMPLES, 2, *SIZE)
    unknown = labelleak.observe(model, sent, batch_size=SAMPLES, loss=Loss("bce", pixels=0))
    assert unknown.batch_size is None
    void = Loss(ignore_index=255, pixels=PIXELS)
    sent = step(void, classes(void=255), network(LABELS))
    assert (
        labelleak.observe(network(LABELS), sent, batch_size=SAMPLES, loss=void).batch_size is None
    )


def test_weights_and_files_of_pixels(tmp_path):
    model, targets, loss = network(LABELS), classes(), Loss(pixels=PIXELS)
    sent = step(loss, targets, model)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    after = {name: value - 0.5 * sent[name] for name, value in before.items()}
    training = LocalTraining(learning_rate=0.5, batch_size=SAMPLES, steps=1)
    seen = labelleak.observe_update(None, before, after, training=training, loss=loss)
    save_file(before, tmp_path / "before.safetensors")
    save_file(sent, tmp_path / "sent.safetensors")
    read = read_observation(
        tmp_path / "before.safetensors",
        tmp_path / "sent.safetensors",
        training=LocalTraining(batch_size=SAMPLES),
        loss=loss,
    )
    for one in (seen, read):
        torch.testing.assert_close(one.gradient.weight, sent["2.weight"].flatten(1))
        assert one.batch_size == SAMPLES * PIXELS
    several = LocalTraining(learning_rate=0.5, batch_size=2, epochs=2)
    seen = labelleak.observe_update(
        None, before, after, training=several, instances=SAMPLES, loss=loss
    )
    assert (seen.local_steps, seen.batch_size, seen.num_instances) == (6, 2 * PIXELS, 5 * PIXELS)


@pytest.mark.parametrize(
    ("shapes", "head"),
    [
        ({"down.weight": (8, 3, 3, 3), "outc.conv.weight": (1, 8, 1, 1)}, "outc.conv"),
        (
            {"a.weight": (8, 3, 3, 3), "z.weight": (8, 8, 3, 3), "logits.weight": (4, 8, 1)},
            "logits",
        ),
        (
            {
                "conv.weight": (64, 3, 3, 3),
                "se.fc1.weight": (16, 64),
                "se.fc2.weight": (64, 16),
                "classifier.weight": (5, 64, 1, 1),
            },
            "classifier",
        ),
    ],
)
def test_the_head_of_a_segmentation_network(shapes, head):
    pixels = Accepted(one_logit=True, pixels=True)
    assert find_head(shapes, accepted=pixels) == head
    assert find_head(dict(sorted(shapes.items())), accepted=pixels) == head
    with pytest.raises(AmbiguousHead, match=r"say Loss\(.*pixels=HEIGHT \* WIDTH"):
        find_head(shapes)


class Pooled(nn.Module):
    """A 1x1 convolution whose pixels are averaged: one prediction for an image."""

    def __init__(self):
        super().__init__()
        self.body = network(LABELS)

    def forward(self, inputs):
        return self.body(inputs).mean(dim=(2, 3))


class Enlarged(Pooled):
    """Logits that are made larger behind the head."""

    def forward(self, inputs):
        return functional.interpolate(self.body(inputs), scale_factor=2)


def test_what_is_no_head_of_pixels_is_refused():
    with pytest.raises(AmbiguousHead, match="2 is a 1x1 convolution"):
        labelleak.capture(network(LABELS), images(), torch.zeros(SAMPLES, dtype=torch.int64))
    for model, targets in ((Pooled(), classes()), (Enlarged(), classes((12, 14)))):
        with pytest.raises(InvalidObservation, match=r"output is not what layer 'body\.2' puts"):
            labelleak.capture(model.eval(), images(), targets)
    for options, what in (({"groups": 1, "padding": 1}, "padding"), ({"groups": 2}, "groups")):
        outputs = 2 if "groups" in what else LABELS
        model = network(outputs, **options)
        with pytest.raises(InvalidObservation, match=f"a 1x1 convolution with {what}"):
            labelleak.capture(model, images(), classes() % outputs)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"loss": Loss("bce", pixels=7), "input_shape": (1, *SIZE)},
            "puts out 42 pixels .* pixels=7",
        ),
        ({"input_shape": (2, *SIZE)}, "does not go through the model"),
        (
            {"auxiliary": Auxiliary(images(), torch.zeros(SAMPLES, dtype=int))},
            "auxiliary data cann",
        ),
    ],
)
def test_what_was_told_of_pixels_is_checked(changes, message):
    model = network(1)
    sent = step(Loss("bce"), findings(1), model)
    told = {"loss": Loss("bce", pixels=0), "batch_size": SAMPLES, **changes}
    with pytest.raises(InvalidObservation, match=message) as refused:
        labelleak.observe(model, sent, **told)
    assert "\n" not in str(refused.value)


def test_maps_of_labels_that_do_not_fit_are_refused():
    with pytest.raises(InvalidObservation, match="labels of shape"):
        labelleak.capture(network(LABELS), images(), classes((3, 3)))
