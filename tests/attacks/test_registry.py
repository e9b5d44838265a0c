import importlib
import inspect
import sys
from dataclasses import replace

import pytest
import torch

from labelleak.attacks import list_attacks, registry, restore
from labelleak.attacks.registry import Attack, Gives, Need, find_attack, register
from labelleak.loss import Loss
from labelleak.observation import Auxiliary
from labelleak.plugins import EntryPoint
from labelleak.restoration import Restoration
from labelleak.training import LocalTraining
from own_plugins import MODULE, written
from synthetic import untrained

BATCH = untrained(6, 12, 4)
DESCRIPTION = {
    "title": "An attack",
    "gives": (Gives.SET,),
    "assumes": "nothing",
    "reference": "a paper",
}


@pytest.fixture
def _empty_table(monkeypatch):
    monkeypatch.setattr(registry, "_ATTACKS", {})


def test_the_attacks_of_the_first_release_are_there():
    assert {"idlg", "gradinversion", "rlg", "ilrg"} <= set(list_attacks())


@pytest.mark.parametrize("name", list_attacks())
def test_every_attack_describes_itself(name):
    attack = list_attacks()[name]
    assert attack.name == name
    assert attack.gives
    assert all((attack.title, attack.assumes, attack.reference))
    for text in (attack.title, attack.assumes, attack.reference):
        assert "\n" not in text


@pytest.mark.parametrize("name", list_attacks())
def test_hyper_parameters_are_keywords_with_defaults(name):
    first, *others = inspect.signature(list_attacks()[name].rule).parameters.values()
    assert first.default is inspect.Parameter.empty
    for parameter in others:
        assert parameter.kind is inspect.Parameter.KEYWORD_ONLY
        assert parameter.default is not inspect.Parameter.empty


@pytest.mark.parametrize("name", list_attacks())
def test_a_need_that_is_not_declared_is_none(name):
    """Every attack runs on no more than it says it needs."""
    observation = BATCH.observe_for(list_attacks()[name].needs)
    if name in ("pooled", "calibrated"):
        # Without a bias gradient the batch size gives the scale; either will do.
        observation = replace(observation, training=LocalTraining(batch_size=4))
    few = {"virtual": {"trainings": 12}, "synthetic": {"trainings": 24}}.get(name, {})
    assert restore(observation, name, **few).attack == name


@pytest.mark.parametrize("need", [*Need])
def test_a_need_is_not_met_by_all_the_others(need):
    others = {*Need} - {need}
    if need is Need.BATCH_SIZE:
        others -= {Need.ONE_SAMPLE}
    elif need is Need.INPUT_SHAPE:
        others -= {Need.AUXILIARY}
    observation = BATCH.observe_for(others)
    if need is Need.PLAIN_LOSS:
        observation = replace(observation, loss=Loss(label_smoothing=0.1))
    assert not need.is_met(observation)
    assert all(other.is_met(observation) for other in others)
    entry = Attack("mine", "", (Need.BATCH_SIZE, need), (), (), "", "", False, False, lambda: None)
    missing = dict.fromkeys(n for n in entry.needs if not n.is_met(observation))
    assert entry.missing(observation) == tuple(n for n in entry.needs if n in missing)


def test_auxiliary_data_tells_the_shape_of_an_input():
    assert Need.INPUT_SHAPE.is_met(BATCH.observe(auxiliary=BATCH.auxiliary()))


def test_tokens_tell_no_shape_that_inputs_could_be_made_up_in():
    tokens = Auxiliary(torch.tensor([[5, 6], [7, 8]]), torch.tensor([0, 1]))
    assert not Need.INPUT_SHAPE.is_met(BATCH.observe(auxiliary=tokens))


def test_class_weights_make_no_plain_loss():
    assert not Need.PLAIN_LOSS.is_met(BATCH.observe(class_weights=torch.ones(6)))


@pytest.mark.parametrize("bias", [True, False])
def test_needs_are_met_by_what_the_observation_holds(bias):
    observation = BATCH.observe(bias=bias)
    assert Need.BIAS.is_met(observation) is bias
    assert not Need.MODEL.is_met(observation)
    assert Need.MODEL.is_met(replace(observation, model=BATCH.model(bias=bias)))


