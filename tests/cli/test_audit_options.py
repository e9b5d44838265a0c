"""What the library can be told, the command line can, too: each option against the library."""

import json
import math

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

import labelleak as ll
from command_line import labelleak

K, C = 24, 10


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def network():
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, C))


def batch(size=K):
    generator = torch.Generator().manual_seed(7)
    inputs = torch.randn(size, 8, generator=generator) * 0.1 + 1
    return inputs, torch.randint(C, (size,), generator=generator)


def audited(*options, status=0):
    done = labelleak(
        "audit", "--before", "model.safetensors", "--update", "update.safetensors",
        "--format", "json", *options
    )  # fmt: skip
    assert (done.status, done.err) == (status, ""), done
    return json.loads(done.out)


def state_of(network):
    return {name: value.detach().clone() for name, value in network.state_dict().items()}


def write_step(folder, network, loss):
    """The gradient of one step under a loss, in files; the true counts."""
    inputs, labels = batch()
    save_file(state_of(network), folder / "model.safetensors")
    loss(network(inputs), labels).backward()
    save_file({n: p.grad for n, p in network.named_parameters()}, folder / "update.safetensors")
    return torch.bincount(labels, minlength=C)


@pytest.mark.parametrize(
    ("make", "options"),
    [
        (lambda w: nn.CrossEntropyLoss(reduction="sum"), ("--reduction", "sum")),
        (lambda w: nn.CrossEntropyLoss(label_smoothing=0.5), ("--label-smoothing", "0.5")),
        (lambda w: nn.CrossEntropyLoss(weight=w), ("--class-weights", "weights.txt")),
        (
            lambda w: nn.CrossEntropyLoss(weight=w, reduction="sum", label_smoothing=0.2),
            (
                *("--class-weights", "weights.txt", "--reduction", "sum"),
                *("--label-smoothing", "0.2"),
            ),
        ),
    ],
)
def test_the_loss_is_told_and_its_counts_are_right(folder, network, make, options):
    weights = torch.linspace(0.5, 2.0, C)
    (folder / "weights.txt").write_text(", ".join(map(str, weights.tolist())) + "\n")
    truth = write_step(folder, network, make(weights))
    # By name: one whose equations hold all of these terms.
    named = ("--batch-size", str(K), "--attack", "pooled")
    # Half of the label smoothed away leaves errors that do not explain all: right, but not sure.
    told = audited(*named, *options, status=3 if options[-1] == "0.5" else 0)
    assert told["counts"] == truth.tolist()
    # Without the option the same file tells something else: it reaches the attack.
    done = labelleak(
        "audit", "--before", "model.safetensors", "--update", "update.safetensors",
        "--format", "json", *named
    )  # fmt: skip
    untold = json.loads(done.out)
    assert untold["counts"] != truth.tolist() or untold["flags"] != told["flags"]
    source = told["source"]
    for name, value in zip(options[::2], options[1::2], strict=True):
        assert str(source[name.strip("-").replace("-", "_")]) == value


def write_training(folder, network, size, *, steps, **settings):
    """Weights after steps of SGD on batches in turn, in files; what the library would be told."""
    inputs, labels = batch(size)
    proximal = settings.pop("proximal", 0.0)
    before = state_of(network)
    save_file(before, folder / "model.safetensors")
    start = [p.detach().clone() for p in network.parameters()]
    optimizer = torch.optim.SGD(network.parameters(), lr=0.01, **settings)
    batches = list(zip(inputs.split(8), labels.split(8), strict=True))
    for step in range(steps):
        x, y = batches[step % len(batches)]
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(network(x), y)
        far = sum((p - s).square().sum() for p, s in zip(network.parameters(), start, strict=True))
        (loss + proximal / 2 * far).backward()
        optimizer.step()
    after = state_of(network)
    save_file(after, folder / "update.safetensors")
    return before, after, torch.bincount(labels, minlength=C)


@pytest.mark.parametrize(
    ("settings", "steps", "size", "options", "recipe"),
    [
        ({}, 3, 24, ("--local-steps", "3"), {"steps": 3}),
        ({"momentum": 0.9}, 3, 24, ("--local-steps", "3", "--momentum", "0.9"),
         {"steps": 3, "momentum": 0.9}),
        ({"weight_decay": 0.1}, 3, 24, ("--local-steps", "3", "--weight-decay", "0.1"),
         {"steps": 3, "weight_decay": 0.1}),
        ({"proximal": 0.5}, 3, 24, ("--local-steps", "3", "--proximal", "0.5"),
         {"steps": 3, "proximal": 0.5}),
        ({}, 6, 24, ("--local-steps", "6", "--local-epochs", "2"), {"steps": 6, "epochs": 2}),
        ({}, 6, 20, ("--local-epochs", "2", "--instances", "20"), {"epochs": 2}),
        ({}, 3, 20, ("--instances", "20"), {}),
        ({"momentum": 0.5, "weight_decay": 0.01, "proximal": 0.1}, 6, 20,
         ("--local-epochs", "2", "--instances", "20", "--momentum", "0.5", "--weight-decay", "0.01",
          "--proximal", "0.1"),
         {"epochs": 2, "momentum": 0.5, "weight_decay": 0.01, "proximal": 0.1}),
    ],
)  # fmt: skip
def test_the_training_is_told_as_the_library_is(
    folder, network, settings, steps, size, options, recipe
):
    before, after, truth = write_training(folder, network, size, steps=steps, **settings)
    # Several steps make a verdict inconclusive.
    record = audited(
        "--learning-rate", "0.01", "--batch-size", "8", "--attack", "pooled", *options, status=3
    )
    seen = ll.observe_update(
        network,
        before,
        after,
        training=ll.LocalTraining(learning_rate=0.01, batch_size=8, **recipe),
        instances=20 if size == 20 else None,
    )
    found = ll.restore(seen, "pooled")
    assert record["counts"] == found.counts.tolist()
    assert sum(record["counts"]) == size
    assert record["local_steps"] == steps == seen.local_steps
    # The steps are small: the mean of their gradients is near to that of one step on all samples.
    wrong = int((found.counts - truth).abs().sum()) // 2
    assert wrong <= 2
    for name, value in zip(options[::2], options[1::2], strict=True):
        assert record["source"][name.strip("-").replace("-", "_")] == pytest.approx(float(value))


