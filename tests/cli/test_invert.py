import io
import json
import re
import stat
import sys
from typing import get_args

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import nn

from command_line import labelleak
from labelleak.cli.invert import invert_command
from labelleak.inversion import LabelMode, methods
from labelleak.inversion.reconstruction import METHODS
from labelleak.lab.datasets import load
from labelleak.lab.networks import build


@pytest.fixture(scope="module")
def client(tmp_path_factory):
    """A model, the gradients of two digits on it, and the digits."""
    folder = tmp_path_factory.mktemp("client")
    digits = load("mnist-sample")
    indices = torch.tensor([4, 9])
    inputs, labels = digits.batch(indices)
    model = build("fcn-2", classes=10, image_shape=(1, 28, 28), seed=1).eval()
    nn.functional.cross_entropy(model(inputs), labels).backward()
    save_file(model.state_dict(), folder / "model.safetensors")
    gradients = {name: p.grad for name, p in model.named_parameters()}
    save_file(gradients, folder / "gradients.safetensors")
    save_file({"images": digits.images[indices] / 255}, folder / "truth.safetensors")
    other = gradients | {"hidden.0.bias": torch.zeros(7)}
    save_file(other, folder / "other.safetensors")
    (folder / "labels.txt").write_text(" ".join(map(str, labels.tolist())))
    return folder


@pytest.fixture
def invert(client, tmp_path, monkeypatch):
    """Runs the command on the client's files."""
    monkeypatch.chdir(client)

    def run(*options, **changes):
        named = {
            "--before": "model.safetensors",
            "--gradients": "gradients.safetensors",
            "--model": "fcn-2",
            "--image-shape": "1x28x28",
            "--batch-size": "2",
            "--mean": "0.1307",
            "--std": "0.3081",
            "--out": str(tmp_path),
        } | {f"--{name.replace('_', '-')}": value for name, value in changes.items()}
        words = [word for pair in named.items() for word in pair]
        return labelleak("invert", *words, *options)

    return run


def test_pictures_and_record_are_written_and_scored(invert, tmp_path):
    done = invert(
        *("--truth", "truth.safetensors", "--label-file", "labels.txt"),
        *("--iterations", "60", "--seed", "3", "--format", "json"),
    )
    assert done.status == 0, done.err
    record = json.loads(done.out)
    assert record == json.loads((tmp_path / "record.json").read_text())
    assert record["schema"] == "labelleak/inversion/1"
    assert record["settings"]["iterations"] == 60
    assert record["settings"]["dtype"] == "float32"
    result = record["result"]
    assert (result["mode"], result["attack"], result["interrupted"]) == ("restored", "exact", False)
    assert record["score"]["lpips"] == "not available"
    # The PSNR is that of the pictures, but for their eight bits.
    truth = load("mnist-sample").images[[4, 9], 0].numpy() / 255
    for place, expected in enumerate(record["score"]["psnr"]):
        assert expected > 15
        with Image.open(tmp_path / f"image-{place:03}.png") as picture:
            error = ((np.asarray(picture) / 255 - truth[place]) ** 2).mean()
        assert -10 * np.log10(error) == pytest.approx(expected, abs=0.2)
    with Image.open(io.BytesIO((tmp_path / "images.png").read_bytes())) as picture:
        assert picture.size == (2 * 30 + 2, 30 + 2)
    page = tmp_path / "report.html"
    told = re.findall(r"off by (\d+)% <span>PSNR", page.read_text(encoding="utf-8"))
    errors = sorted(10 ** (-psnr / 20) for psnr in record["score"]["psnr"])
    assert told == [f"{100 * error:.0f}" for error in errors]
    # It holds the true images.
    assert stat.S_IMODE(page.stat().st_mode) == 0o600


def test_the_table_says_what_was_done(invert, tmp_path):
    done = invert("--iterations", "2", "--labels", "free", "--double")
    assert (done.status, done.err) == (0, "")
    text = " ".join(done.out.split())
    assert "Method ig; labels free; distance" in text
    assert "after 2 iterations" in text
    assert "images.png" in text
    assert "report.html" in text
    record = json.loads((tmp_path / "record.json").read_text())
    assert record["settings"]["dtype"] == "float64"
    assert (record["score"], record["order"]) == (None, None)
    assert len(record["result"]["labels"]) == 2


