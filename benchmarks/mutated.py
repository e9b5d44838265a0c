"""Mutated files of every format that labelleak reads: none may crash it, run code or take long.

    python benchmarks/mutated.py [--files 100000] [--formats pt npz] [--seconds 3600]
        [--output results/benchmark-mutated.json]

File N of a format is always the same. It is read in a child process the way the command line or
an adapter reads it, and must be read or refused by one of the project's own errors. A fault is any
other exception, a child that dies or hangs, a read of more than 10 seconds of processor time, or
code that ran: an audit hook watches for programs, connections, unpickled names and compiled text,
and some of the pickles that are mutated would make a file. The output says how many files of each
format were read; the same command goes on from there. `array` is an array inside an .npz, packed
again with right checksums, since a bare .npy is refused. Exit status 1: there was a fault.
"""

import argparse
import io
import json
import os
import random
import resource
import shutil
import struct
import subprocess
import sys
import tempfile
import time
import warnings
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save, save_file

import measuring
from labelleak.audit.labels import read_labels
from labelleak.audit.record import read_record
from labelleak.audit.running import audit_observation
from labelleak.errors import LabelLeakError
from labelleak.federated import Auditor, Occasion, Policy
from labelleak.federated.policy import read_policy
from labelleak.federated.rounds import read_rounds
from labelleak.lab.store import read_records
from labelleak.report.audit import audit_page
from labelleak.report.pages import held_to_schema
from labelleak.report.rounds import rounds_page
from labelleak.training import LocalTraining
from labelleak.updates import read_observation

ROOT = Path(__file__).parents[1]
SLOW = 10.0  # seconds of the processor: what else the machine does slows no read
HANGS = 60.0
STARTS = 600.0  # imports, on a busy machine
KEPT_FAULTS = 20
TRAINING = LocalTraining(batch_size=8)

NUMBERS = (-(2**63), -1, 0, 1, 2, 5, 6, 20, 255, 2**16, 2**31, 10**12, 2**62, 2**63, 2**64 - 1)
TOKENS = (
    *("null", "true", "-1", "0", "7", "1e999", "NaN", "1e-400", "9" * 400, "9" * 5000),
    *('"x"', '""', "{}", "[]", "[[[[", "}", '"\\ud800"', '"\\u0000"', "\\", "=", "\n", "\r", "\0"),
    *("'''", '"""', "[a.b]", "[[a]]", "1979-05-27T07:32:00Z", "0x1F", "inf", "\ufeff", "," * 99),
    "[" * 2000,
)


class Harm:
    """What a hostile pickle runs: it would make a file."""

    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.canary),)


def tensors(seed: int) -> dict[str, torch.Tensor]:
    """A small model's tensors."""
    generator = torch.Generator().manual_seed(seed)
    return {
        "conv.weight": torch.randn(2, 3, 3, 3, generator=generator),
        "fc.weight": torch.randn(5, 6, generator=generator),
        "fc.bias": torch.randn(5, generator=generator).double(),
        "half.bias": torch.randn(3, generator=generator).bfloat16(),
        "steps": torch.tensor(seed),
    }


def pickled(content: object) -> bytes:
    file = io.BytesIO()
    torch.save(content, file)
    return file.getvalue()


def packed(*, compressed: bool = False, **more: Any) -> bytes:
    file = io.BytesIO()
    arrays = {name: value.double().numpy() for name, value in tensors(1).items()}
    (np.savez_compressed if compressed else np.savez)(file, **{**arrays, **more})
    return file.getvalue()


