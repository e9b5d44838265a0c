"""Audits with samples of the server's own, of one kept update and of a folder of them."""

import importlib
import json
import signal
import sys

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from command_line import labelleak
from labelleak import LocalTraining
from labelleak.attacks import restore
from labelleak.federated import train_locally
from labelleak.observation import Auxiliary
from own_plugins import written
from synthetic import rng

CLASSES, INPUTS, SAMPLES = 4, 6, 40
RECIPE = LocalTraining("sgd", 0.1, batch_size=20, momentum=0.0)
MEANS = 2 * torch.randn(CLASSES, INPUTS, generator=rng(0))
TOLD = ("--learning-rate", 0.1, "--batch-size", 20, "--instances", SAMPLES, "--optimizer", "sgd")
MODEL = ("--model", f"{__name__}:network", "--auxiliary", "auxiliary.npz")


def network():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        return nn.Sequential(
            nn.Linear(INPUTS, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, CLASSES)
        )


def samples(labels, seed):
    return MEANS[labels] + torch.randn(len(labels), INPUTS, generator=rng(seed))


def auxiliary():
    labels = torch.arange(CLASSES).repeat_interleave(20)
    return samples(labels, 2), labels


def update_of(client):
    labels = torch.randint(CLASSES, (SAMPLES,), generator=rng(client))
    return train_locally(network(), samples(labels, client), labels, RECIPE, classes=CLASSES)


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    """The model, three updates of it and their labels, and the server's samples."""
    monkeypatch.chdir(tmp_path)
    for name in ("received", "labels"):
        (tmp_path / name).mkdir()
    for client in (1, 2, 3):
        update = update_of(client)
        save_file(update.before, tmp_path / "model.safetensors")
        save_file(update.after, tmp_path / "received" / f"site-{client}.safetensors")
        labels = torch.arange(CLASSES).repeat_interleave(update.true_counts)
        (tmp_path / "labels" / f"site-{client}.txt").write_text(" ".join(map(str, labels.tolist())))
    inputs, labels = auxiliary()
    np.savez(tmp_path / "auxiliary.npz", inputs=inputs.numpy(), labels=labels.numpy())
    return tmp_path


def audit(*options, update="received"):
    return labelleak("audit", "--before", "model.safetensors", "--update", update, *TOLD, *options)


def test_the_whole_update_is_read_as_the_library_reads_it():
    update = update_of(1)
    seen = update.observe(network(), auxiliary=Auxiliary(*auxiliary()))
    one = "received/site-1.safetensors"
    done = audit(*MODEL, "--attack", "rlu", "--format", "json", update=one)
    record = json.loads(done.out)
    assert (done.status, done.err) == (3, "")
    assert record["counts"] == restore(seen, "rlu").counts.tolist()
    assert record["source"]["auxiliary"] == "auxiliary.npz"
    assert record["source"]["optimizer"] == "sgd"


@pytest.mark.parametrize("kind", ["gradients", "difference"])
def test_other_kinds_of_updates_are_read_as_well(folder, kind):
    update, file = update_of(1), folder / "one.safetensors"
    step = {
        name: value - update.before[name]
        for name, value in update.after.items()
        if value.is_floating_point()
    }
    save_file(step, file)
    size = 20 if kind == "difference" else SAMPLES
    told = ("--kind", kind, "--batch-size", size, "--instances", SAMPLES)
    more = ("--learning-rate", 0.1) if kind == "difference" else ()
    done = labelleak(
        "audit", "--before", "model.safetensors", "--update", file, *told, *more, *MODEL,
        "--attack", "rlu", "--format", "json",
    )  # fmt: skip
    assert done.err == ""
    assert sum(json.loads(done.out)["counts"]) == SAMPLES


def test_virtual_clients_serve_every_update_of_a_folder(folder):
    done = audit(
        *MODEL, "--attack", "virtual", "--time-limit", "1e-9", "--format", "json",
        "--labels", "labels", "--threshold", "0.9", "--measure", "accuracy", "--output", "records",
    )  # fmt: skip
    records = [json.loads(line) for line in done.out.splitlines()]
    assert [one["attack"] for one in records] == ["virtual"] * 3
    assert [sum(one["true_counts"]) for one in records] == [SAMPLES] * 3
    assert sorted(path.name for path in (folder / "records").iterdir()) == [
        f"site-{client}.safetensors.json" for client in (1, 2, 3)
    ]
    over = any(one["verdict"] == "over threshold" for one in records)
    assert done.status == (1 if over else 3)


COUNTED_LOSS = """
from torch.nn import functional
from labelleak import Loss

made = []

def cross_entropy():
    made.append(Loss.custom(lambda logits, labels: functional.cross_entropy(logits, labels)))
    return made[-1]
"""


def test_a_loss_of_a_module_is_made_once_for_all_updates(tmp_path):
    with written(tmp_path, "counted_loss_of_a_test", COUNTED_LOSS) as module:
        done = audit("--attack", "pooled", "--loss", f"{module}:cross_entropy")
        assert done.err == ""
        assert len(sys.modules[module].made) == 1
    assert "not audited" not in done.out
    assert len(done.out.splitlines()) >= 3


@pytest.fixture
def counted(monkeypatch):
    """The updates that were audited, by the names of their files."""
    from labelleak.cli.audit_request import AuditRequest

    run, names = AuditRequest.run, []

    def noted(self, update, *args, **options):
        names.append(update.update.name)
        return run(self, update, *args, **options)

    monkeypatch.setattr(AuditRequest, "run", noted)
    return names


