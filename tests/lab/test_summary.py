import json
import math

import numpy as np
import pytest
import torch
from scipy import stats

from find_published import find
from labelleak.lab.definition import Batch, DefenseSetting, Experiment, Network, Training
from labelleak.lab.experiment_grid import grid_study
from labelleak.lab.paper import study
from labelleak.lab.study import Panel, Study, StudyRow
from labelleak.lab.summary import summarize
from labelleak.lab.tasks import Local


def experiment(name="FCN-3", trials=3, **fields):
    content = {
        "data": "mnist",
        "network": Network(name="fcn-3"),
        "batch": Batch(size=24),
        "attacks": ("ilrg", "idlg"),
    }
    return Experiment(name=name, trials=trials, **{**content, **fields})


def scores(leacc, lnacc=None, exact=None):
    """One score as a record has it."""
    return {"leacc": leacc, "lnacc": lnacc, "recall": lnacc, "accuracy": lnacc, "exact": exact}


def entry(counts=None, rounded=None, error=None, **more):
    return {"counts": counts, "rounded": rounded, "error": error, **more}


def record(of, index, attacks, measures=None):
    return {"key": of.trial_key(index), "attacks": attacks, "measures": measures or {}}


def one_study(*rows, metrics=("ilrg.leacc", "ilrg.lnacc", "ilrg.exact", "idlg.leacc")):
    return Study(
        name="s", title="A study", source="a paper", scale="quick", metrics=metrics, rows=rows
    )


def example_records(of, lnaccs=(1.0, 0.9, 0.8)):
    return [
        record(
            of,
            index,
            {
                "ilrg": entry(scores(1.0, 1.0, exact=index == 0), scores(0.9, lnacc)),
                "idlg": entry(scores(0.5 + index / 10)),
            },
        )
        for index, lnacc in enumerate(lnaccs)
    ]


def test_means_and_intervals_on_a_case_worked_out_by_hand():
    of = experiment()
    cells = summarize(one_study(StudyRow(label="r", experiment=of)), example_records(of))["rows"][
        0
    ]["metrics"]
    # 1, 0.9 and 0.8: standard deviation 0.1, t(2) = 4.3027 at 97.5 %.
    half = 4.302652729911275 * 0.1 / math.sqrt(3)
    lnacc = cells["ilrg.lnacc"]
    assert lnacc["ours"] == pytest.approx(0.9)
    assert lnacc["low"] == pytest.approx(0.9 - half)
    assert lnacc["high"] == 1.0  # cut off: there is no accuracy above
    assert lnacc["trials"] == 3
    assert lnacc["error"] == pytest.approx(0.1 / math.sqrt(3))
    # As published, from the counts before their sum is repaired; exactness after that.
    assert (cells["ilrg.leacc"]["ours"], cells["ilrg.leacc"]["low"]) == (pytest.approx(0.9),) * 2
    assert cells["ilrg.exact"]["ours"] == pytest.approx(1 / 3)
    assert cells["idlg.leacc"]["ours"] == pytest.approx(0.6)
    assert lnacc["published"] is lnacc["difference"] is lnacc["inside"] is None


@pytest.mark.parametrize(("right", "trials"), [(50, 50), (0, 20), (3, 8)])
def test_shares_have_an_interval_even_where_all_trials_agree(right, trials):
    """Wilson, 1927: the shares p with (share - p)^2 = z^2 p (1 - p) / n."""
    of = experiment(trials=trials)
    values = [float(index < right) for index in range(trials)]
    cells = summarize(one_study(StudyRow(label="r", experiment=of)), example_records(of, values))
    cell = cells["rows"][0]["metrics"]["ilrg.lnacc"]
    share, z = right / trials, stats.norm.ppf(0.975)
    for bound in (cell["low"], cell["high"]):
        assert (share - bound) ** 2 == pytest.approx(z**2 * bound * (1 - bound) / trials, abs=1e-9)
    assert 0.0 <= cell["low"] < cell["high"] <= 1.0


def test_the_interval_covers_the_true_mean_as_often_as_it_says():
    numbers = np.random.default_rng(0).normal(0.5, 0.05, size=(400, 8))
    covered = 0
    of = experiment(trials=8)
    for sample in numbers:
        rows = summarize(
            one_study(StudyRow(label="r", experiment=of)), example_records(of, sample)
        )["rows"]
        cell = rows[0]["metrics"]["ilrg.lnacc"]
        covered += cell["low"] <= 0.5 <= cell["high"]
    assert stats.binomtest(covered, 400, 0.95).pvalue > 0.001


