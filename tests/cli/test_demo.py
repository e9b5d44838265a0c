import json
import re
import shlex
import sys

import pytest
import torch
from safetensors.torch import load_file

from command_line import labelleak
from labelleak.attacks import Need, list_attacks
from labelleak.lab.demo import LEARNING_RATE


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    folder = tmp_path_factory.mktemp("demo") / "out"
    return labelleak("demo", "--out", folder), folder


def test_the_demo_shows_true_and_restored_counts_and_every_score(demo):
    done, folder = demo
    assert done.status == 0
    record = json.loads((folder / "record.json").read_text())
    # Which of the two is the more sure of itself here.
    assert record["attack"] in ("pooled", "ilrg")
    assert sum(record["counts"]) == record["batch_size"] == 24
    for label, (true, restored) in enumerate(
        zip(record["true_counts"], record["counts"], strict=True)
    ):
        if true or restored:
            assert re.search(rf"│\s+{label} │\s+{true} │\s+{restored} │", done.out)
    enough = {Need.WEIGHT, Need.BIAS, Need.BATCH_SIZE, Need.PLAIN_LOSS}
    possible = {name for name, entry in list_attacks().items() if enough.issuperset(entry.needs)}
    # Only the gradient itself shows that 24 samples of ten classes are too many for it.
    possible.remove("exact")
    assert {"idlg", "rlg", "ilrg", "llg", "ebi"} <= possible
    assert len(list(folder.glob("record-*.json"))) == len(possible)
    for name in possible:
        assert re.search(rf"│ {name}\s+│", done.out)
        assert json.loads((folder / f"record-{name}.json").read_text())["attack"] == name


def test_the_page_shows_the_same(demo):
    _, folder = demo
    page = (folder / "report.html").read_text(encoding="utf-8")
    record = json.loads((folder / "record.json").read_text())
    cells = re.findall(r"<tr[^>]*><td>(\d+)</td><td>(\d+)</td>\s*<td>(\d+)</td><td>", page)
    assert [(int(t), int(r)) for _, t, r in cells] == list(
        zip(record["true_counts"], record["counts"], strict=True)
    )
    assert "<svg" in page
    assert not re.search(r'(src|href)\s*=\s*"(?!#)', page)


def test_the_command_at_the_end_repeats_the_audit(demo):
    done, folder = demo
    # The program is named as it can be called here.
    line = done.out.splitlines()[-1]
    assert shlex.split(line)[1] == "audit"
    again = labelleak(*shlex.split(line)[1:], "--format", "json")
    assert again.status == 0
    first = json.loads((folder / "record.json").read_text())
    second = json.loads(again.out)
    for key in ("attack", "counts", "rounded", "score", "flags", "verdict"):
        assert second[key] == first[key]


def test_the_gradients_are_those_of_the_step_that_led_to_the_weights(demo):
    _, folder = demo
    model, gradients, weights = (
        load_file(folder / f"{name}.safetensors") for name in ("model", "gradients", "weights")
    )
    assert model.keys() == gradients.keys() == weights.keys()
    for name, gradient in gradients.items():
        torch.testing.assert_close(weights[name], model[name] - LEARNING_RATE * gradient)
    told = ("--batch-size", "24", "--format", "json")
    done = labelleak(
        "audit", "--before", folder / "model.safetensors",
        "--update", folder / "gradients.safetensors", *told
    )  # fmt: skip
    record = json.loads((folder / "record.json").read_text())
    assert json.loads(done.out)["counts"] == record["counts"]


@pytest.mark.parametrize(
    "name", ["model.safetensors", "gradients.safetensors", "labels.txt", "report.html"]
)
def test_what_cannot_be_written_is_named(tmp_path, name):
    (tmp_path / name).mkdir()
    done = labelleak("demo", "--out", tmp_path)
    assert done.status == 2
    assert done.err == f"labelleak: {tmp_path / name}: cannot be written: it is a folder\n"


def test_a_folder_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    done = labelleak("demo", "--out", tmp_path / "file" / "out")
    assert done.status == 2
    assert done.err.endswith("cannot be written: Not a directory\n")


@pytest.mark.parametrize("module", ["jinja2", "matplotlib"])
def test_without_its_extra_nothing_is_written(tmp_path, monkeypatch, module):
    for name in list(sys.modules):
        if name.startswith("labelleak.report."):
            monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, module, None)
    done = labelleak("demo", "--out", tmp_path / "out")
    needed = f"labelleak: this command needs {module}: pip install 'labelleak[cli,report]'\n"
    assert done == (2, "", needed)
    assert list(tmp_path.iterdir()) == []
