import json
import math
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from labelleak import defenses
from labelleak.attacks import list_attacks, restore
from labelleak.errors import DataNotFound, LabelLeakError
from labelleak.federated import train_locally
from labelleak.lab import client
from labelleak.lab import trial as module
from labelleak.lab.client import Drawn
from labelleak.lab.datasets import draw, load
from labelleak.lab.definition import (
    Batch,
    Defense,
    Experiment,
    Local,
    Network,
    Training,
    derive_seed,
)
from labelleak.lab.networks import build
from labelleak.lab.training import train, training_samples
from labelleak.lab.trial import forget, run_trial
from labelleak.metrics import counts_of, score
from labelleak.restoration import Flag
from labelleak.training import LocalTraining
from labelleak.updates import capture, observe


def experiment(**fields):
    given = {
        "name": "a",
        "data": "mnist-sample",
        "network": Network(name="fcn-3"),
        "batch": Batch(size=24),
        "attacks": tuple(list_attacks()),
        "trials": 3,
    }
    return Experiment(**(given | fields))


@pytest.fixture
def seen(monkeypatch):
    """The observations that the attacks got."""
    observations = []

    def look(observation, name, time_limit):
        observations.append(observation)
        return restore(observation, name, time_limit=time_limit)

    monkeypatch.setattr(module, "restore", look)
    return observations


def test_weights_can_be_other_in_each_trial(seen):
    fixed, fresh = experiment(), experiment(network=Network(name="fcn-3", seed="per-trial"))
    for e in (fixed, fresh):
        for index in (0, 1, 0):
            run_trial(e, index)
    heads = [observation.head.weight for observation in seen[:: len(list_attacks())]]
    assert torch.equal(heads[0], heads[1])
    assert not torch.equal(heads[3], heads[4])
    assert torch.equal(heads[3], heads[5])
    own = derive_seed(0, 1, "network")
    expected = build("fcn-3", classes=10, image_shape=(1, 28, 28), seed=own)
    assert torch.equal(heads[4], list(expected.parameters())[-2])


def test_a_record_is_what_the_steps_by_hand_give():
    """Drawn, differentiated by autograd, attacked and scored, with the public functions alone."""
    digits = load("mnist-sample")
    e = experiment(seed=5)
    for index in range(2):
        indices = draw("random", digits.labels, 24, derive_seed(5, index, "batch"))
        inputs, labels = digits.batch(indices)
        model = build("fcn-3", classes=10, image_shape=(1, 28, 28), seed=13)
        loss = nn.functional.cross_entropy(model(inputs), labels)
        gradients = torch.autograd.grad(loss, list(model.parameters()))
        observation = observe(model, gradients, batch_size=24, input_shape=(1, 28, 28))
        true = counts_of(labels, 10)
        record = run_trial(e, index)
        for name, entry in record["attacks"].items():
            if list_attacks()[name].missing(observation):
                assert entry["error"].startswith(f"attack '{name}' needs ")
                continue
            if name == "exact":
                assert "at most 9 samples" in entry["error"]
                continue
            found = restore(observation, name)
            assert entry["counts"] == score(found, true).as_dict()
            rounded = None if found.rounded is None else score(found, true, use="rounded").as_dict()
            assert entry["rounded"] == rounded
            assert entry["flags"] == [flag.name.lower() for flag in found.flags]


def test_a_record_is_one_line_of_json_that_says_what_was_run():
    e = experiment(stands_in_for="mnist", data_split="test", measures=("cossim",))
    record = run_trial(e, 1)
    assert json.loads(json.dumps(record, allow_nan=False)) == record
    attempts, measures = record.pop("attacks"), record.pop("measures")
    assert record == {
        "schema": "labelleak/trial/1",
        "key": e.trial_key(1),
        "experiment": "a",
        "trial": 1,
        "data": {"name": "mnist-sample", "stands_in_for": "mnist", "split": "test"},
        "network": "fcn-3",
        "classes": 10,
        "features": 300,
        "batch_size": 24,
    }
    assert set(measures) == {"embedding_cossim", "probability_cossim"}
    assert list(attempts) == list(e.attacks)
    for entry in attempts.values():
        assert set(entry) == {"counts", "rounded", "certified", "flags", "error"}


@pytest.mark.parametrize("network", ["fcn-3", "lenet5"])
def test_the_same_trial_gives_the_same_record_whatever_ran_before(network):
    e = experiment(network=Network(name=network), measures=("cossim", "approximations"))
    first = run_trial(e, 1)
    torch.manual_seed(1)
    run_trial(experiment(defense=Defense(name="gaussian_noise", value=1.0)), 2)
    assert run_trial(e, 1) == first
    forget()
    torch.set_num_threads(2)
    try:
        assert run_trial(e, 1) == first
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(1)


def test_trials_differ_by_index_and_seed_and_settings_share_their_batches(seen):
    one = experiment(attacks=("ilrg",))
    for e, index in ((one, 0), (one, 1), (one.model_copy(update={"seed": 1}), 0)):
        run_trial(e, index)
    gradients = [observation.gradient.weight for observation in seen]
    assert not torch.equal(gradients[0], gradients[1])
    assert not torch.equal(gradients[0], gradients[2])
    run_trial(experiment(name="b", known_classes=True, measures=("cossim",)), 0)
    assert torch.equal(seen[-1].gradient.weight, gradients[0])


