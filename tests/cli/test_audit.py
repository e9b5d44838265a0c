import json
import os
import pickle
import struct
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from command_line import labelleak
from labelleak.metrics import counts_of


class _Creates:
    """Unpickling this would create a file."""

    def __init__(self, path):
        self._path = path

    def __reduce__(self):
        return (Path.touch, (self._path,))


@pytest.fixture
def files(tmp_path):
    """A model, its gradients and its weights after one step; 24 labels of ten classes."""
    torch.manual_seed(1)
    model = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 10))
    inputs, labels = torch.randn(24, 8) * 0.1 + 1, torch.randint(10, (24,))
    save_file(model.state_dict(), tmp_path / "model.safetensors")
    nn.functional.cross_entropy(model(inputs), labels).backward()
    gradients = {name: value.grad for name, value in model.named_parameters()}
    save_file(gradients, tmp_path / "gradients.safetensors")
    torch.optim.SGD(model.parameters(), lr=0.5).step()
    save_file(model.state_dict(), tmp_path / "weights.safetensors")
    (tmp_path / "labels.txt").write_text(", ".join(map(str, labels.tolist())))
    return tmp_path, counts_of(labels, 10).tolist(), gradients


@pytest.fixture
def run_audit(files, monkeypatch):
    """Runs the command on the files."""
    folder = files[0]
    monkeypatch.chdir(folder)

    def run(*options, update="gradients.safetensors", before="model.safetensors"):
        return labelleak(
            "audit", "--before", folder / before, "--update", folder / update, *options
        )

    return run


@pytest.mark.parametrize(
    ("update", "options"),
    [
        ("gradients.safetensors", ()),
        ("weights.safetensors", ("--kind", "weights", "--learning-rate", "0.5")),
        ("weights.safetensors", ("--learning-rate", "0.5")),
    ],
)
def test_gradients_and_weights_give_the_true_counts(run_audit, files, update, options):
    _, truth, _ = files
    done = run_audit("--batch-size", "24", "--format", "json", *options, update=update)
    assert (done.status, done.err) == (0, "")
    record = json.loads(done.out)
    assert record["attack"] in ("pooled", "ilrg")
    assert record["head"] == "2"
    assert record["counts"] == truth


def test_labels_and_threshold_decide_the_exit_status(run_audit, files):
    folder, truth, _ = files
    options = ("--batch-size", "24", "--labels", str(folder / "labels.txt"))
    output = folder / "record.json"
    over = run_audit(*options, "--threshold", "0.5", "--output", str(output))
    assert over.status == 1
    assert "over threshold" in over.out
    record = json.loads(output.read_text())
    assert record["score"]["exact"] is True
    assert record["true_counts"] == truth
    assert run_audit(*options, "--threshold", "1.0").status == 0


@pytest.mark.parametrize(
    ("options", "status", "words"),
    [
        (("--measure", "advantage", "--threshold", "0.5"), 1, "100.0% of what the guess leaves"),
        (("--measure", "advantage", "--threshold", "1"), 0, "at or under the limit of 100.0%"),
        (("--measure", "accuracy"), 0, "no limit was set"),
        (("--measure", "small-cells"), 1, "all 10 classes that the rule hides (fewer than 10"),
        (("--measure", "small-cells", "--floor", "2"), 1, "(fewer than 2 samples, or none)"),
        (("--measure", "exact"), 1, "restored all counts exactly"),
        ((), 0, "set a limit, and this becomes a verdict"),
    ],
)
def test_an_update_is_judged_by_its_measure(run_audit, options, status, words):
    done = run_audit("--labels", "labels.txt", *options)
    assert (done.status, done.err) == (status, "")
    assert words in " ".join(done.out.split())


def test_a_prior_is_what_the_guess_knows(run_audit, files):
    folder, truth, _ = files
    (folder / "prior.txt").write_text(" ".join(map(str, truth)))
    options = ("--labels", "labels.txt", "--prior", "prior.txt", "--format", "json")
    score = json.loads(run_audit(*options).out)["score"]
    assert (score["guess"], score["relative_advantage"]) == (1.0, 0.0)
    (folder / "prior.txt").write_text("1 2 3")
    assert_refused(run_audit(*options), "3 shares for 10 classes", folder)


def test_the_sites_own_samples_give_a_ceiling(run_audit, files, monkeypatch):
    folder, *_ = files
    torch.manual_seed(1)
    model = network()
    inputs, labels = torch.randn(24, 8) * 0.1 + 1, torch.randint(10, (24,))
    more = torch.randn(96, 8) * 0.1 + 1
    labels = torch.cat([labels, torch.arange(96) % 10])
    save_file({"inputs": torch.cat([inputs, more]), "labels": labels}, folder / "data.safetensors")
    assert model.state_dict().keys() == load_file(folder / "model.safetensors").keys()
    options = ("--labels", "labels.txt", "--model", f"{__name__}:network")
    done = run_audit(*options, "--data", "data.safetensors")
    assert "An attack that knows only moments" in done.out
    assert_refused(run_audit(*options[:2], "--data", "data.safetensors"), "--data needs", folder)


