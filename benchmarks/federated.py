"""Cost of an audit in a federation, as a share of the local training that it follows, in one run.

    python benchmarks/federated.py [--output results/benchmark-federated.json]

Two clients with 640 random images of 32 x 32 pixels and random labels, in training mode:
`resnet18` (the paper's stem, 100 classes) and `quick-start`, the network of Flower's PyTorch
quick-start (10 classes). `training` is one epoch of SGD in batches of 64; `audit-epoch` is the
audit of what it sends by the default policy, with the true counts and the record on disk;
`audit-step` that of the first step alone, K = 64, where the search for a certificate has a chance.
They follow each other in one process, which another audit has warmed up; a share is the median over
the turns, where there are several. Time is processor time of one thread, which other work on the
machine hardly changes.

Memory is the peak of the resident set: of the whole process with audits and without, and during an
audit alone above what stands before it. For the former it trains for two steps, each with the same
peak. `kept` is what the auditor copies before the training (Linux only).
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from labelleak.federated import Auditor, Occasion, Policy
from labelleak.lab import networks
from labelleak.training import LocalTraining
from measuring import Row, in_own_process, load, peak, reset_peak, write

IMAGES, BATCH, CLASSES = 640, 64, 100
RATE = 0.01
TRAINING = LocalTraining(learning_rate=RATE, batch_size=BATCH)
TURNS, MEMORY_TURNS = 1, 3
# A training reaches its memory peak in its first steps.
FEW = 2 * BATCH
STEP, EPOCH = "audit-step", "audit-epoch"


def resnet18(seed: int) -> nn.Module:
    return networks.build("resnet18", classes=CLASSES, image_shape=(3, 32, 32), seed=seed)


def quick_start(seed: int) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(
        *(nn.Conv2d(3, 6, 5), nn.ReLU(), nn.MaxPool2d(2, 2)),
        *(nn.Conv2d(6, 16, 5), nn.ReLU(), nn.MaxPool2d(2, 2), nn.Flatten()),
        *(nn.Linear(16 * 5 * 5, 120), nn.ReLU(), nn.Linear(120, 84), nn.ReLU(), nn.Linear(84, 10)),
    )


CLIENTS = {"resnet18": (resnet18, CLASSES), "quick-start": (quick_start, 10)}


def turn(seed: int, audits: Sequence[str], images: int = IMAGES, client: str = "resnet18") -> Row:
    """One round: the training and the given audits (run in a fresh process)."""
    torch.set_num_threads(1)
    build, classes = CLIENTS[client]
    model = build(seed).train()
    random = torch.Generator().manual_seed(seed)
    inputs = torch.randn(images, 3, 32, 32, generator=random)
    labels = torch.randint(classes, (images,), generator=random)
    optimizer = torch.optim.SGD(model.parameters(), lr=RATE)
    row: Row = {}
    with tempfile.TemporaryDirectory() as folder:
        auditor = Auditor(Policy(records=folder))
        before = auditor.snapshot(model.state_dict()) if audits else {}
        row["kept_bytes"] = sum(value.nbytes for value in before.values())
        if audits:
            # Imports, and what libraries set up at first use.
            warm = model.state_dict() | {name: value * 1.001 for name, value in before.items()}
            auditor.audit_update(before, warm, TRAINING, Occasion(0, "a"), instances=2)
        row["training"] = 0.0
        first: dict[str, Tensor] = {}
        for batch in torch.split(torch.arange(images), BATCH):
            start = time.process_time()
            optimizer.zero_grad()
            logits = model(inputs[batch])
            torch.nn.functional.cross_entropy(logits, labels[batch]).backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            row["training"] += time.process_time() - start
            if STEP in audits and not first:
                first = {name: value.clone() for name, value in model.state_dict().items()}
        row["peak_bytes"] = peak()
        for name in audits:
            size = BATCH if name == STEP else images
            counts = torch.bincount(labels[:size], minlength=classes)
            stood = reset_peak()
            start = time.process_time()
            decision = auditor.audit_update(
                before,
                first if name == STEP else model.state_dict(),
                TRAINING,
                Occasion(1, "a"),
                instances=size,
                true_counts=counts,
            )
            seconds = time.process_time() - start
            found = decision.record.audit
            assert found is not None, decision.reason
            row[name] = {
                "seconds": seconds,
                "peak_bytes": peak() - stood,
                "attack": found["attack"],
                "accuracy": found["score"]["accuracy"],
                "verdict": decision.record.verdict,
            }
            row["peak_bytes"] = max(row["peak_bytes"], peak())
    return row


def audited(client: str, name: str, turns: list[Row]) -> Row:
    """What an audit took, over all turns; printed, too."""
    audits = [one[name] for one in turns]
    shares = [one[name]["seconds"] / one["training"] for one in turns]
    row = {
        "client": client,
        "name": name,
        "seconds": statistics.median(audit["seconds"] for audit in audits),
        "share": statistics.median(shares),
        "largest_share": max(shares),
        "peak_bytes": max(audit["peak_bytes"] for audit in audits),
        "found": [[audit[k] for k in ("attack", "accuracy", "verdict")] for audit in audits],
    }
    print(
        f"{client:<13}{name:<13}{row['seconds']:>8.3f}{row['share']:>9.4f}"
        f"{row['peak_bytes'] / 1e6:>9.2f}  {row['found']}",
        flush=True,
    )
    return row


def main() -> None:
    """Measure, print a table, and write the figures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--output", type=Path, default=None)
    output = parser.parse_args().output
    load_before = load()
    print(f"{'client':<13}{'what':<13}{'s':>8}{'share':>9}{'peak MB':>9}  found")
    results: list[Row] = []
    training: Row = {}
    kept = 0
    for client in CLIENTS:
        turns = [in_own_process(turn, seed, (STEP, EPOCH), IMAGES, client) for seed in range(TURNS)]
        training[client] = statistics.median(one["training"] for one in turns)
        kept = max(kept, turns[0]["kept_bytes"])
        print(f"{client:<13}{'training':<13}{training[client]:>8.3f}", flush=True)
        results += [audited(client, name, turns) for name in (STEP, EPOCH)]
    # An audit that a client would run: of the epoch alone, so that no other weights are kept.
    peaks = {
        name: [
            in_own_process(turn, seed, audits, FEW)["peak_bytes"] for seed in range(MEMORY_TURNS)
        ]
        for name, audits in (("without", ()), ("with", (EPOCH,)))
    }
    print(
        f"kept {kept / 1e6:.2f} MB; peak MB:", {k: [v / 1e6 for v in p] for k, p in peaks.items()}
    )
    write(
        output,
        __doc__,
        load_before,
        threads=1,
        training_seconds=training,
        images=IMAGES,
        turns=TURNS,
        results=results,
        kept_bytes=kept,
        head_bytes=(512 + 1) * CLASSES * 4,
        process_peak_bytes=peaks,
    )


if __name__ == "__main__":
    main()