def test_measuring_changes_nothing_else():
    plain, measured = experiment(), experiment(measures=("cossim", "soteria_embedding"))
    assert run_trial(plain, 0)["attacks"] == run_trial(measured, 0)["attacks"]


def test_an_attack_that_cannot_run_says_why():
    """With noise the gradient has full rank, and RLG needs less."""
    noisy = experiment(defense=Defense(name="gaussian_noise", value=0.1))
    entry = run_trial(noisy, 0)["attacks"]["rlg"]
    assert "RLG needs a gradient of rank below" in entry.pop("error")
    assert entry == {"counts": None, "rounded": None, "certified": False, "flags": []}


def test_known_classes_are_those_of_the_batch(seen):
    digits = load("mnist-sample")
    e = experiment(known_classes=True, batch=Batch(size=8), attacks=("ilrg",))
    run_trial(e, 0)
    indices = draw("random", digits.labels, 8, derive_seed(0, 0, "batch"))
    assert seen[0].present_classes.tolist() == digits.labels[indices].unique().tolist()


def test_numbers_by_class_are_kept_of_imbalanced_batches():
    e = experiment(batch=Batch(sampler="imbalanced", size=24, classes=(0, 4, 9)))
    record = run_trial(e, 0)
    assert record["attacks"]["ilrg"]["predicted"] == {"0": 1, "4": 22, "9": 1}
    assert record["attacks"]["rlg"]["predicted"] == {}
    assert "predicted" not in run_trial(experiment(), 0)["attacks"]["ilrg"]


@pytest.mark.parametrize(
    ("defense", "by_hand"),
    [
        (Defense(name="sign"), defenses.sign),
        (Defense(name="clip_norm", value=0.01), lambda g: defenses.clip_norm(g, 0.01)),
        (Defense(name="sparsify", value=80), lambda g: defenses.sparsify(g, 80)),
    ],
    ids=lambda value: getattr(value, "name", ""),
)
def test_defences_act_on_what_the_server_sees(seen, defense, by_hand):
    for d in (Defense(), defense):
        run_trial(experiment(attacks=("idlg",), defense=d), 0)
    plain, defended = seen
    expected = by_hand({"w": plain.gradient.weight, "b": plain.gradient.bias})
    torch.testing.assert_close(defended.gradient.weight, expected["w"])
    torch.testing.assert_close(defended.gradient.bias, expected["b"])


def test_noise_has_the_size_asked_for_and_is_another_in_each_trial(seen):
    noisy = experiment(attacks=("idlg",), defense=Defense(name="gaussian_noise", value=0.01))
    for index in (0, 1):
        run_trial(experiment(attacks=("idlg",)), index)
        run_trial(noisy, index)
    noise = [seen[i + 1].gradient.weight - seen[i].gradient.weight for i in (0, 2)]
    for values in noise:  # 3000 values: the standard deviation is within 5 of its own
        assert float(values.std()) == pytest.approx(0.01, rel=5 / math.sqrt(2 * 3000))
    assert float((noise[0] * noise[1]).mean()) == pytest.approx(0, abs=5e-4 * 0.01)


def test_quantisation_leaves_a_grid(seen):
    run_trial(experiment(attacks=("idlg",), defense=Defense(name="quantize", value=3)), 0)
    assert len(seen[0].gradient.weight.unique()) <= 7


def test_soteria_prunes_features(seen):
    run_trial(experiment(attacks=("idlg",), defense=Defense(name="soteria", value=60)), 0)
    run_trial(experiment(attacks=("idlg",)), 0)
    defended, plain = (observation.gradient for observation in seen)
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

    def look(model, pieces):
        drawn.append((model, list(pieces)))
        return capture(model, drawn[-1][1])

    monkeypatch.setattr(client, "capture", look)
    run_trial(e, 0)
    model, pieces = drawn[0]
    assert not model.training
    ours = {row.numpy().tobytes() for row in torch.cat([inputs for inputs, _ in pieces])}
    pool, labels = digits.batch(training_samples(STAGE, digits))
    assert len(ours) == 24
    assert ours <= {row.numpy().tobytes() for row in pool}
    assert float((model(pool).argmax(dim=1) == labels).float().mean()) > 0.8


