"""Losses on the command line, against torch's own losses."""

import json
import sys

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from command_line import labelleak

K, LABELS = 40, 10


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def write_step(outputs, loss, targets):
    torch.manual_seed(1)
    network = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, outputs))
    save_file({n: v.detach().clone() for n, v in network.state_dict().items()}, "model.safetensors")
    inputs = torch.randn(K, 8, generator=torch.Generator().manual_seed(7)) * 0.05 + 1
    loss(network(inputs), targets).backward()
    save_file({n: p.grad for n, p in network.named_parameters()}, "update.safetensors")


def audited(*options, status=0):
    done = labelleak(
        "audit", "--before", "model.safetensors", "--update", "update.safetensors",
        "--format", "json", *options
    )  # fmt: skip
    assert (done.status, done.err) == (status, ""), done
    return json.loads(done.out)


def label_sets():
    chance = torch.linspace(0.1, 0.6, LABELS)
    return (torch.rand(K, LABELS, generator=torch.Generator().manual_seed(3)) < chance).long()


@pytest.mark.usefixtures("folder")
def test_label_sets_are_counted_and_scored():
    sets, weights = label_sets(), torch.linspace(0.5, 1.5, LABELS)
    write_step(LABELS, nn.BCEWithLogitsLoss(pos_weight=weights), sets.float())
    with open("weights.txt", "w") as file:
        file.write(" ".join(map(str, weights.tolist())))
    with open("labels.txt", "w") as file:
        file.write("\n".join(" ".join(map(str, row)) for row in sets.tolist()))
    options = ("--loss", "bce", "--positive-weights", "weights.txt", "--labels", "labels.txt")
    record = audited(*options, "--threshold", "0.5", status=1)
    assert record["counts"] == sets.sum(dim=0).tolist() == record["true_counts"]
    assert record["score"]["exact"] is True
    assert record["batch_size"] == K
    assert record["source"]["loss"] == "bce"
    table = labelleak(
        "audit", "--before", "model.safetensors", "--update", "update.safetensors", *options
    )
    assert "Score:" in table.text


@pytest.mark.usefixtures("folder")
def test_small_label_counts_are_told_without_the_labels():
    sets = label_sets()
    write_step(LABELS, nn.BCEWithLogitsLoss(), sets.float())
    small = ("--loss", "bce", "--batch-size", K, "--measure", "small-cells")
    record = audited(*small, status=1)
    told = int((sets.sum(dim=0) < 10).sum())
    assert f"tells {told} classes with fewer than 10 samples" in record["reason"]


@pytest.mark.usefixtures("folder")
def test_label_sets_have_no_guess_to_gain_on():
    write_step(LABELS, nn.BCEWithLogitsLoss(), label_sets().float())
    record = audited("--loss", "bce", "--batch-size", K)
    assert (record["measure"], record["samples"]) == ("accuracy", K)


@pytest.mark.usefixtures("folder")
def test_advice_reads_label_sets():
    sets = label_sets()
    write_step(LABELS, nn.BCEWithLogitsLoss(), sets.float())
    with open("labels.txt", "w") as file:
        file.write("\n".join(" ".join(map(str, row)) for row in sets.tolist()))
    done = labelleak(
        *("advise", "--before", "model.safetensors", "--update", "update.safetensors"),
        *("--loss", "bce", "--labels", "labels.txt", "--format", "json", "--time-limit", "0.2"),
    )
    assert (done.status, done.err) == (1, "")
    audit = json.loads(done.out)["audit"]
    assert audit["true_counts"] == sets.sum(dim=0).tolist()
    assert audit["batch_size"] == K


@pytest.mark.usefixtures("folder")
def test_one_logit_is_two_classes():
    own = torch.arange(K) % 4 == 0
    write_step(1, nn.BCEWithLogitsLoss(), own.float()[:, None])
    record = audited("--loss", "bce", "--batch-size", K, status=3)
    assert record["classes"] == 2
    assert sum(record["counts"]) == K
    assert abs(record["counts"][1] - 10) <= 3  # one row tells no more
    refused = labelleak("audit", "--before", "model.safetensors", "--update", "update.safetensors")
    assert refused.status == 2
    assert "which loss='bce' reads (--loss bce)" in refused.err


