import math

import numpy as np
import pytest
import torch
from PIL import Image

from experiments import experiment, observations
from labelleak import defenses
from labelleak.errors import DataNotFound
from labelleak.federated import train_locally
from labelleak.lab import simulated_client
from labelleak.lab.datasets import draw, load
from labelleak.lab.definition import Batch, DefenseSetting, Network, Training
from labelleak.lab.networks import build
from labelleak.lab.pretraining import train, training_samples
from labelleak.lab.seeds import derive_seed
from labelleak.lab.simulated_client import ClientSamples, client_gradient
from labelleak.lab.tasks import Local
from labelleak.lab.trial import run_trial
from labelleak.loss import Loss
from labelleak.restoration import Flag
from labelleak.training import LocalTraining
from labelleak.updates import capture


def seen(index=0, **fields):
    """What the attack of a trial saw; iDLG by default, which runs on any gradient."""
    (observation,) = observations(experiment(**{"attacks": ("idlg",), **fields}), index)
    return observation


@pytest.mark.parametrize(
    ("defense", "by_hand"),
    [
        (DefenseSetting(name="sign"), defenses.sign),
        (DefenseSetting(name="clip_norm", value=0.01), lambda g: defenses.clip_norm(g, 0.01)),
        (DefenseSetting(name="sparsify", value=80), lambda g: defenses.sparsify(g, 80)),
    ],
    ids=lambda value: getattr(value, "name", ""),
)
def test_defenses_act_on_what_the_server_sees(defense, by_hand):
    plain, defended = seen(), seen(defense=defense)
    expected = by_hand({"w": plain.gradient.weight, "b": plain.gradient.bias})
    torch.testing.assert_close(defended.gradient.weight, expected["w"])
    torch.testing.assert_close(defended.gradient.bias, expected["b"])


def test_noise_has_the_size_asked_for_and_is_another_in_each_trial():
    defense = DefenseSetting(name="gaussian_noise", value=0.01)
    noise = [
        seen(index, defense=defense).gradient.weight - seen(index).gradient.weight
        for index in (0, 1)
    ]
    for values in noise:  # 3000 values: the standard deviation is within 5 of its own
        assert float(values.std()) == pytest.approx(0.01, rel=5 / math.sqrt(2 * 3000))
    assert float((noise[0] * noise[1]).mean()) == pytest.approx(0, abs=5e-4 * 0.01)


def test_quantization_leaves_a_grid():
    quantized = seen(defense=DefenseSetting(name="quantize", value=3))
    assert len(quantized.gradient.weight.unique()) <= 7


def test_soteria_prunes_features():
    defended = seen(defense=DefenseSetting(name="soteria", value=60)).gradient
    plain = seen().gradient
    pruned = ~defended.weight.any(dim=0)
    assert int(pruned.sum()) >= 0.6 * 300
    assert torch.equal(defended.weight[:, ~pruned], plain.weight[:, ~pruned])
    assert torch.equal(defended.bias, plain.bias)


STAGE = Training(unit="iterations", steps=20, total=20, batch_size=20, samples_per_class=5)


def test_a_trained_network_is_the_snapshot_and_its_batches_are_what_it_was_trained_on(monkeypatch):
    digits = load("mnist-sample")
    e = experiment(training=STAGE, batch=Batch(size=24))
    with pytest.raises(DataNotFound, match="train it first"):
        run_trial(e, 0)
    train(e.network, [STAGE], digits)
    drawn = []

    def look(model, batch, loss, **options):
        drawn.append((model, list(batch.pieces())))
        return client_gradient(model, batch, loss, **options)

    monkeypatch.setattr(simulated_client, "client_gradient", look)
    run_trial(e, 0)
    model, pieces = drawn[0]
    assert not model.training
    ours = {row.numpy().tobytes() for row in torch.cat([inputs for inputs, _ in pieces])}
    pool, labels = digits.batch(training_samples(STAGE, digits))
    assert len(ours) == 24
    assert ours <= {row.numpy().tobytes() for row in pool}
    assert float((model(pool).argmax(dim=1) == labels).float().mean()) > 0.8


@pytest.fixture
def photographs(tmp_path):
    """Four photographs in two classes."""
    rng = np.random.default_rng(0)
    for label in "ab":
        for number in range(2):
            path = tmp_path / "train" / label / f"{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(rng.integers(0, 255, (90, 80, 3), dtype=np.uint8)).save(path)
    return tmp_path