def sources(scratch: Path, canary: Path) -> dict[str, list[bytes]]:
    """Valid files of each format, and hostile ones: what is mutated."""
    save_file(tensors(0), scratch / "before.safetensors")
    records = scratch / "records"
    auditor = Auditor(Policy(attack="ilrg", records=str(records)))
    before, after = tensors(0), {k: v * 1.01 for k, v in tensors(0).items()}
    counts = torch.tensor([3, 2, 1, 1, 1])
    told = LocalTraining(learning_rate=0.1, batch_size=8, steps=1)
    auditor.audit_update(before, after, told, Occasion(1, "a"), instances=8, true_counts=counts)
    auditor.failed("nothing came", Occasion(2, "a"))
    rounds = b"".join(path.read_bytes() for path in sorted(records.glob("*.jsonl")))
    save_file(tensors(1), scratch / "update.safetensors")
    observation = read_observation(
        scratch / "before.safetensors", scratch / "update.safetensors", training=TRAINING
    )
    audit = audit_observation(observation, "ilrg", true_counts=counts).as_dict()
    with (ROOT / "results" / "quick" / "records.jsonl").open("rb") as file:
        trials = b"".join(file.readline() for _ in range(3))
    states = {"epoch": 1, "state_dict": tensors(1), "lr": 0.1}
    hostile = [pickled({**tensors(1), "harm": Harm(canary)}), pickled(Harm(canary))]
    harm = np.array([Harm(canary)], dtype=object)
    nested: list[Any] = []
    for _ in range(200):
        nested = [nested]
    return {
        "safetensors": [save(tensors(1))],
        "pt": [pickled(tensors(1)), pickled(states), pickled({"x": nested}), *hostile],
        "npz": [packed(), packed(compressed=True), packed(harm=harm)],
        "array": [packed(), packed(fc=harm)],
        "trials": [trials],
        "rounds": [rounds],
        "audit": [json.dumps(audit).encode()],
        "policy": [POLICY.encode()],
        "labels": [b"0 1 2, 3\n4 4 0\r\n1", " ".join(["3"] * 500).encode()],
    }


POLICY = """
action = "refuse"  # or warn
measure = "accuracy"
threshold = 0.5
attack = "auto"
time_limit = 2.0
records = "labelleak-records"
[allow]
numbers = ["loss", "*_accuracy", 'num-examples']
lists = { auc_by_site = 4 }
texts = { "*.status/message" = 7 }
most = 32
"""


def changed(content: bytes, others: list[bytes], rng: random.Random, text: bool) -> bytes:
    """The bytes with a few of them changed, cut, moved or replaced."""
    kinds = ["flip", "write", "insert", "cut", "end", "copy", "splice", "repeat"]
    for _ in range(rng.choice((1, 1, 1, 2, 3, 4))):
        start = rng.randint(0, len(content))
        stop = min(len(content), start + rng.randint(0, 60))
        kind = rng.choice([*kinds, *["token"] * 8 * text])
        new = rng.randbytes(rng.randint(1, 9))
        if rng.random() < 0.5:
            size = rng.choice((1, 2, 4, 8))
            new = (rng.choice(NUMBERS) % 256**size).to_bytes(size, "little")
        if kind == "flip" and content:
            at = rng.randrange(len(content))
            flipped = bytes([content[at] ^ (1 << rng.randrange(8))])
            content = content[:at] + flipped + content[at + 1 :]
        elif kind == "write":
            content = content[:start] + new + content[start + len(new) :]
        elif kind == "insert":
            content = content[:start] + new + content[start:]
        elif kind == "token":
            token = rng.choice(TOKENS).encode("utf-8", "surrogatepass")
            # In place of a value, as the formats write it: up to the next comma or end of line.
            begin = max(content.rfind(mark, 0, start) for mark in (b":", b"=", b",", b"["))
            ends = [at for mark in b",}]\n" if (at := content.find(mark, begin + 1)) >= 0]
            content = content[: begin + 1] + token + content[min(ends, default=stop) :]
        elif kind == "cut":
            content = content[:start] + content[stop:]
        elif kind == "end" and rng.random() < 0.3:
            content = content[:start]
        elif kind == "copy":
            to = rng.randint(0, len(content))
            content = content[:to] + content[start:stop] + content[to:]
        elif kind == "splice":
            other = rng.choice(others)
            content = content[:start] + other[rng.randint(0, len(other)) :]
        elif kind == "repeat":
            content = content[:start] + content[start:stop] * rng.randint(2, 200) + content[stop:]
    return content


