"""The doors of the tests in real federations: what a server receives of a client that tries them.

    python benchmarks/doors.py flower [--output results/benchmark-doors.json]
    python benchmarks/doors.py nvflare [--output results/benchmark-doors.json]

``flower`` starts a SuperLink and three SuperNodes on the loopback interface (`examples/flower`),
and ``nvflare`` FLARE's simulator with three sites. Each client audits under a refusing policy that
lets every plain update pass, and answers each task through one door of `tests/flower_doors.py` or
`tests/nvflare_doors.py`; a plain update is the control. The server writes down what arrives:
whether it is a refusal, and whether the bytes of it hold what was hidden. A door is open where they
do, or where anything but a refusal arrives. Takes some minutes. Rows of the other framework stay in
the output. Exit status 1: a door is open.
"""

import argparse
import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import measuring

ROOT = Path(__file__).parents[1]
SITES = 3
LIMIT = 3600  # seconds
CONTROL = "a plain update"

FLOWER_CLIENT = """
from pathlib import Path

import torch
from flwr.clientapp import ClientApp

import flower_doors as doors
from flower_in_process import made_policy, made_update
from labelleak.federated.flower import LeakageAudit, provide_labels

torch.set_num_threads(1)
FOUND, LABELS = made_update(ids=torch.arange(4), mask=torch.ones(4, dtype=torch.bool))


def audit(message, context, call_next):
    policy = made_policy(Path(context.run_config["out"]), "refuse", threshold=1.0)
    return LeakageAudit(policy)(message, context, call_next)


app = ClientApp(mods=[audit])


def through(message):
    config = message.content["config"]
    provide_labels(LABELS)
    tables = {"train": doors.TRAIN, "harmless": doors.HARMLESS, "other": doors.OTHERS}
    return tables.get(config["table"], {}).get(config["door"], doors.plain)(message, FOUND.after)


@app.train()
def train(message, _):
    return through(message)


@app.evaluate()
def evaluate(message, _):
    return through(message)


@app.query()
def query(message, _):
    return through(message)
"""

FLOWER_SERVER = """
import json
import time
from pathlib import Path

import torch
from flwr.serverapp import ServerApp

import flower_doors as doors
from flower_in_process import RATE, SAMPLES, instruction, made_update, wire
from labelleak.federated.flower import REFUSED

app = ServerApp()


@app.main()
def main(grid, context):
    found, _ = made_update(ids=torch.arange(4), mask=torch.ones(4, dtype=torch.bool))
    asked = [("none", "", "train")]
    asked += [("train", door, "train") for door in doors.TRAIN]
    asked += [("harmless", door, "train") for door in doors.HARMLESS]
    asked += [("other", door, kind) for kind in ("evaluate", "query") for door in doors.OTHERS]
    while len(nodes := list(grid.get_node_ids())) < 3:
        time.sleep(0.5)
    for start in range(0, len(asked), len(nodes)):
        some = asked[start : start + len(nodes)]
        messages = {}
        for node, (table, door, kind) in zip(nodes, some):
            config = {"lr": RATE, "batch_size": SAMPLES, "table": table, "door": door}
            messages[node] = instruction(found.before, kind, node, **config)
        for reply in grid.send_and_receive(messages.values(), timeout=900):
            table, door, kind = some[nodes.index(reply.metadata.src_node_id)]
            sent = wire(reply)
            row = {
                "table": table,
                "door": door or "a plain update",
                "task": kind,
                "refused": reply.has_error(),
                "told": reply.error.reason if reply.has_error() else "",
                "hidden": any(secret in sent for secret in doors.BYTES),
            }
            with Path(context.run_config["out"], "seen.jsonl").open("a") as file:
                file.write(json.dumps(row) + chr(10))
    Path(context.run_config["out"], "done").touch()
"""

FLOWER_APP = """
[project]
name = "doors"
version = "1.0.0"
description = "Tries every door"
license = "Apache-2.0"
dependencies = []

[tool.flwr.app]
publisher = "labelleak"

[tool.flwr.app.components]
serverapp = "server_app:app"
clientapp = "client_app:app"

[tool.flwr.app.config]
out = ""
"""

