import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from command_line import labelleak
from labelleak import LocalTraining
from labelleak.federated import train_locally
from labelleak.lab.demo import network, run_client


@pytest.fixture
def files(tmp_path):
    return run_client(tmp_path)


@pytest.fixture
def run_advise(files):
    def run(*options, labels=True):
        given = ("--labels", files.labels) if labels else ("--batch-size", "24")
        return labelleak(
            *("advise", "--before", files.before, "--update", files.weights),
            *("--learning-rate", "0.1", *given, *options),
        )

    return run


def test_changes_are_shown_with_price_and_gain(run_advise, files, tmp_path):
    output = tmp_path / "advice.json"
    client = ("--model", "labelleak.lab.demo:network", "--data", files.data)
    done = run_advise(*client, "--output", output, "--time-limit", "0.2")
    assert (done.status, done.err) == (1, "")
    assert done.out.startswith("As it is: over threshold")
    assert "Limit: at most 50.0% of what a guess leaves open (--measure and" in done.out
    assert "Gaussian, 0.1 times a typical entry" in done.out
    advice = json.loads(output.read_text())
    assert advice["schema"] == "labelleak/advice/1"
    assert advice["audit"]["score"]["exact"] is True
    assert {"batch size", "a later round"} <= {one["name"] for one in advice["changes"]}
    assert advice["untried"] == []


def test_without_the_client_it_says_what_is_missing(run_advise):
    done = run_advise("--format", "json", "--time-limit", "0.2", labels=False)
    (untried,) = json.loads(done.out)["untried"]
    assert "the model and the data" in untried["why"]
    assert json.loads(done.out)["summary"].startswith("without labels nothing here is measured")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--model", "labelleak.lab.demo:network"), "--model needs --data"),
        (("--model", "nothing.there:network", "--data", "data.safetensors"), "nothing.there"),
        (("--model", "labelleak.lab.demo:absent", "--data", "data.safetensors"), "absent"),
        (("--model", "labelleak.lab.demo:LEARNING_RATE", "--data", "data.safetensors"), "float"),
        (("--model", f"{__name__}:small", "--data", "data.safetensors"), "is not of the network"),
        (("--model", f"{__name__}:no_network", "--data", "data.safetensors"), "no network"),
        (("--model", "labelleak.lab.demo:network", "--data", "inputs.safetensors"), "no labels"),
        (("--model", "labelleak.lab.demo:network", "--data", "float.safetensors"), "whole number"),
        (("--measure", "exact", "--threshold", "0.5"), "has no --threshold"),
        (("--floor", "5"), "--floor goes with"),
    ],
)
def test_what_cannot_be_used_is_one_line(run_advise, tmp_path, monkeypatch, options, words):
    monkeypatch.chdir(tmp_path)
    inputs = torch.rand(4, 1, 28, 28)
    save_file({"inputs": inputs}, "inputs.safetensors")
    save_file({"inputs": inputs, "labels": torch.zeros(4)}, "float.safetensors")
    done = run_advise(*options)
    assert (done.status, done.out) == (2, "")
    assert done.err.count("\n") == 1
    assert words in done.err


@pytest.mark.parametrize("outputs", [1, 4])
def test_a_client_with_sigmoids_is_advised(tmp_path, monkeypatch, outputs):
    monkeypatch.chdir(tmp_path)
    before = zeros(outputs).state_dict()
    inputs = torch.rand(24, 3, generator=torch.Generator().manual_seed(0))
    targets = (torch.arange(24)[:, None] % torch.arange(3, 3 + outputs) == 0).long()
    labels = targets[:, 0] if outputs == 1 else targets
    recipe = LocalTraining(learning_rate=0.1)
    update = train_locally(
        zeros(outputs), inputs[:8], labels[:8], recipe, classes=max(2, outputs), loss="bce"
    )
    save_file(before, "before.safetensors")
    save_file(update.after, "after.safetensors")
    save_file({"inputs": inputs, "labels": labels}, "data.safetensors")
    rows = labels[:8].reshape(8, outputs).tolist()
    Path("labels.txt").write_text("".join(" ".join(map(str, row)) + "\n" for row in rows))
    made = "zeros" if outputs == 1 else "zeros_of_four"
    done = labelleak(
        *("advise", "--before", "before.safetensors", "--update", "after.safetensors"),
        *("--learning-rate", "0.1", "--batch-size", "8", "--loss", "bce", "--attack", "pooled"),
        *("--labels", "labels.txt", "--model", f"{__name__}:{made}", "--data", "data.safetensors"),
        *("--format", "json"),
    )
    assert (done.status, done.err) == (1, "")
    advice = json.loads(done.out)
    assert advice["audit"]["counts"] == update.true_counts.tolist()
    assert {"batch size", "local steps", "a later round"} <= {
        one["name"] for one in advice["changes"]
    }


def zeros(outputs=1):
    model = nn.Linear(3, outputs)
    nn.init.zeros_(model.weight)
    nn.init.zeros_(model.bias)
    return model


def zeros_of_four():
    return zeros(4)


def small():
    return nn.Linear(3, 2)


def no_network():
    return {}


def test_the_demos_network_is_the_one_that_was_handed_out(files):
    state, stored = network().state_dict(), load_file(files.before)
    assert set(state) == set(stored)
    assert all(torch.equal(state[name], value) for name, value in stored.items())