@pytest.mark.usefixtures("folder")
def test_a_loss_that_was_not_told_is_named():
    write_step(LABELS, nn.BCEWithLogitsLoss(), label_sets().float())
    record = audited("--batch-size", K, status=3)
    texts = {flag["name"]: flag["text"] for flag in record["flags"]}
    assert "say loss='bce' (--loss bce)" in texts["looks_like_sigmoids"]
    assert "looks_like_sigmoids" in record["reason"]


MODULE = """
from torch.nn import functional
from labelleak import Loss

def sharp(gamma=1.0):
    return Loss.custom(lambda logits, labels: functional.cross_entropy(gamma * logits, labels))
"""


def test_a_loss_of_a_module_takes_the_options_as_arguments(folder, monkeypatch):
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.setattr("labelleak.plugins.loading._folders", [])
    (folder / "own").mkdir()
    (folder / "own" / "own_losses_of_a_test.py").write_text(MODULE)
    labels = torch.arange(K) % LABELS
    write_step(LABELS, lambda z, y: nn.functional.cross_entropy(5 * z, y), labels)
    named = ("--loss", "own_losses_of_a_test:sharp", "--batch-size", K)
    try:
        refused = labelleak("audit", "--before", "model.safetensors", "--update",
                            "update.safetensors", *named)  # fmt: skip
        assert refused.status == 2
        assert "there is no module 'own_losses_of_a_test' in the installed" in refused.err
        record = audited(*named, "--gamma", "5", "--module-dir", "own")
        assert record["counts"] == torch.bincount(labels).tolist()
        assert record["source"]["loss"] == "own_losses_of_a_test:sharp"
        done = labelleak("audit", "--before", "model.safetensors", "--update",
                         "update.safetensors", *named, "--reduction", "sum")  # fmt: skip
        assert done.status == 2
        assert "has no parameter 'reduction': its parameters are gamma" in done.err
    finally:
        sys.modules.pop("own_losses_of_a_test", None)


@pytest.mark.usefixtures("folder")
@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--loss", "focl"), "'focl' is not one of 'cross_entropy', 'focal'"),
        (("--loss", "bce", "--label-smoothing", "0.1"), "label_smoothing is of 'cross_entropy'"),
        (("--loss", "bce", "--gamma", "2"), "gamma is of 'focal' or 'sigmoid_focal'"),
        (("--loss", "focal", "--gamma", "-1"), "gamma -1.0: it must be at least 0"),
        (("--temperature", "0"), "temperature 0.0: it must be positive"),
        (("--loss", "bce", "--labels", "labels.txt"), "3 numbers for 10 labels"),
        (("--loss", "bce", "--positive-weights", "labels.txt"), "is no positive weight"),
    ],
)
def test_what_does_not_fit_is_one_line(options, message):
    write_step(LABELS, nn.BCEWithLogitsLoss(), label_sets().float())
    with open("labels.txt", "w") as file:
        file.write("0 1 1\n")
    done = labelleak(
        "audit", "--before", "model.safetensors", "--update", "update.safetensors", *options
    )
    assert done.status == 2
    assert message in " ".join(done.err.split())


@pytest.mark.usefixtures("folder")
def test_pixels_are_counted():
    torch.manual_seed(1)
    network = nn.Sequential(nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 1, 1))
    images = torch.rand(4, 1, 10, 10, generator=torch.Generator().manual_seed(2))
    masks = (torch.arange(400).reshape(4, 1, 10, 10) % 10 == 3).float()
    nn.BCEWithLogitsLoss()(network(images), masks).backward()
    save_file({n: v.detach().clone() for n, v in network.state_dict().items()}, "model.safetensors")
    save_file({n: p.grad for n, p in network.named_parameters()}, "update.safetensors")
    record = audited("--loss", "bce", "--pixels", "100", "--batch-size", "4", status=3)
    assert abs(record["counts"][1] - 40) <= 3
    assert record["samples"] == 400
    record = audited("--loss", "bce", "--pixels", "0", status=3)
    assert abs(record["proportions"][1] - 0.1) < 0.01
    refused = labelleak(
        *("audit", "--before", "model.safetensors", "--update", "update.safetensors"),
        *("--loss", "bce"),
    )
    assert refused.status == 2
    assert "--loss bce --pixels N" in " ".join(refused.err.split())