def mutated(what: str, number: int, made: dict[str, list[bytes]]) -> bytes:
    """File `number` of a format: changed bytes, or changed parts that are packed again."""
    rng = random.Random(f"{what} {number}")
    content = rng.choice(made[what])
    deep = rng.random() < 0.6
    if what == "safetensors" and deep:
        return with_header(content, rng)
    if what == "array" or (what in ("pt", "npz") and deep):
        return repacked(content, made[what], rng)
    return changed(content, made[what], rng, what not in ("safetensors", "pt", "npz"))


def with_header(content: bytes, rng: random.Random) -> bytes:
    """A safetensors file with another table of tensors, whose length is mostly right."""
    (length,) = struct.unpack("<Q", content[:8])
    table, data = content[8 : 8 + length], content[8 + length :]
    table = changed(table, [table], rng, text=True)
    claimed = rng.choice(NUMBERS) % 2**64 if rng.random() < 0.1 else len(table)
    return struct.pack("<Q", claimed) + table + data


def repacked(content: bytes, others: list[bytes], rng: random.Random) -> bytes:
    """An archive with changed members and right checksums."""
    file = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(content)) as old, zipfile.ZipFile(file, "w") as new:
        names = old.namelist()
        target = rng.choice([*names, *(name for name in names if name.endswith(".pkl"))] * 2)
        for name in names:
            member = old.read(name)
            if name == target:
                member = changed(member, [member], rng, text=rng.random() < 0.2)
            if name != target or rng.random() < 0.95:
                how = rng.choice((zipfile.ZIP_STORED,) * 4 + (zipfile.ZIP_DEFLATED,))
                new.writestr(name, member, how)
    return file.getvalue()


def readers(scratch: Path) -> dict[str, tuple[str, Callable[[Path], object]]]:
    """Ending of the files of each format, and what reads one."""
    before = scratch / "before.safetensors"

    def observe(path: Path) -> object:
        return read_observation(before, path, training=TRAINING)

    def audit(path: Path) -> object:
        record = read_record(path)
        with held_to_schema(path):
            return audit_page(record, [])

    return {
        "safetensors": (".safetensors", observe),
        "pt": (".pt", observe),
        "npz": (".npz", observe),
        "array": (".npz", observe),
        "trials": (".jsonl", read_records),
        "rounds": (".jsonl", lambda path: rounds_page(read_rounds(path), source=path)),
        "audit": (".json", audit),
        "policy": (".toml", read_policy),
        "labels": (".txt", lambda path: read_labels(path, 5)),
    }


WATCHED = {
    *("os.system", "os.exec", "os.fork", "os.posix_spawn", "os.mkdir", "subprocess.Popen"),
    *("socket.connect", "pickle.find_class", "ctypes.dlopen"),
}


def child(what: str, start: int, stop: int, scratch: Path) -> None:
    """Read some files; a line of JSON for every 500 of them, and for every fault."""
    canary = scratch / "canary"
    made = sources(scratch, canary)
    ending, read = readers(scratch)[what]
    path = scratch / f"mutated{ending}"
    place = os.open(scratch / "number", os.O_WRONLY | os.O_CREAT)
    watched: list[str] = []
    counts: Counter[str] = Counter()
    slowest = 0.0
    warnings.simplefilter("ignore")
    for content in made[what]:  # what libraries import and set up at first use
        path.write_bytes(content)
        attempt(read, path)

    def watch(event: str, _: object) -> None:
        if event in WATCHED:
            watched.append(event)

    sys.addaudithook(watch)
    for number in range(start, stop):
        # At once, so that the parent never sees a part of it.
        os.pwrite(place, b"%09d" % number, 0)
        path.write_bytes(mutated(what, number, made))
        watched.clear()
        begun = time.process_time()
        outcome = attempt(read, path)
        seconds = time.process_time() - begun
        slowest = max(slowest, seconds)
        ran = [*watched, *(["the canary"] if canary.exists() else [])]
        problem = f"ran {ran}" if ran else outcome if outcome not in ("read", "refused") else ""
        if seconds > SLOW:
            problem = f"{seconds:.1f} s"
        if problem:
            print(json.dumps({"fault": [what, number, problem]}), flush=True)
            shutil.rmtree(canary, ignore_errors=True)
        counts["fault" if problem else outcome] += 1
        if (number + 1) % 500 == 0 or number + 1 == stop:
            peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
            row = {"next": number + 1, "slowest": slowest, "peak_bytes": peak, "counts": counts}
            print(json.dumps(row), flush=True)
            counts.clear()


