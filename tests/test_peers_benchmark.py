"""The benchmark beside public codes: what a checkout is, its answers, and the same batches."""

import subprocess
import sys

import pytest
import torch

import labelleak
import peer_tables
import peers
import public_codes
import restoration
from labelleak.metrics import accuracy, counts_of

# A public code of a test's own, by the interface of iLRG's: it knows no other answer than this.
METHODS = """
import torch
def get_emb(row, entry):
    return row / entry
def iLRG(predictions, by_bias, classes, size):
    assert len(predictions) == classes and abs(float(predictions[0].sum()) - 1) < 1e-5
    import numpy
    return numpy.array([size] + [0] * (classes - 1)), None
def idlg_infer(columns):
    return (columns.sum(dim=0) < 0).nonzero().squeeze().numpy()
def gi_infer(columns):
    return [1]
def svd_infer(columns, num_classes, gt_k, epsilon):
    import no_such_package_here
"""


@pytest.fixture
def checkout(tmp_path, monkeypatch):
    """A checkout of a made-up iLRG; nothing of it stays in this process."""
    (tmp_path / "methods.py").write_text(METHODS)
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.delitem(sys.modules, "methods", raising=False)
    yield tmp_path
    sys.modules.pop("methods", None)


def test_a_public_code_answers_by_its_own_functions(checkout):
    seen, labels = restoration.observation(10, 8, 24)
    attacks = public_codes.ILRG.enter(checkout)
    assert attacks["iLRG"](seen).tolist() == [24, *[0] * 9]
    rows = seen.gradient.weight.sum(dim=1) < 0
    assert torch.equal(attacks["iDLG"](seen), rows)
    assert attacks["GI"](seen).nonzero()[:, 0].tolist() == [1]
    plan = peers.Plan("made up", 1, 1.0, None)
    batch = peers.Batch(seen, counts_of(labels, 10))
    row = peers.tried(attacks["iLRG"], [batch, batch], plan)
    assert row["error"] is None
    right = accuracy(torch.tensor([24, *[0] * 9]), batch.counts)
    assert row["accuracy"] == [right, right]
    assert peers.tried(attacks["iDLG"], [batch], plan)["accuracy"] == [None]
    failed = peers.tried(attacks["RLG"], [batch], plan)
    assert failed == {"error": "ModuleNotFoundError: No module named 'no_such_package_here'"}


def test_a_budget_ends_an_attack_early():
    seen, labels = restoration.observation(10, 8, 24)
    batch = peers.Batch(seen, counts_of(labels, 10))
    plan = peers.Plan("made up", 3, -1.0, None)
    attack = peers.our_attacks()["ilrg"]
    assert len(peers.tried(attack, [batch] * 3, plan)["seconds"]) == 1


def test_every_counterpart_is_an_attack():
    codes = public_codes.PUBLIC_CODES.values()
    ours = {name for code in codes for name in code.counterparts.values()} - {None}
    assert ours <= set(labelleak.list_attacks())
    assert all(code.slow <= set(code.counterparts) for code in codes)
    some, many = (peers.Plan(one, 1, 1.0, None) for one in (peers.RECORDED[0], *peers.MADE_UP))
    assert set(peers.names_of(peers.OURS, some)) == {*ours, "auto"}
    assert set(peers.names_of(peers.OURS, many)) == {*ours, "auto"} - {"rlg", "rlu"}
    assert "RLU" not in peers.names_of("rlu", many)


def test_a_version_is_the_commit_and_whether_code_was_changed(checkout):
    assert public_codes.version(checkout) == {"commit": None, "changed": False}

    def git(*words):
        options = ("-c", "user.name=a", "-c", "user.email=a@b")
        done = subprocess.run(
            ["git", "-C", str(checkout), *options, *words],
            capture_output=True,
            text=True,
            check=True,
        )
        return done.stdout.strip()

    git("init")
    git("add", ".")
    git("commit", "-m", "all")
    assert public_codes.version(checkout) == {"commit": git("rev-parse", "HEAD"), "changed": False}
    (checkout / "methods.py").write_text("")
    assert public_codes.version(checkout)["changed"]


def test_a_folder_that_is_no_checkout_is_one_line(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["peers.py", "--llbg", str(tmp_path)])
    with pytest.raises(SystemExit, match=r"has no src/attacks/base_attack\.py: clone https"):
        peers.main()
    monkeypatch.setattr(sys, "argv", ["peers.py"])
    with pytest.raises(SystemExit, match="no checkout is named"):
        peers.main()


def test_made_up_batches_are_the_same_in_every_process():
    plan = peers.Plan(next(iter(peers.MADE_UP)), 2, 1.0, None)
    first, again = peers.drawn(plan), peers.drawn(plan)
    for one, other in zip(first, again, strict=True):
        assert torch.equal(one.seen.gradient.weight, other.seen.gradient.weight)
        assert int(one.counts.sum()) == one.seen.batch_size
    assert not torch.equal(first[0].counts, first[1].counts)


def test_tables_compare_the_batches_of_both():
    def row(source, name, seconds, right):
        found = {"setting": "s, K = 24", "source": source, "name": name, "error": None}
        return found | {"seconds": seconds, "accuracy": right, "leacc": [0.5] * len(right)}

    codes = {"ilrg": {"title": "iLRG (x)", "attacks": {"A": "ilrg", "B": None, "C": "rlg"}}}
    rows = [
        row("ilrg", "A", [0.002, 0.004], [1.0, 0.5]),
        row("labelleak", "ilrg", [0.001, 0.001, 9.0], [1.0, 1.0, 0.0]),
        row("ilrg", "B", [0.001], [None]),
        {**row("ilrg", "C", [], []), "error": "no"},
        row("labelleak", "rlg", [1.0], [None]),
    ]
    speed = peer_tables.speed(lambda path: {"codes": codes, "rows": rows})[2:]
    assert speed == ["| iLRG: A | `ilrg` | 0.33 (1 of 3) |", "| iLRG: C | `rlg` | error |"]
    scores = peer_tables.accuracy(lambda path: {"codes": codes, "rows": rows})[2:]
    assert scores[0].endswith("| 0.750 / 1.000 |")
    assert "0.500 LeAcc / –" in scores[1]