def test_no_steps_of_training_are_the_initial_weights():
    none = STAGE.model_copy(update={"steps": 0, "samples_per_class": None})
    ours, untrained = run_trial(experiment(training=none), 0), run_trial(experiment(), 0)
    assert ours["attacks"] == untrained["attacks"]


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

    def look(model, pieces):
        def watched():
            for inputs, labels in pieces:
                sizes.append(len(inputs))
                images.extend(inputs.clone())
                yield inputs, labels

        return capture(model, watched())

    monkeypatch.setattr(client, "capture", look)
    record = run_trial(e, 0, photographs)
    assert sizes == [7] * 5 + [5]
    assert len({image.numpy().tobytes() for image in images}) == 40
    assert record["data"]["name"] == f"folder-{photographs.name}"
    images.clear()
    assert run_trial(e, 0, photographs) == record
    once = e.model_copy(update={"batch": Batch(size=4)})
    images.clear()
    run_trial(once, 0, photographs)
    centres = load("folder", data_dir=photographs, image_size=160).batch(torch.arange(4))[0]
    assert {i.numpy().tobytes() for i in images} == {i.numpy().tobytes() for i in centres}


def test_pieces_together_are_the_batch():
    digits = load("mnist-sample")
    batch = Drawn(digits, torch.arange(150), None, "cpu")
    pieces = list(batch.pieces())
    assert [len(labels) for _, labels in pieces] == [64, 64, 22]
    assert torch.equal(torch.cat([inputs for inputs, _ in pieces]), batch.inputs())
    assert torch.equal(torch.cat([labels for _, labels in pieces]), digits.labels[:150])


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_no_gpu():
    with pytest.raises(LabelLeakError, match="no CUDA GPU here"):
        run_trial(experiment(), 0, device="cuda")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")
def test_a_gpu_gives_nearly_the_same():
    measures = ("cossim", "approximations", "soteria_embedding")
    for defense in (Defense(), Defense(name="gaussian_noise", value=1e-3)):
        e = experiment(batch=Batch(size=16), defense=defense, measures=measures)
        here, there = run_trial(e, 0), run_trial(e, 0, device="cuda")
        assert there["attacks"]["ilrg"] == here["attacks"]["ilrg"]
        assert there["measures"] == pytest.approx(here["measures"], rel=0.05, abs=1e-6)


def test_what_cannot_be_drawn_or_found_is_named(tmp_path):
    with pytest.raises(ValueError, match="batch of 6000"):
        run_trial(experiment(batch=Batch(size=6000)), 0)
    with pytest.raises(DataNotFound, match="mnist, split train, was not found"):
        run_trial(experiment(data="mnist"), 0, tmp_path)
    with pytest.raises(ValueError, match="at least 32x32"):
        run_trial(experiment(network=Network(name="vgg11")), 0)


WHOLE = {"idlg": False, "zlg": False, "calibrated": True, "auto": True}


@pytest.mark.parametrize("name", WHOLE)
def test_a_trial_gives_of_the_whole_model_what_its_attacks_need(seen, name):
    run_trial(experiment(attacks=(name,)), 0)
    (observation,) = seen
    assert (observation.gradients is not None) is WHOLE[name]
    assert observation.input_shape == (None if name == "idlg" else (1, 28, 28))


def test_auto_says_which_attack_spoke_and_its_time_limit_is_kept(monkeypatch):
    asked = Mock(wraps=restore)
    monkeypatch.setattr(module, "restore", asked)
    record = run_trial(experiment(attacks=("auto", "ilrg"), time_limit=3.0), 0)
    assert record["attacks"]["auto"]["spoke"] in list_attacks()
    assert "spoke" not in record["attacks"]["ilrg"]
    assert [call.kwargs["time_limit"] for call in asked.call_args_list] == [3.0, 3.0]


def test_baselines_intervals_and_time_are_measured_where_they_are_asked_for():
    plain = experiment(attacks=("ilrg", "pooled"))
    asked = experiment(
        attacks=("ilrg", "pooled"),
        baselines=("uniform", "absent", "shuffled"),
        measures=("coverage", "seconds"),
    )
    before, after = run_trial(plain, 0), run_trial(asked, 0)
    assert "baselines" not in before
    assert before["attacks"] == after["attacks"]
    measures = after["measures"]
    assert set(measures) == {"ilrg.seconds", "pooled.seconds", "pooled.coverage"}
    assert 0.0 <= measures["pooled.coverage"] <= 1.0
    assert 0.0 < measures["ilrg.seconds"] < 60.0
    counts = counts_of(load("mnist-sample").labels[_drawn(asked)], 10)
    scores = after["baselines"]
    assert scores["absent"]["lnacc"] == pytest.approx(float((counts == 0).double().mean()))
    assert scores["absent"]["accuracy"] == 0.0
    uniform = torch.tensor([3, 3, 3, 3, 2, 2, 2, 2, 2, 2])
    assert scores["uniform"]["lnacc"] == pytest.approx(float((counts == uniform).double().mean()))
    assert scores["shuffled"]["accuracy"] > 0.0


def _drawn(e):
    labels = load("mnist-sample").labels
    return draw("random", labels, e.batch.size, derive_seed(e.seed, 0, "batch"))


def test_a_client_may_train_and_the_server_hold_data_of_its_own(seen):
    local = Local(steps=6, epochs=2, learning_rate=0.1, momentum=0.5)
    batch = Batch(size=8)
    e = experiment(local=local, batch=batch, attacks=("rlu", "ilrg"), auxiliary_per_class=3)
    record = run_trial(e, 1)
    assert record == run_trial(e, 1)
    observation = seen[0]
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
