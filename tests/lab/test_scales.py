import pytest

from labelleak.lab.paper import names, study
from labelleak.lab.sources import PUBLISHED_SOURCES, Source

AT_HAND = {
    "mnist": Source("mnist"),
    "cifar100": Source("tiny-imagenet-100"),
    "imagenet": Source("imagenet", "test", replacement=True),
}
every_study = pytest.mark.parametrize("name", names())


@every_study
def test_smoke_runs_on_the_embedded_digits_alone(name):
    found = study(name, "smoke", dict.fromkeys(PUBLISHED_SOURCES))
    assert len(found.rows) == len(study(name, "paper").rows)
    for row in found.rows:
        assert row.experiment.data == "mnist-sample"
        assert row.experiment.stands_in_for in ("mnist", "cifar100", "imagenet")
        assert row.experiment.trials == (1 if name == "figure4" else 3)
        assert not row.experiment.network.name.startswith("vgg")
        training = row.experiment.training
        assert training is None or training.total * training.batch_size <= 1000


@every_study
def test_quick_lists_everything_that_it_shrinks(name):
    full = {row.label: row for row in study(name, "paper").rows}
    found = study(name, "quick", AT_HAND)
    for row in found.rows:
        ours, theirs = row.experiment, full[row.label].experiment
        ignored = {"name", "data", "data_split", "stands_in_for", "batch"}
        same = ours.model_dump(exclude=ignored) == theirs.model_dump(exclude=ignored)
        assert same == (row.shrunk == full[row.label].shrunk)
        assert ours.batch.size == theirs.batch.size
        assert ours.network == theirs.network
        assert (ours.stands_in_for is not None) == (theirs.data == "cifar100")
        again = theirs.batch.replacement or "images used several times" in row.shrunk
        assert ours.batch.replacement == (theirs.data == "imagenet" or again)
        for text in row.shrunk:
            assert any(text in line for line in found.omitted)
        # The quick stages are as far along as the published ones.
        if theirs.training is not None:
            share = theirs.training.steps / theirs.training.total
            assert ours.training.steps / ours.training.total == pytest.approx(share, abs=1e-9)


def test_table1_at_the_quick_scale_has_all_trials_on_mnist_and_its_stand_in():
    rows = study("table1", "quick", AT_HAND).rows
    trials = {(row.experiment.data, row.experiment.trials) for row in rows}
    assert trials == {("mnist", 50), ("tiny-imagenet-100", 50), ("imagenet", 10)}
    fcn = rows[0].experiment
    assert (fcn.network.name, fcn.network.seed, fcn.batch.size) == ("fcn-3", 13, 24)
    assert fcn.attacks == ("ilrg", "idlg", "gradinversion", "rlg")


def test_rows_without_images_are_left_out_and_listed():
    found = study("table1", "quick", {**AT_HAND, "imagenet": None})
    assert {row.experiment.data for row in found.rows} == {"mnist", "tiny-imagenet-100"}
    left = sum(r.experiment.data == "imagenet" for r in study("table1", "paper").rows)
    text = f"left out: there are no images for ImageNet ({left} of {len(found.rows) + left} rows)"
    assert text in found.omitted