def test_labels_tell_that_the_last_batch_was_smaller(folder, network):
    _, _, truth = write_training(folder, network, 20, steps=3)
    (folder / "labels.txt").write_text(" ".join(map(str, batch(20)[1].tolist())))
    told = ("--learning-rate", "0.01", "--local-steps", "3", "--batch-size", "8")
    record = audited(*told, "--attack", "pooled", "--labels", "labels.txt", status=3)
    assert record["true_counts"] == truth.tolist()
    assert sum(record["counts"]) == 20
    # Fewer than three batches of 8 need is a wrong file, and no smaller last batch.
    (folder / "labels.txt").write_text(" ".join(map(str, batch(16)[1].tolist())))
    done = labelleak(
        "audit", "--before", "model.safetensors", "--update", "update.safetensors",
        "--labels", "labels.txt", *told
    )  # fmt: skip
    assert (done.status, "must agree" in done.err) == (2, True)


def test_a_difference_is_read_like_the_weights(folder, network):
    before, after, truth = write_training(folder, network, 8, steps=1)
    told = ("--learning-rate", "0.01", "--batch-size", "8")
    weights = audited(*told)
    change = {name: after[name] - value for name, value in before.items()}
    save_file(change, folder / "update.safetensors")
    record = audited("--kind", "difference", *told)
    assert record["counts"] == weights["counts"] == truth.tolist()
    assert (record["source"]["kind"], weights["source"]["kind"]) == ("difference", "weights")


def test_labels_tell_the_batch_size_of_steps_and_epochs(folder, network):
    _, _, truth = write_training(folder, network, 24, steps=6)
    _, labels = batch(24)
    (folder / "labels.txt").write_text(" ".join(map(str, labels.tolist())))
    told = ("--learning-rate", "0.01", "--labels", "labels.txt", "--local-epochs", "2")
    record = audited(*told, "--local-steps", "6", status=3)
    assert record["batch_size"] == 8
    assert record["true_counts"] == truth.tolist()
    # One step an epoch, where nothing is said of steps.
    assert audited(*told, status=3)["local_steps"] == 2


_WEIGHTS = ("--learning-rate", "0.01")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--kind", "gradients", "--momentum", "0.9"), "no use for --momentum"),
        (("--weight-decay", "0.1"), "--learning-rate"),
        (("--proximal", "0.1"), "--learning-rate"),
        (("--kind", "difference"), "--learning-rate"),
        ((*_WEIGHTS, "--momentum", "1"), "momentum 1.0"),
        ((*_WEIGHTS, "--momentum", "nan"), "momentum nan"),
        ((*_WEIGHTS, "--weight-decay", "-1"), "weight decay -1.0"),
        ((*_WEIGHTS, "--proximal", "inf"), "proximal term inf"),
        (("--local-epochs", "0"), "at least 1"),
        (("--instances", "0"), "at least 1"),
        (("--instances", "9" * 400, "--batch-size", "1"), "2**53"),
        (("--local-epochs", "9" * 400), "2**53"),
        ((*_WEIGHTS, "--local-epochs", "2", "--local-steps", "3"), "same number of steps"),
        (("--label-smoothing", "1"), "label smoothing 1.0"),
        (("--label-smoothing", "nan"), "label smoothing nan"),
        (("--reduction", "max"), "'max'"),
        (("--class-weights", "three.txt", "--batch-size", "8"), "one weight per class"),
        (("--class-weights", "zero.txt"), "line 2: '0' is no class weight"),
        (("--class-weights", "model.safetensors"), "class weight"),
        (("--class-weights", "absent.txt"), "no such file"),
        (("--instances", "24", "--batch-size", "8", "--labels", "few.txt"),
         "3 true labels for 24 instances"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_one_line(folder, network, options, words):
    write_step(folder, network, nn.CrossEntropyLoss())
    (folder / "three.txt").write_text("1 2 3")
    (folder / "zero.txt").write_text("1\n0")
    (folder / "few.txt").write_text("1 2 3")
    done = labelleak(
        "audit", "--before", "model.safetensors", "--update", "update.safetensors", *options,
        "--output", "record.json"
    )  # fmt: skip
    assert (done.status, done.out, done.err.count("\n")) == (2, "", 1)
    assert words in done.err
    assert not (folder / "record.json").exists()


def test_class_weights_are_not_written_over(folder, network):
    write_step(folder, network, nn.CrossEntropyLoss())
    (folder / "weights.txt").write_text("1 " * C)
    done = labelleak(
        "audit", "--before", "model.safetensors", "--update", "update.safetensors",
        "--class-weights", "weights.txt", "--output", "weights.txt"
    )  # fmt: skip
    assert done.status == 2
    assert "would be overwritten" in done.err
    assert math.isclose(float((folder / "weights.txt").read_text().split()[0]), 1.0)
