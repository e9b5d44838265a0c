"""What one site runs: NVIDIA FLARE's usual training script, without a word of the audit.

`job.py` sends it to the sites.
"""

import argparse
from pathlib import Path

import nvflare.client as flare
import torch
from torch.nn.functional import cross_entropy

from labelleak.lab.datasets import draw, load
from labelleak.lab.networks import build

LEARNING_RATE = 0.1
SAMPLES = 48


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--own-files", type=Path, required=True, help="folder that stays here")
    arguments = parser.parse_args()
    flare.init()
    site = flare.get_site_name()

    # A site's classes are not those of others: their shares are from a Dirichlet distribution.
    digits = load("mnist-sample")
    own = draw("dirichlet", digits.labels, SAMPLES, seed=int(site.rpartition("-")[2]))
    inputs, labels = digits.batch(own)
    # For the audit's score; the attack never sees them, and they stay on the site.
    text = " ".join(str(label) for label in labels.tolist())
    (arguments.own_files / f"labels-{site}.txt").write_text(text)

    model = build("fcn-3", classes=digits.classes, image_shape=digits.image_shape)
    while flare.is_running():
        received = flare.receive()
        model.load_state_dict(received.params)
        optimizer = torch.optim.SGD(model.parameters(), lr=LEARNING_RATE)
        loss = cross_entropy(model(inputs), labels)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        print(f"{site}, round {received.current_round}: loss {loss.item():.3f}")
        flare.send(flare.FLModel(params=model.state_dict(), meta={"NUM_STEPS_CURRENT_ROUND": 1}))


if __name__ == "__main__":
    main()
