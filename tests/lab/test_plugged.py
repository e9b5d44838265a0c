"""Attacks, defenses, networks, data and losses of a user's own module in an experiment."""

import json
import sys

import pytest
import torch
from pydantic import ValidationError

from experiments import experiment, observations
from labelleak.attacks import registry
from labelleak.errors import LabelLeakError
from labelleak.lab import runner
from labelleak.lab.datasets import load
from labelleak.lab.definition import Experiment, Network, Training
from labelleak.lab.experiment_grid import grid_study, problem_lines
from labelleak.lab.pretraining import load_network, snapshot_path, train
from labelleak.lab.runner import run
from labelleak.lab.store import Store
from labelleak.lab.summary import summarize
from labelleak.lab.tasks import LossSetting
from labelleak.lab.trial import run_trial
from own_plugins import MODULE, written


@pytest.fixture
def own(tmp_path):
    with written(tmp_path) as name:
        yield name


def stored(experiments, folder, **options):
    with Store(folder) as store:
        return run(experiments, store, workers=1, **options), store.records()


def test_parameters_make_another_attack_with_a_name_of_its_own(own):
    strict = {"name": f"{own}:attack", "threshold": 0.05}
    one = experiment(attacks=[f"{own}:attack", strict, "own-signs"])
    assert one.labels == (f"{own}:attack", f"{own}:attack(threshold=0.05)", "own-signs")
    assert Experiment.model_validate(json.loads(one.model_dump_json())) == one
    record = run_trial(one, 0)
    recall = [record["attacks"][label]["counts"]["existence_recall"] for label in one.labels]
    assert recall[0] == recall[2] > recall[1]
    assert record["plugins"] == dict.fromkeys(one.labels, own)
    summary = summarize(grid_study([one], "g", "G"), [record], found={record["key"]})
    (row,) = summary["rows"]
    assert f"{own}:attack(threshold=0.05).leacc" in row["metrics"]
    assert (row["found"], row["plugins"]) == (1, record["plugins"])


def test_a_definition_without_plugins_has_the_code_of_labelleak_alone(own):
    plain, plugged = experiment(), experiment(attacks=("ilrg", "own-signs"))
    assert plain.plugins_used == ()
    assert plugged.code != plain.code
    assert experiment(attacks=({"name": "ilrg"},)) == plain


def test_an_attack_that_fails_is_named_and_the_others_count(own):
    one = experiment(attacks=("ilrg", "own-broken"))
    outcome = run_trial(one, 0)["attacks"]
    assert outcome["own-broken"]["error"].startswith("KeyError: 'nothing' (own_plugins_of_a_te")
    assert outcome["ilrg"]["error"] is None


def test_a_defense_acts_on_what_the_attacks_see(own):
    defense = {"name": f"{own}:shrink", "factor": 0.5}
    (plain,), (half,) = observations(experiment()), observations(experiment(defense=defense))
    torch.testing.assert_close(half.gradient.weight, plain.gradient.weight / 2)
    summary = summarize(grid_study([experiment(defense=defense)], "g", "G"), [])
    assert summary["rows"][0]["defense"] == f"{own}:shrink(factor=0.5)"


def test_networks_and_data_of_a_module(own, tmp_path):
    one = experiment(
        data=f"{own}:numbers", network={"name": f"{own}:Net", "width": 6}, batch={"size": 9}
    )
    (seen,) = observations(one)
    assert tuple(seen.head.weight.shape) == (3, 6)
    assert Experiment.model_validate(json.loads(one.model_dump_json())) == one
    fresh = one.model_copy(update={"network": one.network.model_copy(update={"seed": 14})})
    assert not torch.equal(observations(fresh)[0].head.weight, seen.head.weight)
    assert torch.equal(observations(one)[0].head.weight, seen.head.weight)
    (flat,) = observations(experiment(data=f"{own}:numbers", batch={"size": 9}))
    assert flat.head.classes == 3
    bad = {
        "wrong": experiment("wrong", network={"name": f"{own}:wrong_net"}),
        "lenet": experiment("lenet", data=f"{own}:numbers", network={"name": "lenet5"}),
        "list": experiment("list", data=f"{own}:no_data"),
        "gone": experiment("gone", defense={"name": f"{own}:forget"}),
    }
    summary, _ = stored(bad.values(), tmp_path / "run")
    assert "gives (1, 11) for 1 inputs, and logits of shape (1, 10)" in summary.failed["wrong"]
    assert "lenet5 takes images, and numbers has other inputs" in summary.failed["lenet"]
    assert "returns list: a labelleak.lab.datasets.Dataset is needed" in summary.failed["list"]
    assert "forget' failed: KeyError: 'fc.weight'" in summary.failed["gone"]


def test_a_loss_of_a_module_is_what_the_client_minimizes(own):
    # A temperature is labelleak's own name for the same loss; 80 samples are two pieces.
    fields = {"attacks": ("pooled",), "batch": {"size": 80}}
    one = experiment(loss={"kind": f"{own}:sharp", "factor": 4.0}, **fields)
    same = experiment(loss={"kind": "cross_entropy", "temperature": 0.25}, **fields)
    for found, expected in zip(observations(one), observations(same), strict=True):
        torch.testing.assert_close(found.gradient.weight, expected.gradient.weight)
        torch.testing.assert_close(found.gradient.bias, expected.gradient.bias)
    record = run_trial(one, 0)
    assert record["attacks"]["pooled"]["counts"]["accuracy"] > 0.9
    assert record["plugins"] == {f"{own}:sharp(factor=4.0)": own}
    assert Experiment.model_validate(json.loads(one.model_dump_json())) == one
    named = experiment(loss=f"{own}:sharp", **fields)
    assert named.code == one.code != same.code
    assert named.trial_key(0) != one.trial_key(0)
    (row,) = summarize(grid_study([one], "g", "G"), [record])["rows"]
    assert row["task"] == f"{own}:sharp(factor=4.0)"


