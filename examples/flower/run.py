"""Run the app in a federation on this machine: a SuperLink and three SuperNodes, or a simulation.

    python run.py                            # three sites send; each audits what it sends
    python run.py --defense none local-dp    # then the same behind Flower's own local DP mod
    python run.py --refuse 2                 # site 2 refuses to send what gives away too much
    python run.py --simulation               # Ray runs all sites, without SuperNodes

It starts everything on the loopback interface, waits, prints what the sites' records say, checks
that the server received what the sites sent and nothing else, and ends all that it started.
Made for Flower 1.41, whose programs older versions start with other options.
"""

import argparse
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from textwrap import shorten
from typing import Any

from labelleak.federated import read_rounds

APP = Path(__file__).parent
SITES = 3
ROUNDS = 3
DEFENSES = ("none", "local-dp", "sparsification")
# Seconds, with much to spare: other work may go on beside it.
START_LIMIT = 180
RUN_LIMIT = 1200
# What an audit did with an update; the next one may still refuse what it let pass.
DONE = {"sent": "let pass", "warned": "warned", "refused": "refused"}

REFUSING = """\
action = "refuse"
measure = "advantage"
threshold = 0.5
records = {records}
"""


def main() -> int:
    """Start, run, check, report; exit status 0 where all is as it must be."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--defense", choices=DEFENSES, nargs="+", default=["none"])
    parser.add_argument("--epsilon", type=float, default=500.0, help="of local-dp, per reply")
    parser.add_argument("--refuse", type=int, choices=range(SITES), help="site that may refuse")
    parser.add_argument("--simulation", action="store_true", help="simulate the sites")
    parser.add_argument("--out", type=Path, help="folder for records and logs (default: temporary)")
    options = parser.parse_args()
    if options.simulation and options.refuse is not None:
        parser.error("--refuse needs SuperNodes: simulated ones have no configuration of their own")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    problems = []
    with tempfile.TemporaryDirectory(prefix="labelleak-flower-") as scratch:
        logs = (options.out or Path(scratch, "out")).resolve()
        logs.mkdir(parents=True, exist_ok=True)
        environment = with_flower(os.environ, Path(scratch))
        policy = None if options.refuse is None else logs / "refusing.toml"
        with federation(logs, environment, options.simulation, options.refuse, policy):
            for defense in options.defense:
                out = logs / defense
                out.mkdir(exist_ok=True)
                if policy is not None:
                    policy.write_text(REFUSING.format(records=json.dumps(str(out / "records"))))
                config = f'defense="{defense}" epsilon={options.epsilon} out="{out}"'
                run(config, options.simulation, environment, logs)
                problems += report(out, options.refuse, options.out is not None)
    for problem in problems:
        print("PROBLEM:", problem)
    print(f"{len(problems)} problems" if problems else "all as it must be")
    return bool(problems)


def with_flower(environment: Mapping[str, str], scratch: Path) -> dict[str, str]:
    """The environment of Flower's programs, which keep what they have to in a scratch folder."""
    return {
        **environment,
        "FLWR_HOME": str(scratch / "flwr"),
        "FLWR_TELEMETRY_ENABLED": "0",
        "RAY_USAGE_STATS_ENABLED": "0",
        "OMP_NUM_THREADS": "1",
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{environment.get('PATH', '')}",
    }


@contextmanager
def federation(
    logs: Path,
    environment: dict[str, str],
    simulation: bool,
    refuse: int | None,
    policy: Path | None,
) -> Iterator[None]:
    """A running federation, known to Flower as ``here``."""
    port, *node_ports = free_ports(1 + SITES)
    home = Path(environment["FLWR_HOME"])
    home.mkdir()
    (home / "config.toml").write_text(
        f'[superlink]\ndefault = "here"\n\n[superlink.here]\naddress = "127.0.0.1:{port}"\n'
        "insecure = true\n"
    )
    superlink = ["flower-superlink", "--insecure", "--host", "127.0.0.1", "--port", str(port)]
    superlink += ["--disable-runtime-dependency-installation"]
    processes = []
    try:
        superlink += ["--simulation"] * simulation
        processes.append(start(superlink, environment, logs / "superlink.log"))
        wait_for(port, processes)
        for site, node_port in enumerate([] if simulation else node_ports):
            config = f"partition-id={site} num-partitions={SITES}"
            if site == refuse:
                config += f' labelleak-policy="{policy}"'
            command = ["flower-supernode", "--insecure", "--superlink", f"127.0.0.1:{port}"]
            command += ["--host", "127.0.0.1", "--port", str(node_port), "--node-config", config]
            processes.append(start(command, environment, logs / f"supernode-{site}.log"))
        yield
    finally:
        for process in reversed(processes):
            stop(process)


