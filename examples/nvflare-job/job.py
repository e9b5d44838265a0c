"""Three sites train with NVIDIA FLARE's simulator; each audits its update before it leaves.

    python examples/nvflare-job/job.py                  # record and warn
    python examples/nvflare-job/job.py --refuse site-2  # site-2's policy refuses to send

Everything is written below --out. The records are one file per site.
"""

import argparse
import sys
from pathlib import Path

import torch
from nvflare.app_common.workflows.fedavg import FedAvg
from nvflare.app_opt.pt.job_config.model import PTModel
from nvflare.job_config.api import FedJob
from nvflare.job_config.defs import FilterType
from nvflare.job_config.script_runner import ScriptRunner

from labelleak.federated.nvflare import LeakageAudit
from labelleak.federated.rounds import read_rounds
from labelleak.lab.networks import build

SITES = ("site-1", "site-2", "site-3")
ROUNDS = 2
LEARNING_RATE = 0.1  # of client.py
NETWORK = {"layers": 3, "classes": 10, "image_shape": (1, 28, 28)}


def make_job(out: Path, refusing: list[str]) -> FedJob:
    """The job: FedAvg, client.py on every site, and the audit behind it."""
    records = out / "records"
    job = FedJob(name="labelleak", min_clients=len(SITES))
    job.set_app_packages(["labelleak"])  # the sites have it: do not copy its files into the job
    # A site that sends nothing does not end the job.
    job.to_server(FedAvg(num_clients=len(SITES), num_rounds=ROUNDS, ignore_result_error=True))
    start = out / "start.pt"
    torch.save(build("fcn-3", classes=10, image_shape=(1, 28, 28), seed=0).state_dict(), start)
    network = {"path": "labelleak.lab.networks.fcn.FCN", "args": NETWORK}
    job.to_server(PTModel(network, initial_ckpt=str(start)))
    for site in SITES:
        script = Path(__file__).with_name("client.py")
        job.to(ScriptRunner(str(script), script_args=f"--own-files {out}"), site)
        policy = out / f"policy-{site}.toml"
        action = "refuse" if site in refusing else "warn"
        policy.write_text(f'action = "{action}"\nthreshold = 0.5\nrecords = "{records}"\n')
        audit = LeakageAudit(
            policy=str(policy),
            labels=str(out / f"labels-{site}.txt"),
            training={"learning_rate": LEARNING_RATE, "steps": 1},
        )
        # Named, because FLARE takes "*" for the name of a task here.
        job.to(audit, site, filter_type=FilterType.TASK_RESULT, tasks=["train"])
    return job


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("labelleak-runs/nvflare"))
    parser.add_argument("--refuse", nargs="*", default=[], choices=SITES, metavar="SITE")
    arguments = parser.parse_args()
    out = arguments.out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    job = make_job(out, arguments.refuse)
    status = job.simulator_run(str(out / "workspace"), threads=len(SITES), log_config="concise")
    for record in read_rounds(out / "records"):
        print(
            f"round {record['round']}, {record['client']}: {record['action']}: {record['reason']}"
        )
    sys.exit(status or 0)


if __name__ == "__main__":
    main()