def published_row(of, **fields):
    return StudyRow(label="r", experiment=of, published=find("table1", model="fcn-3"), **fields)


@pytest.mark.parametrize(
    ("lnaccs", "inside"),
    [
        ((1.0, 0.98, 1.0), True),
        ((0.994, 0.994, 0.994), True),
        # It is printed with three digits: 0.9944 may be it.
        ((0.9944, 0.9944, 0.9944), True),
        ((0.996, 0.996, 0.996), False),
        ((0.7, 0.71, 0.69), False),
    ],
)
def test_ours_is_compared_with_the_published_figure(lnaccs, inside):
    of = experiment()
    row = summarize(one_study(published_row(of)), example_records(of, lnaccs))["rows"][0]
    cell = row["metrics"]["ilrg.lnacc"]
    assert cell["published"] == 0.994
    assert cell["difference"] == pytest.approx(sum(lnaccs) / 3 - 0.994)
    assert cell["inside"] is inside
    assert ("LnAcc" in row["note"]) is not inside
    # iDLG: 0.6 with a wide interval, published 0.514.
    assert row["metrics"]["idlg.leacc"]["inside"] is True
    assert "iDLG" not in row["note"]


@pytest.mark.parametrize(
    ("fields", "row_fields", "reasons"),
    [
        ({}, {}, "the reason is not known"),
        ({}, {"reason": "one network"}, "possible reasons: one network"),
        (
            {"data": "mnist-sample", "stands_in_for": "mnist"},
            {},
            "possible reasons: mnist-sample stands in for mnist",
        ),
        (
            {"data_split": "test"},
            {"shrunk": ("images of 32 pixels instead of 224", "3 trials instead of 50")},
            "possible reasons: held-out images, a few of each class, cropped at random; "
            "images of 32 pixels instead of 224",
        ),
    ],
)
def test_notes_say_why_a_figure_is_outside(fields, row_fields, reasons):
    of = experiment(**fields)
    found = summarize(
        one_study(published_row(of, **row_fields), metrics=("ilrg.lnacc", "idlg.leacc")),
        example_records(of, (0.5, 0.5, 0.5)),
    )
    row = found["rows"][0]
    assert row["note"] == f"iLRG LnAcc: published outside the interval; {reasons}"
    assert row["shrunk"] == list(row_fields.get("shrunk", ()))


def test_rlg_is_said_to_be_another_one():
    of = experiment(attacks=("ilrg", "rlg"))
    records = [
        record(of, i, {"ilrg": entry(scores(1.0, 1.0)), "rlg": entry(scores(0.2))})
        for i in range(3)
    ]
    metrics = ("ilrg.leacc", "rlg.leacc")
    row = summarize(one_study(published_row(of), metrics=metrics), records)["rows"][0]
    assert row["note"].startswith(
        "RLG LeAcc: published outside the interval; possible reasons: another definition"
    )


def test_trials_that_are_not_there_yet_are_not_counted():
    of = experiment(trials=5)
    other = experiment("another", batch=Batch(size=25))
    records = [*example_records(of)[:1], *example_records(other)]
    rows = summarize(one_study(published_row(of), StudyRow(label="r2", experiment=other)), records)[
        "rows"
    ]
    assert [(row["trials"], row["trials_planned"]) for row in rows] == [(1, 5), (3, 3)]
    cell = rows[0]["metrics"]["ilrg.lnacc"]
    assert (cell["ours"], cell["trials"]) == (1.0, 1)
    assert cell["low"] is cell["high"] is cell["inside"] is None
    assert rows[0]["note"] is None
    none = summarize(one_study(published_row(of)), [])["rows"][0]["metrics"]["ilrg.lnacc"]
    assert none["ours"] is none["difference"] is None
    assert (none["published"], none["trials"]) == (0.994, 0)


def test_a_renamed_experiment_finds_its_records():
    records = example_records(experiment("old name"))
    rows = summarize(one_study(StudyRow(label="r", experiment=experiment("new name"))), records)[
        "rows"
    ]
    assert rows[0]["trials"] == 3


