"""A client's local step on real digits, written to files as a federation would send them."""

import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch

from labelleak.attacks import list_attacks
from labelleak.audit.labels import read_labels
from labelleak.audit.record import AuditRecord
from labelleak.audit.running import audit_observation
from labelleak.errors import MissingKnowledge, UnreadableFile
from labelleak.lab.datasets import draw, load
from labelleak.lab.networks import build
from labelleak.metrics import counts_of
from labelleak.storage import write_whole
from labelleak.training import LocalTraining
from labelleak.updates import read_observation

BATCH_SIZE = 24
LEARNING_RATE = 0.1
NETWORK = "fcn-3"
_SEED = 2026
# Samples that the client has beside those of the batch.
_MORE = 3 * BATCH_SIZE


@dataclass(frozen=True)
class DemoFiles:
    """The files of the demo.

    Attributes:
        before: The model that the server hands out.
        gradients: The gradients of that batch by parameter name, as FedSGD sends them.
        weights: The weights after one local step with them, as FedAvg sends them.
        labels: The client's private labels, used only to score.
        data: All samples of the client with their labels, those of the batch first, for
            `labelleak advise`.
        description: The network, the data and the step, for the reader.
    """

    before: Path
    gradients: Path
    weights: Path
    labels: Path
    data: Path
    description: str

    def command(self, between: str = " ") -> str:
        """The command line that audits the same files.

        Args:
            between: Text between the options, such as a line break for a shell.
        """
        return between.join(
            [
                "labelleak audit",
                f"--before {shlex.quote(str(self.before))}",
                f"--update {shlex.quote(str(self.weights))}",
                "--kind weights",
                f"--learning-rate {LEARNING_RATE}",
                f"--batch-size {BATCH_SIZE}",
                f"--labels {shlex.quote(str(self.labels))}",
            ]
        )


def network() -> torch.nn.Module:
    """The demo's network, for ``labelleak advise --model labelleak.lab.demo:network``."""
    digits = load("mnist-sample")
    return build(NETWORK, classes=digits.classes, image_shape=digits.image_shape, seed=_SEED)


def run_client(folder: Path) -> DemoFiles:
    """Do one local step of SGD on a private batch, by autograd as in any training loop.

    Args:
        folder: Folder for the files; created if it is missing.

    Returns:
        The files.

    Raises:
        UnreadableFile: The folder cannot be written to.
    """
    from safetensors.torch import save

    digits = load("mnist-sample")
    inputs, labels = digits.batch(draw("random", digits.labels, BATCH_SIZE, _SEED))
    more, more_labels = digits.batch(draw("random", digits.labels, _MORE, _SEED + 1))
    model = network()
    files = DemoFiles(
        folder / "model.safetensors",
        folder / "gradients.safetensors",
        folder / "weights.safetensors",
        folder / "labels.txt",
        folder / "data.safetensors",
        f"{BATCH_SIZE} handwritten digits (MNIST), network {NETWORK} (784-300-300-10, untrained), "
        f"one local step of SGD with learning rate {LEARNING_RATE}",
    )
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UnreadableFile(f"{folder}: cannot be written: {error.strerror}") from None
    write_whole(files.before, save(model.state_dict()))
    optimizer = torch.optim.SGD(model.parameters(), lr=LEARNING_RATE)
    torch.nn.functional.cross_entropy(model(inputs), labels).backward()  # type: ignore[no-untyped-call]
    gradients = {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
    write_whole(files.gradients, save(gradients))
    optimizer.step()
    write_whole(files.weights, save(model.state_dict()))
    samples = {"inputs": torch.cat([inputs, more]), "labels": torch.cat([labels, more_labels])}
    write_whole(files.data, save(samples))
    write_whole(files.labels, " ".join(map(str, labels.tolist())) + "\n")
    return files


def audit_files(files: DemoFiles) -> Iterator[AuditRecord]:
    """Audit the files like a user's own, by ``auto`` and then by every attack that can run.

    Args:
        files: The files that `run_client` wrote.

    Yields:
        The record of ``auto`` first, then one per attack whose needs the files meet.
    """
    observation = read_observation(
        files.before,
        files.weights,
        kind="weights",
        training=LocalTraining(learning_rate=LEARNING_RATE, batch_size=BATCH_SIZE, steps=1),
    )
    labels = read_labels(files.labels, observation.classes)
    possible = [name for name, entry in list_attacks().items() if not entry.missing(observation)]
    for attack in ("auto", *possible):
        try:
            record = audit_observation(
                observation,
                attack,
                true_counts=counts_of(labels, observation.classes),
                source={
                    "before": str(files.before),
                    "update": str(files.weights),
                    "kind": "weights",
                    "learning_rate": LEARNING_RATE,
                },
            )
        except MissingKnowledge:
            # Some attacks find out only from the gradient that something is missing.
            continue
        yield record