def free_ports(number: int) -> list[int]:
    """Ports of the loopback interface that nobody listens on now."""
    sockets = [socket.socket() for _ in range(number)]
    for one in sockets:
        one.bind(("127.0.0.1", 0))
    ports = [one.getsockname()[1] for one in sockets]
    for one in sockets:
        one.close()
    return ports


def start(command: list[str], environment: dict[str, str], log: Path) -> subprocess.Popen[bytes]:
    """Start a program in a process group of its own; its output goes to a file."""
    with log.open("wb") as file:
        return subprocess.Popen(
            command, env=environment, stdout=file, stderr=file, start_new_session=True
        )


def stop(process: subprocess.Popen[bytes]) -> None:
    """End a program and all that it started."""
    for what, patience in ((signal.SIGTERM, 10), (signal.SIGKILL, 10)):
        try:
            os.killpg(process.pid, what)
        except ProcessLookupError:
            break
        try:
            process.wait(patience)
        except subprocess.TimeoutExpired:
            continue


def wait_for(port: int, processes: list[subprocess.Popen[bytes]]) -> None:
    """Wait until somebody listens on the port."""
    end = time.monotonic() + START_LIMIT
    while time.monotonic() < end:
        if any(process.poll() is not None for process in processes):
            sys.exit("the SuperLink ended: see its log")
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
            return
        except OSError:
            time.sleep(0.2)
    sys.exit(f"the SuperLink does not answer after {START_LIMIT} s: see its log")


def run(
    run_config: str,
    simulation: bool,
    environment: dict[str, str],
    logs: Path,
    app: Path = APP,
    limit: float = RUN_LIMIT,
) -> None:
    """Run an app, and show the server's log until it ends, or for so many seconds."""
    command = ["flwr", "run", str(app), "here", "--stream", "--run-config", run_config]
    if simulation:
        command += ["--federation-config", f"num-supernodes={SITES} client-resources-num-cpus=1"]
    print("$", *command, flush=True)
    try:
        subprocess.run(command, env=environment, timeout=limit, check=True)
    except (subprocess.CalledProcessError, subprocess.TimeoutExpired) as error:
        for log in sorted(logs.glob("*.log")):
            print(f"--- {log.name}\n{log.read_text(errors='replace')[-4000:]}", flush=True)
        sys.exit(f"the run failed: {error}")


def report(out: Path, refuse: int | None, kept: bool) -> list[str]:
    """Print the sites' records; what is wrong with them beside what the server received."""
    server = json.loads((out / "server.json").read_text())
    records = read_rounds(out / "records")
    print("\nround  site         audit    labels restored  what was done")
    for record in sorted(records, key=lambda record: (record["round"], record["client"])):
        score = (record["audit"] or {}).get("score") or {}
        share = f"{score['accuracy']:.0%}" if score else "-"
        print(
            f"{record['round']:<6} {record['client']:<12} {record['label']:<8} {share:>15}  "
            f"{DONE[record['action']]}: {shorten(record['reason'], 90)}"
        )
    if kept:
        print(f"labelleak report {out / 'records'}   # the same as a page")
    print("accuracy of the global model after each round:", *server["accuracy"].values())
    problems = [] if len(server["arrived"]) == ROUNDS else [f"rounds: {list(server['arrived'])}"]
    for number, arrived in server["arrived"].items():
        print(f"round {number}: {len(arrived)} arrived, errors: {server['errors'][number]}")
        found = problems_of(out, records, int(number), set(arrived), refuse)
        problems += [f"{out.name}, round {number}: {problem}" for problem in found]
        if len(server["errors"][number]) != (refuse is not None):
            problems.append(f"{out.name}, round {number}: {server['errors'][number]}")
    return problems


def problems_of(
    out: Path, records: list[dict[str, Any]], number: int, arrived: set[str], refuse: int | None
) -> Iterator[str]:
    """What is wrong with one round: what arrived must be what the sites did not refuse to send."""
    for site in range(SITES):
        # Weights that the site had ready to leave. Flower starts a training again whose process did
        # not show signs of life in time: there may be several, of which at most one arrives.
        lines = (out / f"site-{site}.txt").read_text().splitlines()
        ready = {line.split()[1] for line in lines if line.split()[0] == str(number)}
        about = (number, f"partition-{site}", "to send")
        actions = {
            record["action"]
            for record in records
            if (record["round"], record["client"], record["label"]) == about
        }
        if not actions or ("refused" in actions) != (site == refuse):
            yield f"site {site}: {actions or 'no record'}"
        if site == refuse and ready & arrived:
            yield f"site {site}: the server received what was refused"
        if site != refuse and len(ready & arrived) != 1:
            yield f"site {site}: the server did not receive what it sent"
        arrived = arrived - ready
    if arrived:
        yield "the server received what no site sent"


if __name__ == "__main__":
    sys.exit(main())
