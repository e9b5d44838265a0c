"""The example of a DP-SGD loop runs, and its recorded figures are what the docs say."""

import json
from pathlib import Path
from statistics import mean

import pytest

pytest.importorskip("opacus", reason="needs the extra opacus")

from opacus.accountants import RDPAccountant

from scripts import run_script

pytestmark = pytest.mark.filterwarnings("ignore:Optimal order is")

ROOT = Path(__file__).parents[2]
EXAMPLE = ROOT / "examples" / "opacus-loop"
RECORDED = ROOT / "results" / "leakage-against-epsilon.json"


def test_the_example_shows_what_noise_buys(tmp_path):
    options = ("--learning-rates", 0, "--noise", 2, "--out", ".")
    printed = run_script(EXAMPLE / "train.py", *options, folder=tmp_path)
    assert len(printed.splitlines()) == 4
    plain, clipped, noisy = json.loads((tmp_path / "summary.json").read_text())
    # The same batches, and the same network.
    assert plain["steps"]["samples"] == clipped["steps"]["samples"] == noisy["steps"]["samples"]
    shares = [mean(run["steps"]["restored"]) for run in (plain, clipped, noisy)]
    assert shares[0] > 0.9
    assert shares[1] > 0.9, "clipping alone hides nothing"
    assert shares[2] < shares[1] - 0.2
    assert plain["steps"]["epsilon"] == [None] * len(plain["steps"]["samples"])
    assert len(list((tmp_path / "records").glob("*.jsonl"))) == 3
    run_script(EXAMPLE / "figure.py", "summary.json", "figure.png", folder=tmp_path)
    assert (tmp_path / "figure.png").read_bytes().startswith(b"\x89PNG")


@pytest.fixture(scope="module")
def recorded():
    return json.loads(RECORDED.read_text())


def share(runs, rate, noise, *, clipped=True):
    found = [
        share
        for run in runs
        if run["learning_rate"] == rate
        and run["noise_multiplier"] == noise
        and (run["max_grad_norm"] is not None) == clipped
        for share in run["steps"]["restored"]
    ]
    assert len(found) == 96
    return mean(found)


def test_recorded_figures_are_what_the_docs_say(recorded):
    epsilons = {}
    for run in recorded:
        if run["noise_multiplier"]:
            epsilons[run["noise_multiplier"]] = run["steps"]["epsilon"][-1]
    found = {noise: (epsilons[noise], share(recorded, 0.0, noise)) for noise in sorted(epsilons)}
    assert {noise: (round(e, 1), round(s, 2)) for noise, (e, s) in found.items()} == {
        0.25: (56.8, 0.84),
        0.5: (11.0, 0.74),
        0.75: (4.0, 0.64),
        1.0: (2.0, 0.59),
        1.5: (0.8, 0.49),
        2.0: (0.4, 0.41),
        4.0: (0.2, 0.29),
        8.0: (0.1, 0.21),
    }
    guessed = mean(share for run in recorded for share in run["steps"]["guessed"])
    assert round(guessed, 2) == 0.49
    for rate, plain, clipped in ((0.0, 0.98, 0.97), (0.1, 0.66, 0.81)):
        assert round(share(recorded, rate, 0.0, clipped=False), 2) == plain
        assert round(share(recorded, rate, 0.0), 2) == clipped


def test_recorded_epsilons_are_the_accountants(recorded):
    spent = {}
    for run in recorded:
        noise, epsilons = run["noise_multiplier"], run["steps"]["epsilon"]
        if noise == 0.0:
            assert set(epsilons) == {None}
            continue
        if noise not in spent:
            accountant = RDPAccountant()
            accountant.history = [(noise, 1 / 32, len(epsilons))]
            spent[noise] = accountant.get_epsilon(run["delta"])
        assert epsilons[-1] == pytest.approx(spent[noise], abs=1e-4)
        assert epsilons == sorted(epsilons)