def test_attacks_that_could_not_run_are_counted():
    of = experiment()
    records = example_records(of)
    for broken in records[1:]:
        broken["attacks"]["idlg"] = entry(error="it needs a bias")
    row = summarize(one_study(published_row(of)), records)["rows"][0]
    assert row["failed"] == {"idlg": {"failed": 2, "of": 3, "error": "it needs a bias"}}
    assert row["metrics"]["idlg.leacc"]["trials"] == 1
    assert row["metrics"]["idlg.leacc"]["ours"] == 0.5


def test_restored_instances_are_those_of_the_published_classes_or_their_stand_ins():
    for classes in ((0, 18, 92), (0, 1, 9)):
        of = experiment(
            batch=Batch(sampler="imbalanced", size=24, classes=classes), attacks=("ilrg",)
        )
        predictions = [
            dict(zip(map(str, classes), n, strict=True)) for n in ((1, 18, 1), (3, 9, 2))
        ]
        del predictions[0][str(classes[2])]  # what is zero is left out
        records = [
            record(of, i, {"ilrg": entry(scores(1.0, 1.0), predicted=predicted)})
            for i, predicted in enumerate(predictions)
        ]
        metrics = tuple(f"ilrg.instances_{label}" for label in (0, 18, 92))
        published = find("table5", stage="epoch100", batch_size=24)
        row = StudyRow(label="r", experiment=of, published=published)
        cells = summarize(one_study(row, metrics=metrics), records)["rows"][0]["metrics"]
        assert [cells[name]["ours"] for name in metrics] == [2.0, 13.5, 1.0]
        assert [cells[name]["published"] for name in metrics] == [1.0, 18.0, 1.0]


def test_measures_are_summarized():
    of = experiment(measures=("approximations",))
    records = [
        record(of, i, {"ilrg": entry(scores(1.0)), "idlg": entry(scores(1.0))}, {"a1_mse": mse})
        for i, mse in enumerate((1e-11, 2e-11, 3e-11))
    ]
    row = StudyRow(label="r", experiment=of, published=find("table3", stage="untrained"))
    found = summarize(one_study(row, metrics=("a1_mse", "a3_mse")), records)
    cell = found["rows"][0]["metrics"]["a1_mse"]
    assert (cell["ours"], cell["published"], cell["inside"]) == (
        pytest.approx(2e-11),
        1.6e-11,
        True,
    )
    assert cell["low"] == 0.0  # cut off: no error is negative
    missing = found["rows"][0]["metrics"]["a3_mse"]
    assert (missing["ours"], missing["published"]) == (None, 6.1e-16)


def test_what_was_really_run_is_told():
    of = experiment(
        network=Network(name="lenet5", activation="swish", batchnorm=True),
        training=Training(unit="iterations", steps=26, total=260, samples_per_class=100),
        defense=DefenseSetting(name="gaussian_noise", value=1e-3),
        batch=Batch(sampler="random_classes", num_classes=5, size=24),
        known_classes=True,
    )
    row = StudyRow(label="r", experiment=of, stage="epoch 10", panel="p", series="s", x=10.0)
    panel = Panel(
        key="p",
        title="P",
        x_title="training (epochs)",
        x_scale="linear",
        x_ticks=(10.0,),
        metrics=("ilrg.lnacc",),
    )
    of_panel = one_study(row, metrics=("ilrg.lnacc",)).model_copy(update={"panels": (panel,)})
    found = summarize(of_panel, [])
    told = {key: value for key, value in found["rows"][0].items() if key != "metrics"}
    assert told == {
        "label": "r", "data": "mnist", "stands_in_for": None, "split": "train", "image_size": None,
        "network": "lenet5", "activation": "swish", "batchnorm": True, "dropout": None,
        "stem": None, "stage": "epoch 10",
        "stage_used": "iteration 26 of 260, 100 samples of each class", "batch_size": 24,
        "sampler": "random_classes", "defense": "gaussian noise 0.001", "known_classes": True,
        "trials": 0, "trials_planned": 3, "panel": "p", "series": "s", "x": 10.0, "failed": {},
            "flags": {},
        "inversion": None, "pictures": None, "shrunk": [], "note": None, "earlier": 0, "code": [],
        "range": "evaluation",
    }  # fmt: skip
    assert found["panels"][0]["x_ticks"] == [10.0]
    assert found["environment"]["torch"] == torch.__version__
    assert found["environment"]["cores"] >= 1