def test_a_command_goes_on_where_it_stopped(folder, counted):
    first = audit("--attack", "pooled", "--output", "records")
    assert len(counted) == 3
    assert audit("--attack", "pooled", "--output", "records") == first
    assert len(counted) == 3
    # Another update of the same name, or another question, is another audit.
    save_file(update_of(7).after, folder / "received" / "site-2.safetensors")
    audit("--attack", "pooled", "--output", "records")
    assert counted[3:] == ["site-2.safetensors"]
    audit("--attack", "ilrg", "--output", "records")
    assert len(counted) == 7
    audit("--attack", "ilrg", "--head", "3", "--output", "records")
    assert len(counted) == 10


def test_a_loss_of_a_module_that_was_changed_is_another_question(folder, counted, monkeypatch):
    """As the next command would find it, in a process of its own."""
    source = (
        "import torch, labelleak\n\n"
        "def loss():\n"
        "    return labelleak.Loss.custom(torch.nn.functional.cross_entropy)\n"
    )
    module = folder / "changed_loss.py"
    module.write_text(source, encoding="utf-8")
    monkeypatch.syspath_prepend(folder)
    options = ("--attack", "pooled", "--loss", "changed_loss:loss", "--output", "records")
    audit(*options)
    audit(*options)
    assert len(counted) == 3
    module.write_text(source.replace("cross_entropy", "multi_margin_loss"), encoding="utf-8")
    monkeypatch.delitem(sys.modules, "changed_loss")
    importlib.invalidate_caches()
    audit(*options)
    assert len(counted) == 6


def test_one_damaged_update_does_not_keep_the_others_from_a_verdict(folder):
    (folder / "received" / "site-2.safetensors").write_bytes(b"{")
    done = audit("--attack", "pooled")
    lines = done.out.splitlines()
    assert len(lines) == 3
    assert lines[1].startswith("site-2.safetensors: not audited - received/site-2.safetensors: ")
    assert done.status == 2


def test_a_format_that_is_not_read_is_a_line_of_its_own(folder):
    (folder / "received" / "site-9.h5").write_bytes(b"\x89HDF")
    done = audit("--attack", "pooled")
    assert done.status == 2
    assert "site-9.h5: not audited - " in done.out
    assert "weights of Keras" in done.out


def test_an_interrupt_keeps_what_is_done_and_nothing_half_done(folder, counted, monkeypatch):
    """Also where the attack answers an interrupt with what it knows so far."""
    from labelleak.cli.audit_request import AuditRequest

    run = AuditRequest.run

    def interrupted(self, update, *args, **options):
        if update.update.name == "site-2.safetensors":
            with pytest.raises(KeyboardInterrupt):
                signal.raise_signal(signal.SIGINT)
        return run(self, update, *args, **options)

    monkeypatch.setattr(AuditRequest, "run", interrupted)
    before = signal.getsignal(signal.SIGINT)
    done = audit("--attack", "pooled", "--output", "records")
    assert done.status == 130
    assert "interrupted: 1 of 3 updates are audited" in done.err
    assert [path.name for path in (folder / "records").iterdir()] == ["site-1.safetensors.json"]
    assert signal.getsignal(signal.SIGINT) is before
    monkeypatch.setattr(AuditRequest, "run", run)
    counted.clear()
    audit("--attack", "pooled", "--output", "records")
    assert counted == ["site-2.safetensors", "site-3.safetensors"]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--auxiliary", "auxiliary.npz"), "--auxiliary needs --model"),
        ((*MODEL[:2], "--auxiliary", "none.npz"), "none.npz: no such file"),
        ((*MODEL[:2], "--auxiliary", "pickled.npz"), "pickled.npz: "),
        ((*MODEL[:2], "--auxiliary", "lone.npz"), "lone.npz: holds no labels"),
        ((*MODEL[:2], "--auxiliary", "short.npz"), "one label per input is needed"),
        ((*MODEL[:2], "--auxiliary", "nan.npz"), "NaN or infinite"),
        (("--labels", "labels/site-1.txt"), "of a folder of updates it is a folder, too"),
        (("--output", "model.safetensors"), "of a folder of updates it is a folder, too"),
    ],
    ids=str,
)
def test_what_cannot_be_is_one_line(folder, options, words):
    inputs, labels = (value.numpy() for value in auxiliary())
    np.savez(folder / "lone.npz", inputs=inputs)
    np.savez(folder / "short.npz", inputs=inputs, labels=labels[:3])
    np.savez(folder / "nan.npz", inputs=inputs * np.nan, labels=labels)
    np.savez(folder / "pickled.npz", inputs=inputs, labels=np.array([print] * 3, dtype=object))
    update = "received/site-1.safetensors" if "--auxiliary" in options else "received"
    done = audit("--attack", "rlu", *options, update=update)
    assert (done.status, done.out) == (2, "")
    assert words in done.err
    assert len(done.err.splitlines()) == 1


@pytest.mark.parametrize(
    ("file", "words"),
    [
        ({"0.weight": torch.zeros(2, 2)}, "another shape than in the network"),
        ({"x": torch.zeros(2, 2)}, "has no tensor of the network"),
    ],
    ids=str,
)
def test_an_update_of_another_network_is_one_line(folder, file, words):
    save_file(file, folder / "other.safetensors")
    done = audit(*MODEL, "--attack", "rlu", update="other.safetensors")
    assert (done.status, done.out) == (2, "")
    assert words in done.err


def test_an_empty_folder_is_one_line(folder):
    (folder / "empty").mkdir()
    done = audit(update="empty")
    assert done.status == 2
    assert "empty: holds no update" in done.err


def test_advice_is_of_one_update():
    done = labelleak("advise", "--before", "model.safetensors", "--update", "received")
    assert done.status == 2
    assert "is a folder" in done.err