def test_the_model_alone_is_enough_for_attacks_that_need_it(run_audit, files):
    options = ("--attack", "calibrated", "--format", "json")
    assert_refused(run_audit(*options), "'calibrated' needs", files[0])
    done = run_audit(*options, "--model", f"{__name__}:network")
    record = json.loads(done.out)
    assert (record["attack"], record["samples"]) == ("calibrated", 24)
    assert record["source"]["model"].endswith(":network")


def network():
    return nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 10))


def test_a_doubtful_update_is_inconclusive(run_audit, files):
    folder, _, gradients = files
    noise = torch.Generator().manual_seed(0)
    noisy = {n: g + 0.05 * torch.randn(g.shape, generator=noise) for n, g in gradients.items()}
    save_file(noisy, folder / "noisy.safetensors")
    done = run_audit("--batch-size", "24", update="noisy.safetensors")
    assert done.status == 3
    assert "sums_not_zero" in done.out


def test_without_a_batch_size_shares_are_shown(run_audit):
    done = run_audit("--attack", "ilrg")
    assert done.status == 0
    assert "restored share" in done.out
    assert "batch size unknown" in done.out


def bad_updates(folder, gradients):
    """Every kind of bad update by name, with words that its one line must hold."""
    weight, bias = gradients["2.weight"], gradients["2.bias"]
    save_file({"2.weight": weight * torch.nan, "2.bias": bias}, folder / "nan.safetensors")
    save_file({"2.weight": weight, "2.bias": bias / 0}, folder / "inf.safetensors")
    save_file({n: g * 0 for n, g in gradients.items()}, folder / "zero.safetensors")
    save_file({"fc.weight": weight, "fc.bias": bias}, folder / "names.safetensors")
    narrow = {"2.weight": weight[:, 1:].contiguous(), "2.bias": bias}
    save_file(narrow, folder / "shapes.safetensors")
    whole = (folder / "gradients.safetensors").read_bytes()
    (folder / "truncated.safetensors").write_bytes(whole[:-100])
    (folder / "empty.safetensors").write_bytes(b"")
    (folder / "huge.safetensors").write_bytes(struct.pack("<Q", 100 * 10**9) + whole[8:])
    (folder / "pickle.pt").write_bytes(pickle.dumps(_Creates(folder / "was-unpickled")))
    torch.save({"2.weight": weight, "x": _Creates(folder / "was-unpickled")}, folder / "object.pt")
    return {
        "nan.safetensors": "NaN or infinite",
        "inf.safetensors": "NaN or infinite",
        "zero.safetensors": "zero everywhere",
        "names.safetensors": "no tensor '2.weight'",
        "shapes.safetensors": "not of the same model",
        "truncated.safetensors": "not readable",
        "empty.safetensors": "not readable",
        "huge.safetensors": "not readable",
        "pickle.pt": "run its code",
        "object.pt": "run its code",
        "absent.safetensors": "no such file",
    }


def assert_refused(done, words, folder):
    assert done.status == 2
    assert done.out == ""
    assert done.err.count("\n") == 1
    assert words in done.err
    assert "Traceback" not in done.err
    assert not (folder / "record.json").exists()


def test_bad_updates_are_one_line_each_and_write_nothing(run_audit, files):
    folder, _, gradients = files
    output = ("--output", str(folder / "record.json"))
    for update, words in bad_updates(folder, gradients).items():
        assert_refused(run_audit("--batch-size", "24", *output, update=update), words, folder)
    assert not (folder / "was-unpickled").exists()