FLARE_JOB = """
import json
import sys
from pathlib import Path

import torch
from nvflare.apis.controller_spec import Task
from nvflare.apis.event_type import EventType
from nvflare.apis.executor import Executor
from nvflare.apis.fl_component import FLComponent
from nvflare.apis.fl_constant import FLContextKey
from nvflare.apis.impl.controller import Controller
from nvflare.job_config.api import FedJob
from nvflare.job_config.defs import FilterType

import nvflare_doors as doors
from nvflare_in_process import CLASSES, RATE, made_update, task_of, weights, wire
from labelleak.federated.nvflare import REFUSAL_HEADER, LeakageAudit

# FLARE's own client fails at headers that are a list, and sends nothing at all.
NAMES = ["a plain update", *(name for name in doors.DOORS if name != "headers that are a list")]


def update():
    return made_update(ids=torch.arange(4), mask=torch.ones(4, dtype=torch.bool))


def number_of(fl_ctx):
    return int(fl_ctx.get_identity_name()[-1]) - 1


class Doors(Executor):
    def execute(self, task_name, shareable, fl_ctx, abort_signal):
        place = shareable.get_header("current_round") + number_of(fl_ctx)
        found = update()
        made = doors.DOORS.get(NAMES[place % len(NAMES)], weights)
        return made(found)


class Asking(Controller):
    def control_flow(self, abort_signal, fl_ctx):
        for start in range(0, len(NAMES), 3):
            data = task_of(update())
            data.set_header("current_round", start)
            data.add_cookie("start", start)
            task = Task("train", data, timeout=600)
            self.broadcast_and_wait(task, fl_ctx, min_responses=3, abort_signal=abort_signal)

    def start_controller(self, fl_ctx):
        pass

    def stop_controller(self, fl_ctx):
        pass

    def process_result_of_unknown_task(self, client, task_name, client_task_id, result, fl_ctx):
        pass


class Watch(FLComponent):
    def __init__(self, file):
        super().__init__()
        self.file = file

    def handle_event(self, event_type, fl_ctx):
        if event_type != EventType.BEFORE_PROCESS_SUBMISSION:
            return
        result = fl_ctx.get_prop(FLContextKey.TASK_RESULT)
        peer = fl_ctx.get_peer_context()
        place = int(result.get_cookie_jar()["start"]) + number_of(peer)
        told = result.get_header(REFUSAL_HEADER)
        sent = wire(result) + repr(peer.get_all_public_props()).encode()
        row = {
            "table": "train",
            "door": NAMES[place % len(NAMES)],
            "task": "train",
            # What is no result at all, FLARE itself replaces.
            "refused": told is not None or result.get_return_code() != "OK",
            "told": told or result.get_return_code(),
            "hidden": any(secret in sent for secret in doors.BYTES),
        }
        with open(self.file, "a") as file:
            file.write(json.dumps(row) + chr(10))


if __name__ == "__main__":
    out = Path(sys.argv[1])
    policy = out / "policy.toml"
    lines = ('action = "refuse"', "threshold = 1.0", 'attack = "ilrg"', f'records = "{out / "r"}"')
    policy.write_text(chr(10).join(lines))
    labels = out / "labels.txt"
    own = torch.arange(CLASSES).repeat_interleave(update().true_counts)
    labels.write_text(" ".join(map(str, own.tolist())))
    job = FedJob(name="doors", min_clients=3)
    job.set_app_packages(["labelleak"])
    job.to_server(Asking())
    job.to_server(Watch(file=str(out / "seen.jsonl")), id="watch")
    for site in ("site-1", "site-2", "site-3"):
        job.to(Doors(), site, tasks=["train"])
        audit = LeakageAudit(str(policy), str(labels), {"learning_rate": RATE, "steps": 1})
        job.to(audit, site, filter_type=FilterType.TASK_RESULT, tasks=["train"])
    sys.exit(job.simulator_run(str(out / "workspace"), threads=3, log_config="concise"))
"""


def main() -> int:
    """Run one federation, print what was open, write it down."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("framework", choices=["flower", "nvflare"])
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    load = measuring.load()
    paths = [str(ROOT / "tests"), os.environ.get("PYTHONPATH", "")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths))}
    with tempfile.TemporaryDirectory(prefix="labelleak-doors-") as scratch:
        run = flower if options.framework == "flower" else nvflare
        rows = run(Path(scratch), environment)
    opened = [row for row in rows if is_open(row)]
    for row in opened:
        print(f"OPEN: {row['task']}: {row['door']}: {row}")
    print(f"{len(opened)} of {len(rows) - 1} doors are open")
    rows = [{"framework": options.framework, **row} for row in rows]
    if options.output is not None and options.output.exists():
        there = json.loads(options.output.read_text())["rows"]
        rows = [row for row in there if row["framework"] != options.framework] + rows
    measuring.write(options.output, __doc__, load, 1, rows=rows)
    return bool(opened)


def is_open(row: dict[str, Any]) -> bool:
    """Whether anything but a refusal arrived, or what was hidden; the control must arrive."""
    if row["door"] == CONTROL:
        return bool(row["refused"])
    return row["hidden"] or not (row["refused"] or row["table"] == "harmless")


def flower(scratch: Path, environment: dict[str, str]) -> list[dict[str, Any]]:
    """What the server of a deployed Flower app received."""
    sys.path.insert(0, str(ROOT / "examples" / "flower"))
    import run

    app, out = scratch / "app", scratch / "out"
    app.mkdir()
    out.mkdir()
    (app / "pyproject.toml").write_text(FLOWER_APP)
    (app / "client_app.py").write_text(FLOWER_CLIENT)
    (app / "server_app.py").write_text(FLOWER_SERVER)
    environment = run.with_flower(environment, scratch)
    with run.federation(out, environment, simulation=False, refuse=None, policy=None):
        run.run(f'out="{out}"', False, environment, out, app, LIMIT)
    if not (out / "done").exists():
        sys.exit("\n".join(log.read_text()[-2000:] for log in sorted(out.glob("*.log"))))
    return seen_in(out)


def nvflare(scratch: Path, environment: dict[str, str]) -> list[dict[str, Any]]:
    """What the server of FLARE's simulator received."""
    (scratch / "doors_job.py").write_text(FLARE_JOB)
    command = [sys.executable, "doors_job.py", str(scratch)]
    job = subprocess.Popen(command, cwd=scratch, env=environment, start_new_session=True)
    try:
        if status := job.wait(LIMIT):
            sys.exit(f"the simulator ended with status {status}")
    finally:
        with contextlib.suppress(ProcessLookupError):  # nothing of it is left, as it should be
            os.killpg(job.pid, signal.SIGKILL)
    return seen_in(scratch)


def seen_in(folder: Path) -> list[dict[str, Any]]:
    """What the server wrote down."""
    return [json.loads(line) for line in (folder / "seen.jsonl").read_text().splitlines()]


if __name__ == "__main__":
    sys.exit(main())
