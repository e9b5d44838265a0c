"""A site looks at what its own update gives away before it sends it.

Trains a small network for one local step on a batch of the embedded digits, audits the update as
an honest-but-curious server would, and tries two defenses on it.

    python examples/audit_before_sending.py
"""

from functools import partial

import torch

import labelleak
from labelleak.defenses import Defense, defend, gaussian_noise, sparsify
from labelleak.lab.datasets import draw, load
from labelleak.lab.networks import build
from labelleak.metrics import counts_of


def main() -> None:
    """Print how many of the private labels each version of the update gives away."""
    digits = load("mnist-sample")
    inputs, labels = digits.batch(draw("random", digits.labels, 24, seed=2))
    model = build("fcn-3", classes=digits.classes, image_shape=digits.image_shape, seed=2)

    # The training loop, as it is.
    before = {name: value.clone() for name, value in model.state_dict().items()}
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    torch.nn.functional.cross_entropy(model(inputs), labels).backward()  # type: ignore[no-untyped-call]
    optimizer.step()

    # What the server sees, and what a defense would leave of it.
    sent = labelleak.observe_update(
        model, before, model.state_dict(), learning_rate=0.1, batch_size=len(labels)
    )
    noise = torch.Generator().manual_seed(0)
    defenses: dict[str, Defense] = {
        "as it is": dict,
        "with noise of 0.01": partial(gaussian_noise, std=0.01, generator=noise),
        "with the smallest 80% zeroed": partial(sparsify, percent=80.0, scope="tensor"),
    }
    truth = counts_of(labels, digits.classes)
    for name, defense in defenses.items():
        found = labelleak.restore(defend(sent, defense))
        accuracy = labelleak.score(found, truth).accuracy
        flags = ", ".join(flag.name.lower() for flag in found.flags) or "no flags"
        print(f"{name:<30} {found.attack} restores {accuracy:.0%} of the labels ({flags})")


if __name__ == "__main__":
    main()