def test_photographs_are_streamed_and_cropped_anew(photographs, monkeypatch):
    """200,000 pixels at once and no more, and every use of a photograph is another crop."""
    e = experiment(
        data="folder",
        image_size=160,
        network=Network(name="fcn-2"),
        batch=Batch(size=40, replacement=True),
        attacks=("ilrg",),
        measures=("cossim",),
    )
    sizes, images = [], []

    pieces = ClientSamples.pieces

    def watched(batch):
        for inputs, labels in pieces(batch):
            sizes.append(len(inputs))
            images.extend(inputs.clone())
            yield inputs, labels

    monkeypatch.setattr(ClientSamples, "pieces", watched)
    record = run_trial(e, 0, photographs)
    assert sizes == [7] * 5 + [5]
    assert len({image.numpy().tobytes() for image in images}) == 40
    assert record["data"]["name"] == f"folder-{photographs.name}"
    images.clear()
    assert run_trial(e, 0, photographs) == record
    once = e.model_copy(update={"batch": Batch(size=4)})
    images.clear()
    run_trial(once, 0, photographs)
    centers = load("folder", data_dir=photographs, image_size=160).batch(torch.arange(4))[0]
    assert {i.numpy().tobytes() for i in images} == {i.numpy().tobytes() for i in centers}


def test_pieces_together_are_the_batch():
    digits = load("mnist-sample")
    batch = ClientSamples(digits, torch.arange(150), None, "cpu")
    pieces = list(batch.pieces())
    assert [len(labels) for _, labels in pieces] == [64, 64, 22]
    assert torch.equal(torch.cat([inputs for inputs, _ in pieces]), batch.inputs())
    assert torch.equal(torch.cat([labels for _, labels in pieces]), digits.labels[:150])


def test_the_gradient_is_what_a_client_of_single_precision_sends():
    """One backward pass by hand gives the same, and a large batch is the sum of its pieces."""
    digits = load("mnist-sample")
    model = build("lenet5", classes=10, image_shape=(1, 28, 28), seed=3).eval()
    batch = ClientSamples(digits, torch.arange(24), None, "cpu")
    inputs, labels = digits.batch(batch.indices)
    loss = torch.nn.functional.cross_entropy(model(inputs), labels)
    by_hand = torch.autograd.grad(loss, list(model.parameters()))
    found = client_gradient(model, batch, Loss(), whole=True)
    head = client_gradient(model, batch, Loss(), whole=False)
    assert len(head) == 2
    for (name, _), value in zip(model.named_parameters(), by_hand, strict=True):
        assert found[name].dtype == torch.float32
        torch.testing.assert_close(found[name], value, rtol=1e-5, atol=1e-8)
        torch.testing.assert_close(head.get(name, value), value, rtol=1e-5, atol=1e-8)
    large = ClientSamples(digits, torch.arange(150), None, "cpu")
    exact = capture(model, *digits.batch(large.indices)).gradient
    parts = client_gradient(model, large, Loss(), whole=False)
    assert len(parts) == 2
    for name, value in parts.items():
        expected = exact.weight if name.endswith("weight") else exact.bias
        torch.testing.assert_close(value, expected, rtol=1e-4, atol=1e-7)
    assert all(value.grad is None and value.requires_grad for value in model.parameters())


WHOLE = {"idlg": False, "zlg": False, "calibrated": True, "auto": True}


@pytest.mark.parametrize("name", WHOLE)
def test_a_trial_gives_of_the_whole_model_what_its_attacks_need(name):
    observation = seen(attacks=(name,))
    assert (observation.gradients is not None) is WHOLE[name]
    assert observation.input_shape == (None if name == "idlg" else (1, 28, 28))


def test_a_client_may_train_and_the_server_hold_data_of_its_own():
    local = Local(steps=6, epochs=2, learning_rate=0.1, momentum=0.5)
    batch = Batch(size=8)
    e = experiment(local=local, batch=batch, attacks=("rlu", "ilrg"), auxiliary_per_class=3)
    record = run_trial(e, 1)
    assert record == run_trial(e, 1)
    observation = observations(e, 1)[0]
    assert (observation.local_steps, observation.training.epochs) == (6, 2)
    assert (observation.batch_size, observation.num_instances) == (8, 24)
    assert record["attacks"]["rlu"]["error"] is None
    assert Flag.SEVERAL_STEPS.name.lower() in record["attacks"]["ilrg"]["flags"]
    # The weights that were sent are those of training by hand on the samples that were drawn.
    digits = load("mnist-sample")
    indices = draw("random", digits.labels, 24, derive_seed(0, 1, "batch"))
    inputs, labels = digits.batch(indices, None)
    model = build("fcn-3", classes=10, image_shape=(1, 28, 28), seed=13).eval()
    expected = train_locally(
        model,
        inputs,
        labels,
        LocalTraining(learning_rate=0.1, batch_size=8, epochs=2, momentum=0.5),
        classes=10,
        seed=derive_seed(0, 1, "order"),
    )
    for name, value in expected.after.items():
        assert torch.equal(observation.after[name], value)
    # The server's samples are of the other split, and as many of each class.
    auxiliary = observation.auxiliary
    assert torch.equal(torch.bincount(auxiliary.labels), torch.full((10,), 3))
    others = load("mnist-sample", split="test")
    known = others.batch(torch.arange(len(others)), None)[0].flatten(1)
    same = (auxiliary.inputs.flatten(1)[:, None] == known).all(dim=2)
    assert same.any(dim=1).all()
    assert torch.equal(others.labels[same.int().argmax(dim=1)], auxiliary.labels)
