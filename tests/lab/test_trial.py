import json
import re
from unittest.mock import Mock

import pytest
import torch
from torch import nn

from experiments import experiment, observations
from labelleak.attacks import list_attacks, restore
from labelleak.errors import DataNotFound, LabelLeakError, MissingKnowledge
from labelleak.lab import trial
from labelleak.lab.code_version import code_hash
from labelleak.lab.datasets import draw, load
from labelleak.lab.definition import Batch, DefenseSetting, Network, Training
from labelleak.lab.networks import build
from labelleak.lab.seeds import derive_seed
from labelleak.lab.trial import forget, run_trial
from labelleak.metrics import counts_of, score
from labelleak.updates import observe

ATTACKS = tuple(list_attacks())


def head(e, index):
    (observation,) = observations(e, index)
    return observation.head.weight


def test_weights_can_be_other_in_each_trial():
    fixed, fresh = experiment(), experiment(network=Network(name="fcn-3", seed="per-trial"))
    assert torch.equal(head(fixed, 0), head(fixed, 1))
    assert not torch.equal(head(fresh, 0), head(fresh, 1))
    assert torch.equal(head(fresh, 0), head(fresh, 0))
    own = derive_seed(0, 1, "network")
    expected = build("fcn-3", classes=10, image_shape=(1, 28, 28), seed=own)
    assert torch.equal(head(fresh, 1), list(expected.parameters())[-2])


def test_a_record_is_what_the_steps_by_hand_give():
    """Drawn, differentiated by autograd, attacked and scored, with the public functions alone."""
    digits = load("mnist-sample")
    e = experiment(attacks=ATTACKS, seed=5)
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
            if entry["error"] is not None:
                with pytest.raises(MissingKnowledge, match=re.escape(entry["error"])):
                    restore(observation, name)
                continue
            found = restore(observation, name)
            assert entry["counts"] == score(found, true).as_dict()
            rounded = None if found.rounded is None else score(found, true, use="rounded").as_dict()
            assert entry["rounded"] == rounded
            assert entry["flags"] == [flag.name.lower() for flag in found.flags]


def test_a_record_is_one_line_of_json_that_says_what_was_run():
    e = experiment(attacks=ATTACKS, stands_in_for="mnist", data_split="test", measures=("cossim",))
    record = run_trial(e, 1)
    assert json.loads(json.dumps(record, allow_nan=False)) == record
    attempts, measures = record.pop("attacks"), record.pop("measures")
    assert record == {
        "schema": "labelleak/trial/1",
        "key": e.trial_key(1),
        "definition": e.definition_key(1),
        "code": code_hash(),
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


def test_the_same_trial_gives_the_same_record_whatever_ran_before():
    e = experiment(
        attacks=ATTACKS, network=Network(name="lenet5"), measures=("cossim", "approximations")
    )
    first = run_trial(e, 1)
    torch.manual_seed(1)
    run_trial(experiment(defense=DefenseSetting(name="gaussian_noise", value=1.0)), 2)
    assert run_trial(e, 1) == first
    forget()
    torch.set_num_threads(2)
    try:
        assert run_trial(e, 1) == first
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(1)


def gradient(e, index=0):
    (observation,) = observations(e, index)
    return observation.gradient.weight


def test_trials_differ_by_index_and_seed_and_settings_share_their_batches():
    one = experiment()
    assert not torch.equal(gradient(one), gradient(one, 1))
    assert not torch.equal(gradient(one), gradient(experiment(seed=1)))
    other = experiment("b", known_classes=True, measures=("cossim",))
    assert torch.equal(gradient(other), gradient(one))


def test_measuring_changes_nothing_else():
    plain = experiment(attacks=ATTACKS)
    measured = experiment(attacks=ATTACKS, measures=("cossim", "soteria_embedding"))
    assert run_trial(plain, 0)["attacks"] == run_trial(measured, 0)["attacks"]


def test_an_attack_that_cannot_run_says_why():
    """With noise the gradient has full rank, and RLG needs less."""
    noisy = experiment(attacks=("rlg",), defense=DefenseSetting(name="gaussian_noise", value=0.1))
    entry = run_trial(noisy, 0)["attacks"]["rlg"]
    assert "RLG needs a gradient of rank below" in entry.pop("error")
    assert entry == {"counts": None, "rounded": None, "certified": False, "flags": []}


def test_known_classes_are_those_of_the_batch():
    digits = load("mnist-sample")
    (observation,) = observations(experiment(known_classes=True, batch=Batch(size=8)))
    indices = draw("random", digits.labels, 8, derive_seed(0, 0, "batch"))
    assert observation.present_classes.tolist() == digits.labels[indices].unique().tolist()


def test_numbers_by_class_are_kept_of_imbalanced_batches():
    e = experiment(
        attacks=("ilrg", "rlg"), batch=Batch(sampler="imbalanced", size=24, classes=(0, 4, 9))
    )
    record = run_trial(e, 0)
    assert record["attacks"]["ilrg"]["predicted"] == {"0": 1, "4": 22, "9": 1}
    assert record["attacks"]["rlg"]["predicted"] == {}
    assert "predicted" not in run_trial(experiment(), 0)["attacks"]["ilrg"]


STAGE = Training(unit="iterations", steps=20, total=20, batch_size=20, samples_per_class=5)


def test_no_steps_of_training_are_the_initial_weights():
    none = STAGE.model_copy(update={"steps": 0, "samples_per_class": None})
    ours, untrained = run_trial(experiment(training=none), 0), run_trial(experiment(), 0)
    assert ours["attacks"] == untrained["attacks"]


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_no_gpu():
    with pytest.raises(LabelLeakError, match="no CUDA GPU here"):
        run_trial(experiment(), 0, device="cuda")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")
def test_a_gpu_gives_nearly_the_same():
    measures = ("cossim", "approximations", "soteria_embedding")
    for defense in (DefenseSetting(), DefenseSetting(name="gaussian_noise", value=1e-3)):
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


def test_auto_says_which_attack_spoke_and_its_time_limit_is_kept(monkeypatch):
    asked = Mock(wraps=restore)
    monkeypatch.setattr(trial, "restore", asked)
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
