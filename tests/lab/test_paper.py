from collections import Counter

import pytest

from find_published import find
from labelleak.lab import paper
from labelleak.lab.metric_catalog import metric
from labelleak.lab.paper import names, study
from labelleak.lab.published_figures import published_runs
from labelleak.lab.sources import Source

AT_HAND = {
    "mnist": Source("mnist"),
    "cifar100": Source("tiny-imagenet-100"),
    "imagenet": Source("imagenet", "test", replacement=True),
}
every_study = pytest.mark.parametrize("name", names())
every_scale = pytest.mark.parametrize("scale", paper.SCALES)

# Published runs that two rows stand for, and why.
TWICE = {
    ("figure5", None): "the undefended run is where the curves of both defenses start",
}


def published_of(scale):
    return [row for name in names() for line in study(name, scale).rows for row in line.published]


def test_every_published_run_is_compared_with_once():
    uses = Counter(row.run for row in published_of("paper"))
    for run, row in published_runs().items():
        assert uses[run] == (2 if (row.source, row.defense) in TWICE else 1), row


@every_study
def test_rows_at_the_scale_of_the_paper_are_the_published_runs(name):
    for row in study(name, "paper").rows:
        experiment = row.experiment
        for run in row.published:
            base, _, layer = run.model.partition("+")
            assert experiment.network.name == base
            assert bool(experiment.network.batchnorm) == (layer == "batchnorm")
            assert bool(experiment.network.dropout) == (layer == "dropout")
            assert experiment.network.activation == run.activation
            assert experiment.network.stem is None
            assert experiment.data == run.dataset
            assert experiment.stands_in_for is None
            assert experiment.image_size == (224 if run.dataset == "imagenet" else None)
            assert experiment.batch.size == run.batch_size
            assert experiment.trials == run.trials
            assert experiment.known_classes == run.classes_known
            training = experiment.training
            if run.stage == "untrained":
                assert training is None
            else:
                unit = {"iterations": "iter", "epochs": "epoch"}[training.unit]
                assert f"{unit}{training.steps}" == run.stage
                assert training.total == {"iter": 1000, "epoch": 100}[unit]
                assert (training.batch_size, training.samples_per_class) == (128, None)
                assert (training.learning_rate, training.weight_decay) == (0.1, 5e-4)
                assert (training.momentum, training.nesterov) == (0.9, True)
            assert experiment.defense.name == {
                None: "none", "dp": "gaussian_noise", "sparse": "sparsify"
            }[run.defense]  # fmt: skip
            assert experiment.defense.value == run.defense_value
            assert experiment.batch.sampler == {
                "random": "random", "extreme": "single_class", "unique": "unique",
                "balanced": "balanced", "custom_imbalanced": "imbalanced",
                "random2": "random_classes",
            }[run.distribution]  # fmt: skip


@every_study
def test_what_is_published_is_measured(name):
    found = study(name, "paper")
    metrics = [metric(m) for m in found.metrics]
    for row in found.rows:
        measured = {
            m.published for m in metrics if m.attack is None or m.attack in row.experiment.attacks
        }
        for run in row.published:
            assert set(run.figures) <= measured, row.label


@every_study
@every_scale
def test_rows_have_their_own_labels_and_known_panels(name, scale):
    found = study(name, scale, AT_HAND)
    labels = [row.label for row in found.rows]
    assert len(set(labels)) == len(labels)
    assert [row.experiment.name for row in found.rows] == labels
    panels = {panel.key: panel for panel in found.panels}
    assert len(panels) == len(found.panels)
    for row in found.rows:
        if panels:
            assert row.x in panels[row.panel].x_ticks
            assert row.series
        else:
            assert (row.panel, row.series, row.x) == (None, None, None)
    for panel in found.panels:
        places = Counter((r.series, r.x) for r in found.rows if r.panel == panel.key)
        assert max(places.values()) == 1
        assert {x for _, x in places} == set(panel.x_ticks)
        assert list(panel.x_ticks) == sorted(panel.x_ticks)
        assert set(panel.metrics) <= set(found.metrics)
        if panel.x_labels is not None:
            assert len(panel.x_labels) == len(panel.x_ticks)


def test_the_axes_of_the_figures():
    figure3 = {panel.key: panel for panel in study("figure3", "paper").panels}
    assert figure3["fcn-batch"].x_ticks == (4, 8, 16, 32, 64, 128)
    assert figure3["fcn-depth"].x_ticks == (2, 3, 4, 5, 6)
    assert figure3["lenet-batch"].x_ticks == (32, 64, 128, 256, 512, 1024)
    assert figure3["vgg-depth"].x_ticks == (11, 13, 16, 19)
    assert figure3["resnet-batch"].x_ticks == (128, 256, 512, 1024, 2048, 4096)
    assert figure3["resnet-depth"].x_ticks == (18, 34, 50, 101, 152)
    figure2 = study("figure2", "paper").panels
    assert figure2[0].x_ticks == tuple(range(0, 1001, 100))
    assert figure2[1].x_ticks == tuple(range(0, 101, 10))
    noise, sparsification = study("figure5", "paper").panels
    assert noise.x_labels == ("none", "0.0001", "0.001", "0.01")
    assert sparsification.x_labels == ("none", "10", "20", "40", "80")


def test_the_same_batches_are_run_once():
    found = study("figure3", "paper")
    # FCN-3 at K = 64 and ResNet-50 at K = 2048 are points of two panels each.
    assert len(found.rows) == 32
    assert len(found.experiments) == 30
    assert len({e.trial_key(0) for e in found.experiments}) == 30


def test_two_published_runs_of_a_setting_have_batches_of_their_own():
    swish = [r for r in study("table1", "paper").rows if r.experiment.network.activation == "swish"]
    assert len(swish) == 2
    assert swish[0].experiment.trial_key(0) != swish[1].experiment.trial_key(0)
    figures = [dict(run.figures) for row in swish for run in row.published]
    assert [f["idlg_leacc"] for f in figures if "idlg_leacc" in f] == [0.089, 0.150]


def test_table5_has_the_classes_of_the_paper():
    rows = study("table5", "paper").rows
    assert {row.experiment.batch.classes for row in rows} == {(0, 18, 92)}
    restored = find("table5", stage="epoch100", batch_size=216)[0].figures
    assert restored["instances_18"] == 155


@pytest.mark.parametrize(("name", "scale"), [("figure6", "paper"), ("table1", "tiny")])
def test_unknown_names_and_scales_are_refused(unchecked, name, scale):
    with pytest.raises(ValueError, match=r"unknown (study 'figure6'|scale 'tiny'): choose one of"):
        study(name, scale)
