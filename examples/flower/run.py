"""Run the app in a federation on this machine: a SuperLink and three SuperNodes, or a simulation.

    python run.py                            # three sites send; each audits what it sends
    python run.py --defence local-dp         # the same behind Flower's own local DP mod
    python run.py --refuse 2                 # site 2 refuses to send what gives away too much
    python run.py --simulation               # one process starts all sites (needs ray)

It starts everything on the loopback interface, waits, prints what each site's records say, checks
that the server received what the sites sent and nothing else, and ends all that it started.
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
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from labelleak.federated import read_rounds

APP = Path(__file__).parent
SITES = 3
START_LIMIT = 60  # seconds
RUN_LIMIT = 240

REFUSING = """\
action = "refuse"
threshold = 0.5
records = {records}
"""


def main() -> int:
    """Start, run, check, report; exit status 0 where all is as it must be."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--defence", choices=("none", "local-dp", "sparsification"), default="none")
    parser.add_argument("--refuse", type=int, choices=range(SITES), help="site that may refuse")
    parser.add_argument("--simulation", action="store_true", help="simulate the sites")
    parser.add_argument("--out", type=Path, help="folder for records and logs (default: temporary)")
    options = parser.parse_args()
    if options.simulation and options.refuse is not None:
        parser.error("--refuse needs SuperNodes: simulated ones have no configuration of their own")
    with tempfile.TemporaryDirectory(prefix="labelleak-flower-") as scratch:
        out = (options.out or Path(scratch, "out")).resolve()
        out.mkdir(parents=True, exist_ok=True)
        run_config = f'defence="{options.defence}" out="{out}"'
        environment = {
            **os.environ,
            "FLWR_HOME": str(Path(scratch, "flwr")),
            "FLWR_TELEMETRY_ENABLED": "0",
            "RAY_DISABLE_DASHBOARD": "1",
            "OMP_NUM_THREADS": "1",
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}",
        }
        with federation(out, environment, options.simulation, options.refuse) as name:
            stream(name, run_config, options.simulation, environment, out)
        return report(out, options.refuse)


@contextmanager
def federation(
    out: Path, environment: dict[str, str], simulation: bool, refuse: int | None
) -> Iterator[str]:
    """A running federation; the name under which Flower's configuration knows it."""
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
        processes.append(start([*superlink, *["--simulation"] * simulation], environment, out))
        wait_for(port, processes)
        for site, node_port in enumerate([] if simulation else node_ports):
            config = f"partition-id={site} num-partitions={SITES}"
            if site == refuse:
                policy = out / "refusing.toml"
                policy.write_text(REFUSING.format(records=json.dumps(str(out / "records"))))
                config += f' labelleak-policy="{policy}"'
            command = ["flower-supernode", "--insecure", "--superlink", f"127.0.0.1:{port}"]
            command += ["--host", "127.0.0.1", "--port", str(node_port), "--node-config", config]
            processes.append(start(command, environment, out, f"supernode-{site}"))
        yield "here"
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


def start(
    command: list[str], environment: dict[str, str], out: Path, name: str = ""
) -> subprocess.Popen[bytes]:
    """Start a program in a process group of its own; its output goes to a file."""
    with (out / f"{name or command[0]}.log").open("wb") as log:
        return subprocess.Popen(
            command, env=environment, stdout=log, stderr=log, start_new_session=True
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


def stream(
    name: str, run_config: str, simulation: bool, environment: dict[str, str], out: Path
) -> None:
    """Run the app, and show its log until it ends."""
    command = ["flwr", "run", str(APP), name, "--stream", "--run-config", run_config]
    if simulation:
        command += ["--federation-config", f"num-supernodes={SITES} client-resources-num-cpus=1"]
    print("$", *command, flush=True)
    try:
        subprocess.run(command, env=environment, timeout=RUN_LIMIT, check=True)
    except (subprocess.CalledProcessError, subprocess.TimeoutExpired) as error:
        for log in sorted(out.glob("*.log")):
            print(f"--- {log.name}\n{log.read_text(errors='replace')[-4000:]}", flush=True)
        sys.exit(str(error))


def report(out: Path, refuse: int | None) -> int:
    """Print the sites' records, and check them against what the server received."""
    server = json.loads((out / "server.json").read_text())
    records = read_rounds(out / "records")
    print("\nround  site         where    labels restored  what was done")
    for record in sorted(records, key=lambda record: (record["round"], record["client"])):
        score = (record["audit"] or {}).get("score") or {}
        share = f"{score['accuracy']:.0%}" if score else "-"
        print(
            f"{record['round']:<6} {record['client']:<12} {record['label']:<8} {share:>15}  "
            f"{record['action']}: {record['reason']}"
        )
    print("accuracy of the global model:", server["accuracy"])
    problems = []
    for number, arrived in server["arrived"].items():
        sent, refused = set(), set()
        for site in range(SITES):
            ready = (out / f"site-{site}.txt").read_text().split()[int(number) - 1]
            actions = [
                record["action"]
                for record in records
                if record["client"] == f"partition-{site}"
                and (record["round"], record["label"]) == (int(number), "sent")
            ]
            if len(actions) != 1:
                problems.append(f"round {number}, site {site}: {len(actions)} records")
            (refused if "refused" in actions else sent).add(ready)
        print(f"round {number}: {len(arrived)} arrived, refused: {server['errors'][number]}")
        if set(arrived) != sent or set(arrived) & refused:
            problems.append(f"round {number}: the server did not receive what the sites sent")
        if len(refused) != (0 if refuse is None else 1):
            problems.append(f"round {number}: {len(refused)} sites refused")
        if len(server["errors"][number]) != len(refused):
            problems.append(f"round {number}: errors at the server: {server['errors'][number]}")
    if len(server["arrived"]) != 3:
        problems.append(f"{len(server['arrived'])} rounds of 3")
    for problem in problems:
        print("PROBLEM:", problem)
    print("all as it must be" if not problems else f"{len(problems)} problems")
    return bool(problems)


if __name__ == "__main__":
    sys.exit(main())