def attempt(read: Callable[[Path], object], path: Path) -> str:
    """How a file was read: ``read``, ``refused``, or the error that is no error of the project."""
    try:
        read(path)
    except LabelLeakError as error:
        lines = str(error).splitlines()
        clear = len(lines) == 1 and len(lines[0]) < 3000
        return "refused" if clear else f"an error of {len(lines)} lines: {error!r:.200}"
    except BaseException as error:
        return f"{error!r:.300}"
    return "read"


def run(what: str, row: dict[str, Any], stop: int, until: float) -> Iterator[None]:
    """Read files in children until there are enough, or the time is up; a step is 5,000 files."""
    while row["files"] < stop and time.monotonic() < until:
        with tempfile.TemporaryDirectory(prefix="labelleak-mutated-") as name:
            scratch, start = Path(name), row["files"]
            last = min(stop, start + 5000)
            command = [sys.executable, __file__, "--child", what, str(start), str(last), name]
            place, said, reached = scratch / "number", scratch / "said", ""
            with said.open("w") as file:
                process = subprocess.Popen(command, stdout=file)
            changed_at = time.monotonic()
            while process.poll() is None:
                time.sleep(0.2)
                now = place.read_text() if place.exists() else ""
                if now != reached:
                    reached, changed_at = now, time.monotonic()
                if time.monotonic() - changed_at > (HANGS if reached else STARTS):
                    process.kill()
            note(row, said.read_text())
            if process.returncode:
                if not reached:
                    sys.exit(f"the child for {what} does not start")
                number = int(place.read_text())
                row["faults"].append([what, number, f"the child ended with {process.returncode}"])
                row["fault"] += 1
                row["files"] = number + 1
        shown = ("format", "files", "read", "refused", "fault")
        print({key: row[key] for key in shown}, flush=True)
        yield


def note(row: dict[str, Any], text: str) -> None:
    """Add what a child said to the figures of its format."""
    for line in text.split("\n")[:-1]:
        told = json.loads(line)
        if "fault" in told:
            row["faults"] = [*row["faults"], told["fault"]][:KEPT_FAULTS]
            print("FAULT:", *told["fault"], flush=True)
            continue
        row["files"] = told["next"]
        row["slowest_seconds"] = max(row["slowest_seconds"], told["slowest"])
        row["peak_bytes"] = max(row["peak_bytes"], told["peak_bytes"])
        for key, amount in told["counts"].items():
            row[key] += amount


def main() -> int:
    """Read more mutated files of each format, and write down what happened."""
    if sys.argv[1:2] == ["--child"]:
        what, start, stop, scratch = sys.argv[2:]
        child(what, int(start), int(stop), Path(scratch))
        return 0
    names = list(readers(Path()))
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--files", type=int, default=100_000, help="of each format, in all")
    parser.add_argument("--formats", nargs="+", choices=names, default=names)
    parser.add_argument("--seconds", type=float, default=float("inf"), help="when to stop")
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    load = measuring.load()
    rows = {
        name: {"format": name, "files": 0, "read": 0, "refused": 0, "fault": 0, "faults": []}
        | {"slowest_seconds": 0.0, "peak_bytes": 0}
        for name in names
    }
    if options.output is not None and options.output.exists():
        rows |= {row["format"]: row for row in json.loads(options.output.read_text())["rows"]}
    until = time.monotonic() + options.seconds
    running = [run(name, rows[name], options.files, until) for name in options.formats]
    while running:
        # One step of each in turns, so that an interruption finds all about equally far.
        if next(running[0], running[0]) is None:
            running.append(running[0])
        del running[0]
        measuring.write(options.output, __doc__, load, 1, rows=list(rows.values()))
    return any(row["fault"] for row in rows.values())


if __name__ == "__main__":
    sys.exit(main())