_WEIGHTS = ("--learning-rate", "0.5")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--batch-size", "0"), "at least 1"),
        (("--batch-size", "-3"), "at least 1"),
        (("--batch-size", "2"), "too small"),
        (("--batch-size", str(2**53)), "2**53"),
        (("--batch-size", "9" * 4000), "2**53"),
        (("--batch-size", "24.5"), "not a valid integer"),
        ((*_WEIGHTS, "--batch-size", str(2**52), "--local-steps", "2"), "2**53"),
        ((*_WEIGHTS, "--local-steps", "9" * 400), "2**53"),
        (("--kind", "weights"), "--learning-rate"),
        (("--kind", "gradients", *_WEIGHTS), "--kind gradients has no use"),
        (("--learning-rate", "-1"), "positive"),
        (("--learning-rate", "0"), "positive"),
        (("--learning-rate", "nan"), "positive"),
        (("--learning-rate", "inf"), "positive"),
        ((*_WEIGHTS, "--local-steps", "0"), "at least 1"),
        (("--local-steps", "0"), "at least 1"),
        (("--head", "7"), "'7'"),
        (("--batch-size", "24", "--labels", "out-of-range.txt"), "line 2: '10' is no label"),
        (("--batch-size", "24", "--labels", "words.txt"), "'cat'"),
        (("--batch-size", "24", "--labels", "few.txt"), "they must agree"),
        (("--local-steps", "2", "--labels", "few.txt"), "not 2 batches"),
        (("--batch-size", "24", "--labels", "none.txt"), "no such file"),
        (("--batch-size", "24", "--labels", "empty.txt"), "no labels"),
        (("--batch-size", "24", "--threshold", "0.5"), "--labels"),
        (("--labels", "labels.txt", "--threshold", "nan"), "from 0 to 1"),
        (("--labels", "labels.txt", "--threshold", "-0.1"), "from 0 to 1"),
        (("--labels", "labels.txt", "--threshold", "50"), "from 0 to 1"),
        (("--labels", "labels.txt", "--floor", "5"), "--floor goes with"),
        (("--labels", "labels.txt", "--measure", "small-cells", "--floor", "1"), "at least 2"),
    ],
)
def test_bad_options_are_one_line_each(run_audit, files, options, words):
    folder, _, _ = files
    (folder / "out-of-range.txt").write_text("0 1\n10")
    (folder / "words.txt").write_text("1 cat")
    (folder / "few.txt").write_text("1 2 3")
    (folder / "empty.txt").write_text("\n")
    assert_refused(run_audit(*options, "--output", "record.json"), words, folder)


@pytest.mark.parametrize(
    ("output", "words"),
    [
        ("missing/record.json", "No such file"),
        ("model.safetensors/record.json", "Not a directory"),
        ("folder", "it is a folder"),
        ("x" * 300, "name too long"),
        ("/".join(["x" * 200] * 30), "name too long"),
        ("a\nb", "control characters"),
        ("model.safetensors", "would be overwritten"),
        ("gradients.safetensors", "would be overwritten"),
        ("./folder/../labels.txt", "would be overwritten"),
        ("link.json", "would be overwritten"),
        ("same.json", "would be overwritten"),
        ("pipe", "is a pipe, and no file"),
    ],
)
def test_an_output_that_cannot_be_is_told_before_the_work(run_audit, files, output, words):
    folder, _, _ = files
    (folder / "folder").mkdir()
    (folder / "link.json").symlink_to("model.safetensors")
    (folder / "same.json").hardlink_to(folder / "labels.txt")
    os.mkfifo(folder / "pipe")
    # The model is broken, too, and nobody has looked at it yet.
    (folder / "model.safetensors").write_bytes(b"")
    before = contents(folder)
    assert_refused(run_audit("--labels", "labels.txt", "--output", output), words, folder)
    assert contents(folder) == before


def contents(folder):
    return {path: path.read_bytes() for path in folder.iterdir() if path.is_file()}


def test_a_record_with_a_name_as_long_as_can_be_is_written(run_audit, files):
    name = "x" * 255
    assert run_audit("--batch-size", "24", "--output", name).status == 0
    assert json.loads((files[0] / name).read_text())["batch_size"] == 24


def test_the_batch_size_is_the_number_of_labels_where_it_is_not_given(run_audit, files):
    folder, truth, _ = files
    own = (folder / "labels.txt").read_text().replace(", ", "\r\n\r\n")
    (folder / "windows.txt").write_bytes(b"\xef\xbb\xbf" + own.encode())
    done = run_audit("--labels", "windows.txt", "--format", "json")
    assert done.status == 0
    record = json.loads(done.out)
    assert (record["batch_size"], record["true_counts"], record["counts"]) == (24, truth, truth)
    steps = ("--local-steps", "2", *_WEIGHTS, "--format", "json")
    done = run_audit("--labels", "windows.txt", *steps, update="weights.safetensors")
    assert json.loads(done.out)["batch_size"] == 12


def test_an_attack_that_needs_the_bias_says_so(run_audit, files):
    folder, _, gradients = files
    model = {"0.weight": torch.ones(16, 8), "2.weight": torch.ones(10, 16)}
    save_file(model, folder / "no-bias.safetensors")
    save_file({"2.weight": gradients["2.weight"]}, folder / "no-bias-update.safetensors")
    given = {"update": "no-bias-update.safetensors", "before": "no-bias.safetensors"}
    done = run_audit("--batch-size", "24", "--attack", "ilrg", **given)
    assert_refused(done, "bias", folder)
    assert "no_bias" in run_audit("--batch-size", "24", **given).out


def test_a_time_limit_is_a_positive_number_of_seconds(run_audit):
    assert run_audit("--batch-size", "24", "--time-limit", "2").status == 0
    done = run_audit("--batch-size", "24", "--time-limit", "0")
    assert done.status == 2
    assert "--time-limit" in done.err
