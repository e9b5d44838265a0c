"""The example's Flower app in this process, and the checks of the script that deploys it."""

import subprocess
import sys
import time
from pathlib import Path

import pytest

pytest.importorskip("flwr")

from flwr.app import ArrayRecord, ConfigRecord
from flwr.serverapp.strategy import FedAvg

from flower_in_process import InProcess, Site, context
from labelleak.federated import read_rounds

FOLDER = Path(__file__).parent.parent / "examples" / "flower"


@pytest.fixture
def example(monkeypatch):
    monkeypatch.syspath_prepend(str(FOLDER))


@pytest.mark.parametrize("defense", ["none", "local-dp", "sparsification"])
@pytest.mark.usefixtures("example")
def test_the_app_shows_what_a_defense_buys(tmp_path, defense):
    from digits.client_app import app
    from digits.task import network

    run_config = {"defense": defense, "epsilon": 50.0, "percent": 90.0, "out": str(tmp_path)}
    sites = {
        100 + site: Site(
            app,
            context(
                100 + site,
                {"partition-id": site, "num-partitions": 3},
                **run_config,
                alpha=1.0,
                batch_size=24,
            ),
        )
        for site in range(3)
    }
    FedAvg(fraction_evaluate=0.0).start(
        InProcess(sites),
        ArrayRecord(network().state_dict()),
        num_rounds=1,
        train_config=ConfigRecord({"lr": 0.1}),
    )
    records = read_rounds(tmp_path / "records")
    restored = {"to send": [], "trained": []}
    for record in records:
        restored[record["label"]].append(record["audit"]["score"]["accuracy"])
    assert restored["trained"] == [1.0, 1.0, 1.0]
    assert (restored["to send"] == restored["trained"]) == (defense == "none")
    epsilons = {record["epsilon"] for record in records if record["label"] == "to send"}
    assert epsilons == {50.0 if defense == "local-dp" else None}


@pytest.mark.usefixtures("example")
def test_the_sites_data_are_a_split():
    from digits.task import partition

    parts = [partition(site, 3, 1.0).tolist() for site in range(3)]
    assert sorted(index for part in parts for index in part) == list(range(5000))
    assert all(len(part) >= 24 for part in parts)


@pytest.fixture
def finished(tmp_path, example):
    """The files of one round in which site 2 refused."""
    import run

    for site, line in enumerate(("1 aa\n", "1 bb\n1 b2\n", "1 cc\n")):
        (tmp_path / f"site-{site}.txt").write_text(line + "2 later\n")
    records = [
        {"round": 1, "client": f"partition-{site}", "label": "to send", "action": action}
        for site, action in enumerate(("warned", "sent", "refused"))
    ]

    def check(arrived, refuse=2, records=records):
        return list(run.problems_of(tmp_path, records, 1, set(arrived), refuse))

    return check


def test_what_the_sites_sent_is_what_must_arrive(finished):
    assert finished(["aa", "b2"]) == []


@pytest.mark.parametrize(
    ("arrived", "problem"),
    [
        (["aa", "bb", "cc"], "site 2: the server received what was refused"),
        (["aa"], "site 1: the server did not receive what it sent"),
        (["aa", "bb", "dd"], "the server received what no site sent"),
    ],
)
def test_anything_else_is_a_problem(finished, arrived, problem):
    assert finished(arrived) == [problem]


def test_another_site_refuses_or_none_keeps_a_record(finished):
    assert any("site 2: {'refused'}" in problem for problem in finished(["aa", "bb"], None))
    assert "site 0: no record" in finished(["aa", "bb"], records=[])


@pytest.mark.usefixtures("example")
def test_all_that_was_started_is_ended(tmp_path):
    import run

    script = "import subprocess, time; p = subprocess.Popen(['sleep', '60']); print(p.pid)"
    process = run.start(
        [sys.executable, "-u", "-c", f"{script}; time.sleep(60)"], {}, tmp_path / "log"
    )
    while not (tmp_path / "log").read_text().strip():
        time.sleep(0.05)
    child = (tmp_path / "log").read_text().strip()
    run.stop(process)
    assert process.poll() is not None
    state = subprocess.run(
        ["ps", "-o", "stat=", "-p", child], capture_output=True, text=True, check=False
    ).stdout
    assert state.strip()[:1] in ("", "Z")  # gone, or waiting for its new parent to notice
