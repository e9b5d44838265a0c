from dataclasses import replace

import pytest
import torch
from torch import nn

from labelleak.attacks import restore
from labelleak.attacks.inputs import smooth_noise
from labelleak.errors import MissingKnowledge
from labelleak.lab.networks import build
from labelleak.observation import Auxiliary
from labelleak.updates import capture, whole_gradient
from networks import Tokens
from synthetic import rng, untrained


def images(shape, size, seed):
    """Smooth fields about a common mean, of mean square one: what inputs are assumed to be."""
    (fields,) = smooth_noise(shape, size, (1.5,), rng(seed))
    mean = smooth_noise(shape, 1, (1.5,), rng(99))[0]
    return 0.5 * mean + 0.75**0.5 * fields


def unlabeled(inputs):
    """Auxiliary data whose labels say nothing: the attack looks at the inputs alone."""
    return Auxiliary(inputs, torch.zeros(len(inputs), dtype=torch.int64))


def observe(model, inputs, labels):
    model.eval()
    gradients = whole_gradient(model, [(inputs, labels)])
    seen = capture(model, inputs, labels)
    return replace(seen, gradients=gradients, input_shape=tuple(inputs.shape[1:]))


def trial(network, shape, classes, size, seed, **options):
    model = build(network, classes=classes, image_shape=shape, seed=1, **options)
    labels = torch.randint(classes, (size,), generator=rng(seed))
    counts = torch.bincount(labels, minlength=classes)
    return observe(model, images(shape, size, seed), labels), counts


@pytest.mark.parametrize(
    ("network", "shape", "classes", "size", "share"),
    # Over 30 seeds the shares are 0.07 and 0.46; over any six of them at most 0.13 and 0.60.
    [("fcn-3", (1, 16, 16), 10, 128, 0.3), ("lenet5", (3, 32, 32), 20, 400, 0.75)],
)
def test_the_whole_model_tells_more_than_the_head(network, shape, classes, size, share):
    errors, inside = {"pooled": 0.0, "calibrated": 0.0}, []
    for seed in range(6):
        seen, counts = trial(network, shape, classes, size, seed)
        for name in errors:
            found = restore(seen, name)
            errors[name] += float((found.raw - counts).square().mean())
        low, high = found.intervals.T
        inside.append((low <= counts) & (counts <= high))
    assert errors["calibrated"] < share * errors["pooled"]
    assert float(torch.cat(inside).double().mean()) >= 0.85


def test_auxiliary_inputs_stand_in_for_the_batch():
    shape = (1, 16, 16)
    errors = {"pooled": 0.0, "calibrated": 0.0}
    for seed in range(4):
        seen, counts = trial("fcn-3", shape, 10, 128, seed)
        seen = replace(seen, gradients=None, auxiliary=unlabeled(images(shape, 400, 50 + seed)))
        for name in errors:
            errors[name] += float((restore(seen, name).raw - counts).square().mean())
    assert errors["calibrated"] < 0.3 * errors["pooled"]


def test_misleading_auxiliary_inputs_are_outvoted_by_the_gradient():
    """Inputs of ten times the size say nothing true: what pooled finds stays."""
    seen, counts = trial("lenet5", (3, 32, 32), 20, 40, 0)
    misleading = 10.0 * images((3, 32, 32), 200, 1) + 5.0
    misled = replace(seen, auxiliary=unlabeled(misleading))
    assert torch.equal(restore(seen, "pooled").counts, counts)
    assert torch.equal(restore(misled, "calibrated").counts, counts)


def test_permuting_classes_permutes_counts_that_sum_to_the_batch():
    seen, _ = trial("fcn-2", (1, 8, 8), 6, 30, 0)
    found = restore(seen, "calibrated")
    assert int(found.counts.sum()) == 30
    assert float(found.raw.sum()) == pytest.approx(30)
    model = build("fcn-2", classes=6, image_shape=(1, 8, 8), seed=1)
    order = torch.tensor([3, 0, 5, 1, 4, 2])
    labels = torch.randint(6, (30,), generator=rng(0))
    with torch.no_grad():
        for parameter in model.fc.parameters():
            parameter.copy_(parameter[order].clone())
    permuted = restore(
        observe(model, images((1, 8, 8), 30, 0), order.argsort()[labels]), "calibrated"
    )
    # The labels of the dummies are dealt out in the order of the classes.
    assert torch.allclose(permuted.raw, found.raw[order], atol=0.1)


def test_it_is_deterministic_and_leaves_the_model_as_it_was():
    seen, _ = trial("lenet5", (1, 16, 16), 5, 20, 0, batchnorm=True)
    model = seen.model.train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    one = restore(seen, "calibrated")
    torch.manual_seed(1)
    state = torch.random.get_rng_state()
    other = restore(seen, "calibrated")
    torch.testing.assert_close(other.raw, one.raw, rtol=0, atol=1e-6)
    assert torch.equal(state, torch.random.get_rng_state())
    assert all(module.training for module in model.modules())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(value.grad is None for value in model.parameters())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_a_missing_model_gradient_or_shape_is_named():
    seen, _ = trial("fcn-2", (1, 8, 8), 6, 30, 0)
    with pytest.raises(MissingKnowledge, match="whole model"):
        restore(replace(seen, model=None), "calibrated")
    with pytest.raises(MissingKnowledge, match=r"first layer, 'hidden\.0'"):
        restore(replace(seen, gradients=None), "calibrated")
    batch = untrained(6, 12, 4)
    odd = nn.Sequential(nn.Conv2d(1, 2, 3), nn.Flatten(), nn.Linear(7, 6))
    with pytest.raises(MissingKnowledge, match="shape of the model's inputs"):
        restore(batch.observe(model=odd), "calibrated")


def test_a_transformer_whose_linear_layers_take_tokens():
    """Neither a layer on tokens nor one that never runs as a module has a mean input."""
    model = Tokens()
    labels = torch.randint(5, (40,), generator=rng(3))
    seen = observe(model, images((1, 16, 16), 40, 0), labels)
    found = restore(seen, "calibrated")
    assert int((found.counts - torch.bincount(labels, minlength=5)).abs().sum()) <= 4
    assert restore(seen).counts is not None