def test_a_network_is_trained_by_a_loss_of_a_module(own, tmp_path):
    data, stage = load("mnist-sample"), Training(unit="iterations", steps=4, total=4)
    network, sharp = Network(name="fcn-2"), LossSetting(kind=f"{own}:sharp")
    same = LossSetting(kind="cross_entropy", temperature=0.5)
    states = []
    for loss in (sharp, same):
        train(network, [stage], data, loss)
        states.append(load_network(network, stage, data, loss).state_dict())
    torch.testing.assert_close(*states)
    before = snapshot_path(network, stage, data, sharp)
    sys.modules.pop(own)
    with written(tmp_path, own, MODULE.replace("factor * logits", "factor * logits + 1")):
        assert snapshot_path(network, stage, data, sharp) != before


def test_a_loss_that_fails_is_named_with_its_line(own, tmp_path):
    bad = experiment("bad", loss=f"{own}:fragile")
    summary, _ = stored([bad], tmp_path / "run")
    assert f"the loss '{own}:fragile' failed: KeyError: 'nothing' (" in summary.failed["bad"]


def test_a_changed_attack_runs_again_and_nothing_else_does(own, tmp_path):
    both = [experiment("with", attacks=("own-signs",), trials=2), experiment("without", trials=2)]
    summary, _ = stored(both, tmp_path / "run")
    assert (summary.found, summary.made) == (0, 4)
    sys.modules.pop(own)
    for name in ("own-signs", "own-broken"):
        registry._ATTACKS.pop(name)
    with written(tmp_path, own, MODULE.replace("< -threshold", "<= -threshold")):
        summary, records = stored(both, tmp_path / "run")
    assert (summary.found, summary.made) == (2, 2)
    assert [r["experiment"] for r in records[4:]] == ["with", "with"]


def test_a_worker_with_other_code_is_refused(own):
    one = experiment(attacks=(f"{own}:attack",))
    task = runner._Task(one, 0, None, "cpu", "another", (own,), ())
    assert "a worker has other code than this process" in runner._attempt(task).reason
    lost = task._replace(modules=("no_such_module",), code=one.code)
    assert "experiment 'a': there is no module 'no_such_module'" in runner._attempt(lost).reason


def test_what_a_notebook_defines_stays_in_one_process(own, tmp_path, monkeypatch):
    one = experiment(attacks=(f"{own}:attack",))
    entry = registry._ATTACKS["own-signs"]
    monkeypatch.setattr(entry.rule, "__module__", "__main__")
    with (
        Store(tmp_path / "run") as store,
        pytest.raises(LabelLeakError, match=r"in the script or notebook.*or take one worker"),
    ):
        run([one], store, workers=2)


@pytest.mark.parametrize(
    ("change", "line"),
    [
        ({"attacks": ["no_such_module:a"]}, "attacks.0: attack 'no_such_module:a': there is no"),
        ({"attacks": ["{}:shrink"]}, "shrink' is not registered: put @register(...) of"),
        ({"attacks": [{"name": "{}:attack", "treshold": 1}]}, "its parameters are threshold"),
        ({"attacks": [{"name": "auto", "x": 1}]}, "the attack 'auto' has no parameters"),
        (
            {
                "attacks": [{"name": "{}:attack", "threshold": 1}],
                "inversion": {"labels": "given", "iterations": 1},
            },
            "inversion takes the first attack, which can have no parameters",
        ),
        ({"attacks": [3]}, "attacks.0: a name is needed, or a table"),
        ({"network": {"name": "{}:Net", "depth": 3}}, "its parameters are width"),
        ({"network": {"name": "{}:MODULE"}}, "has no 'MODULE'"),
        ({"defense": {"name": "{}:shrink"}}, "needs the parameter 'factor'"),
        ({"defense": {"name": "{}:shrink", "factor": 1, "generator": 2}}, "are factor"),
        ({"data": "{}:shrink"}, "needs the parameter 'gradients'"),
        ({"loss": "no_such_module:a"}, "loss: loss 'no_such_module:a': there is no module"),
        ({"loss": "focl"}, "unknown loss 'focl': choose one of cross_entropy, focal"),
        ({"loss": {"kind": "{}:sharp", "fctor": 2}}, "its parameters are factor"),
        ({"loss": {"kind": "bce", "fctor": 2}}, "no such field 'fctor', choose one of kind"),
        ({"loss": "{}:MODULE"}, "has no 'MODULE'"),
        ({"loss": "{}:own_number"}, "name a function that returns a labelleak.Loss"),
        ({"loss": "{}:shrink"}, "a function that returns a labelleak.Loss, needs the parameter"),
        ({"loss": "{}:no_loss"}, "returns str: a labelleak.Loss is needed"),
        ({"loss": "{}:sets"}, "a loss with a sigmoid needs targets"),
        ({"data": "npz:../x"}, "write npz:NAME, where NAME is below the data folder"),
    ],
)
def test_errors_name_what_there_is(own, change, line):
    change = json.loads(json.dumps(change).replace("{}", own))
    with pytest.raises(ValidationError) as raised:
        experiment(**change)
    (found,) = problem_lines(raised.value)
    assert line in found