def test_given_labels_come_from_a_file(invert, tmp_path):
    done = invert("--iterations", "2", "--labels", "given", "--label-file", "labels.txt")
    assert done.status == 0, done.err
    result = json.loads((tmp_path / "record.json").read_text())["result"]
    assert (result["mode"], result["attack"]) == ("given", None)


@pytest.mark.parametrize("method", ["dlg", "analytic"])
def test_other_methods(invert, tmp_path, method):
    options = ("--iterations", "1") if method == "dlg" else ()
    done = invert("--method", method, *options)
    assert done.status == 0, done.err
    assert json.loads((tmp_path / "record.json").read_text())["result"]["method"] == method


def test_an_interruption_writes_the_best_so_far(invert, tmp_path, monkeypatch):
    iterate = methods.IG.iterate

    def interrupted(self, *arguments):
        for number, distance in enumerate(iterate(self, *arguments), start=1):
            if number == 3:
                raise KeyboardInterrupt
            yield distance

    monkeypatch.setattr(methods.IG, "iterate", interrupted)
    done = invert("--iterations", "50")
    assert done.status == 130
    assert "interrupted: the best so far" in " ".join(done.out.split())
    result = json.loads((tmp_path / "record.json").read_text())["result"]
    assert (result["interrupted"], result["iterations"]) == (True, 2)
    assert (tmp_path / "image-001.png").exists()


@pytest.mark.parametrize("missing", ["PIL", "torchmetrics.functional.image"])
def test_what_is_missing_after_the_search_is_told_before_it(invert, monkeypatch, missing):
    monkeypatch.setitem(sys.modules, missing, None)
    monkeypatch.setattr(methods.IG, "iterate", lambda *arguments: pytest.fail("it began"))
    done = invert(truth="truth.safetensors")
    assert done.status == 2
    assert "pip install 'labelleak[images]'" in done.err


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model": "fcn-3"}, "is not of fcn-3: 'hidden.2.weight' is not there"),
        ({"model": "lenet5"}, "is not of lenet5"),
        ({"gradients": "other.safetensors"}, "is not of fcn-2: 'hidden.0.bias' is 7"),
        ({"out": "labels.txt/pictures"}, "labels.txt is no folder"),
        ({"image_shape": "1x14x14"}, "'hidden.0.weight' is 300x784, and 300x196 is needed"),
        ({"before": "truth.safetensors"}, "no final linear layer"),
        ({"gradients": "truth.safetensors"}, "holds 'images', and the network has no such"),
        ({"gradients": "missing.safetensors"}, "no such file"),
        ({"mean": "0.1,0.2,0.3"}, "one number for each of 1 channels"),
        ({"truth": "model.safetensors"}, "a tensor 'images' of 2x1x28x28 is needed"),
        ({"batch_size": "3", "label_file": "labels.txt"}, "2 labels for 3 images"),
    ],
)
def test_what_does_not_fit_is_one_line(invert, tmp_path, changes, message):
    done = invert("--iterations", "1", **changes)
    assert done.status == 2
    assert done.err.count("\n") == 1
    assert done.err.startswith("labelleak: ")
    assert message in done.err
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model": "fcn-0"}, "unknown network 'fcn-0'"),
        ({"stem": "paper"}, "fcn-2 cannot have stem"),
        ({"image_shape": "28x28"}, "channels x height x width are needed"),
        ({"image_shape": "2x14x28"}, "one channel (gray) or three"),
        ({"mean": "gray"}, "numbers separated by commas"),
        ({"labels": "given"}, "--label-file FILE"),
        ({"method": "analytic", "iterations": "3"}, "analytic has no iterations"),
        ({"method": "dlg", "learning_rate": "1"}, "dlg has no learning_rate"),
        ({"learning_rate": "-1"}, "it must be positive"),
        ({"seed": "-1"}, "-1 is not in the range 0<=x<=9223372036854775807"),
        ({"seed": str(2**64)}, "18446744073709551616 is not in the range"),
    ],
)
def test_wrong_usage_is_told(invert, changes, message):
    done = invert(**changes)
    assert done.status == 2
    assert message in " ".join(done.err.split())


def test_the_choices_are_those_of_the_library():
    """They are written out, as the help needs no torch."""
    choices = {p.name: tuple(getattr(p.type, "choices", ())) for p in invert_command.params}
    assert choices["method"] == tuple(METHODS)
    assert choices["mode"] == get_args(LabelMode)