def test_the_table_cannot_be_changed_from_outside():
    with pytest.raises(TypeError):
        list_attacks()["mine"] = list_attacks()["idlg"]


@pytest.mark.usefixtures("_empty_table")
def test_a_registered_rule_signs_with_its_name():
    @register("mine", needs=(Need.BIAS,), **DESCRIPTION)
    def rule(observation, *, sign=1):
        """A rule."""
        return Restoration(sign * observation.gradient.bias < 0)

    entry = list_attacks()["mine"]
    assert (entry.name, entry.needs, entry.rule) == ("mine", (Need.BIAS,), rule)
    assert (rule.__name__, rule.__doc__) == ("rule", "A rule.")
    assert rule(BATCH.observe()).attack == restore(BATCH.observe(), "mine").attack == "mine"
    turned = restore(BATCH.observe(), "mine", sign=-1)
    assert not torch.equal(turned.present, rule(BATCH.observe()).present)


@pytest.mark.parametrize("name", ["auto", "module:name"])
def test_names_that_mean_something_else_are_refused(name):
    with pytest.raises(ValueError, match=f"an attack cannot be named '{name}'"):
        register(name, **DESCRIPTION)


def test_a_module_that_is_loaded_again_replaces_its_own_attacks(tmp_path):
    with written(tmp_path) as own:
        first = find_attack("own-signs").rule
        assert list_attacks()["own-signs"].package == own
        importlib.reload(sys.modules[own])
        assert find_attack("own-signs").rule is not first
    with pytest.raises(ValueError, match="no attack named 'own-signs': choose auto, ilrg"):
        find_attack("own-signs")


class TestEntryPoints:
    @pytest.fixture
    def declared(self, monkeypatch, caplog):
        """Declare entry points of a package; gives the log."""
        monkeypatch.setattr(registry, "_ATTACKS", dict(registry._ATTACKS))
        monkeypatch.setattr(registry, "_BROKEN", {})

        def declare(**values):
            made = {
                name.replace("_", "-"): EntryPoint("attacks", name.replace("_", "-"), value, "p 1")
                for name, value in values.items()
            }
            monkeypatch.setattr(registry, "entry_points", lambda kind: made)
            return caplog

        return declare

    def test_nothing_is_loaded_for_the_attacks_of_labelleak(self, declared):
        log = declared(broken="no_such_module:attack")
        assert restore(BATCH.observe(), "idlg").attack == "idlg"
        assert log.messages == []

    def test_broken_ones_are_left_out_with_one_line_each(self, declared):
        log = declared(broken="no_such_module:attack", other="operator:neg")
        assert {"broken", "other"}.isdisjoint(list_attacks())
        assert find_attack("ilrg").package == "labelleak"
        assert [line.partition(": left out: ")[2][:33] for line in log.messages] == [
            "attack 'broken' of the package p ", "attack 'other' of the package p 1"
        ]  # fmt: skip
        with pytest.raises(ValueError, match=r"'broken': choose .*; attack 'broken' of"):
            find_attack("broken")
        with pytest.raises(ValueError, match="operator:neg registers no attack of that name"):
            find_attack("other")

    def test_one_of_the_name_of_ours_replaces_nothing(self, declared, tmp_path):
        text = MODULE.replace("own-signs", "ilrg")
        ours = find_attack("ilrg")
        (tmp_path / "usurping_attack.py").write_text(text)
        with pytest.MonkeyPatch.context() as patch:
            patch.syspath_prepend(tmp_path)
            log = declared(usurper="usurping_attack:attack")
            assert list_attacks()["ilrg"] is ours
        assert "an attack named 'ilrg' is registered already (usurping_attack.py" in log.text
        assert "own-broken" not in list_attacks()


@pytest.mark.usefixtures("_empty_table")
def test_a_name_is_given_once():
    register("mine", **DESCRIPTION)(lambda observation: None)
    with pytest.raises(ValueError, match="an attack named 'mine' is registered already"):
        register("mine", **DESCRIPTION)(lambda observation: None)
    assert list(list_attacks()) == ["mine"]