def test_local_training_and_auxiliary_data_are_told():
    local = Local(steps=20, epochs=2, learning_rate=0.01, momentum=0.9)
    of = experiment(local=local, auxiliary_per_class=500)
    (row,) = summarize(grid_study([of], "g", "Grid"), [])["rows"]
    assert row["local"] == "20 local steps in 2 epochs, learning rate 0.01, momentum 0.9"
    assert row["auxiliary"] == 500
    assert row["stage_used"] == "untrained"
    later = experiment(local=Local(steps=20, learning_rate=0.01, round=3, clients=5))
    (row,) = summarize(grid_study([later], "g", "Grid"), [])["rows"]
    assert row["local"] == "20 local steps, learning rate 0.01, in round 3"
    assert row["stage_used"] == "2 rounds of 5 clients"


def test_a_summary_is_plain_json():
    found = study("figure5", "smoke")
    summary = summarize(found, [])
    assert json.loads(json.dumps(summary, allow_nan=False)) == summary
    assert [m["name"] for m in summary["metrics"]] == list(found.metrics)
    assert (summary["schema"], summary["scale"]) == ("labelleak/study/1", "smoke")
    assert summary["omitted"] == list(found.omitted)


def test_baselines_time_intervals_and_who_spoke_are_summarized():
    entry = {"counts": {"lnacc": 1.0}, "rounded": None, "certified": True, "error": None}
    one = experiment(
        "one", attacks=("auto",), baselines=("uniform",), measures=("seconds", "coverage"), trials=3
    )
    records = [
        {
            "key": one.trial_key(index),
            "attacks": {
                "auto": {
                    **entry,
                    "certified": index < 1,
                    "spoke": spoke,
                    "flags": ["no_bias", "not_integral"][: index + 1],
                }
            },
            "measures": {"auto.seconds": float(index)} | ({"auto.coverage": 0.5} if index else {}),
            "baselines": {"uniform": {"leacc": 1, "lnacc": 0.25, "accuracy": 0, "exact": False}},
        }
        for index, spoke in enumerate(("exact", "pooled", "pooled"))
    ]
    study = grid_study([one], "grid", "My grid")
    wanted = ("auto.lnacc", "auto.certified", "auto.seconds", "auto.coverage", "uniform.lnacc")
    assert set(wanted) <= set(study.metrics)
    study = study.model_copy(update={"metrics": wanted})
    (row,) = summarize(study, records)["rows"]
    values = {name: cell["ours"] for name, cell in row["metrics"].items()}
    expected = (1.0, 1 / 3, 1.0, 0.5, 0.25)
    assert values == pytest.approx(dict(zip(wanted, expected, strict=True)))
    assert row["metrics"]["auto.coverage"]["trials"] == 2
    assert row["spoke"] == {"pooled": 2, "exact": 1}
    assert list(row["flags"]["auto"].items()) == [("no_bias", 3), ("not_integral", 2)]


def test_results_of_earlier_code_are_kept_and_marked():
    """Where this code has made records of a row, earlier ones do not count."""
    of = experiment(trials=2)
    study = one_study(StudyRow(label="r", experiment=of))
    before = [
        {**one, "key": f"old {index}", "definition": of.definition_key(index), "code": "0b7d"}
        for index, one in enumerate(example_records(of, (0.1, 0.2)))
    ]
    unsaid = [
        {**one, "key": of.definition_key(index)}
        for index, one in enumerate(example_records(of, (0.5, 0.7)))
    ]
    now = [{**one, "code": "41aa"} for one in example_records(of, (0.8,))]

    def row(records):
        (found,) = summarize(study, records)["rows"]
        lnacc = found["metrics"]["ilrg.lnacc"]["ours"]
        return found["trials"], found["earlier"], found["code"], lnacc

    assert row(unsaid) == (2, 2, ["not recorded"], pytest.approx(0.6))
    assert row(unsaid + before) == (2, 2, ["0b7d"], pytest.approx(0.15))
    assert row(now + before) == (1, 0, ["41aa"], pytest.approx(0.8))
    other = experiment(trials=2, seed=1)
    assert (
        summarize(one_study(StudyRow(label="r", experiment=other)), before)["rows"][0]["trials"]
        == 0
    )


def test_a_set_has_no_numbers():
    of = experiment()
    study = one_study(StudyRow(label="r", experiment=of), metrics=("ilrg.lnacc", "idlg.lnacc"))
    cells = summarize(study, example_records(of))["rows"][0]["metrics"]
    assert list(cells) == ["ilrg.lnacc"]
