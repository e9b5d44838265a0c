"""How many malignant cases does each hospital's update give away?

    python federation.py

Three hospitals train a logistic regression and a small network together, by Flower's federated
averaging, in this process. Each hospital's own audit prints what the server can restore of every
update.
"""

import logging
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from flwr.app import Message, RecordDict
from hospitals.client_app import app as client
from hospitals.server_app import app as server
from hospitals.task import NAMES
from in_process import run_app

from labelleak.federated import read_rounds

PATIENTS, RATE, ROUNDS = 48, 0.1, 3

RECORD = 'action = "record"\nrecords = "{}"\n'


def main() -> None:
    """Run both, and print what each update gives away."""
    for kind, title in (("logistic", "Logistic regression from zero"), ("mlp", "Small network")):
        with TemporaryDirectory() as folder:
            state, _ = run(kind, RECORD, Path(folder))
            right = f"the model is right for {share(state):.0%} of the patients"
            print(f"{title}: {right} after {ROUNDS} rounds")
            print("round  hospital          malignant  restored by the server")
            records = read_rounds(Path(folder, "records"))
            for record in sorted(records, key=lambda record: int(record["round"])):
                print(line(record))


def run(
    kind: str, policy: str, folder: Path, patients: tuple[int, ...] = (PATIENTS,) * 3
) -> tuple[RecordDict, list[Message]]:
    """Run the app with a policy at every hospital; records go below the folder."""
    logging.getLogger("flwr").setLevel(logging.ERROR)
    logging.getLogger("labelleak").setLevel(logging.ERROR)
    torch.set_num_threads(1)
    path = folder / "policy.toml"
    path.write_text(policy.format(folder / "records"))
    nodes: list[dict[str, Any]] = [
        {"partition-id": site, "patients": taken, "labelleak-policy": str(path)}
        for site, taken in enumerate(patients)
    ]
    config = {"model": kind, "num-server-rounds": ROUNDS, "lr": RATE, "local-steps": 1}
    return run_app(client, server, nodes, config)


def share(state: RecordDict) -> float:
    """Share of the patients that the last model tells right."""
    return float(str(state.metric_records["last"]["accuracy"]))


def line(record: dict[str, Any]) -> str:
    """An audit in a line: the malignant cases, and what the server restores of them."""
    audit = record["audit"]
    _, malignant = audit["true_counts"]
    found = str(audit["counts"][1])
    if audit["certified"]:
        found += ", proven"
    elif audit["intervals"] is not None:
        low, high = audit["intervals"][1]
        low, high = max(low, 0.0), min(high, audit["samples"])
        found += f", {low:.0f} to {high:.0f} with 95% confidence"
    else:
        found += ", unsure"
    site = NAMES[int(record["client"].removeprefix("partition-"))]
    return f"{record['round']:<6} {site:<17} {malignant:>2} of {audit['samples']:<4}  {found}"


if __name__ == "__main__":
    main()
