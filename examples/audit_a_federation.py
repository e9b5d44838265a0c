"""Audit every client in every round of a federation, in a training loop of one's own.

Three clients with different shares of the embedded digits train by FedAvg: one local epoch of two
batches a round. Each update is audited twice, as trained and with noise on it; the noisy one is
sent. Then a page shows what every client gave away in every round.

    python examples/audit_a_federation.py
"""

import torch

from labelleak.federated import Auditor, Occasion, Policy, read_rounds, train_locally
from labelleak.lab.datasets import load
from labelleak.lab.networks import build
from labelleak.report.rounds import rounds_page
from labelleak.training import LocalTraining

CLIENTS, ROUNDS, SAMPLES, BATCH, RATE, NOISE = 3, 5, 48, 24, 0.05, 2e-3


def main() -> None:
    """Train, audit, and write the page."""
    digits = load("mnist-sample")
    random = torch.Generator().manual_seed(1)
    model = build("fcn-3", classes=digits.classes, image_shape=digits.image_shape, seed=2)
    auditor = Auditor(Policy(action="record", threshold=0.6, records="federation-records"))
    training = LocalTraining("sgd", learning_rate=RATE, batch_size=BATCH, momentum=0.0)
    # Every client has digits of its own, most of them of few classes.
    shares = torch.full((CLIENTS, digits.classes), 0.2)
    shares[torch.arange(CLIENTS), torch.arange(CLIENTS) * 2] = 3.0
    local = [torch.multinomial(share[digits.labels], SAMPLES, generator=random) for share in shares]
    for number in range(1, ROUNDS + 1):
        sent = []
        for client, own in enumerate(local, start=1):
            inputs, labels = digits.batch(own)
            update = train_locally(
                model,
                inputs,
                labels,
                training,
                classes=digits.classes,
                seed=number,
            )
            noisy = {
                name: value + NOISE * torch.randn(value.shape, generator=random)
                for name, value in update.after.items()
            }
            for label, weights in (("as trained", update.after), ("with noise", noisy)):
                decision = auditor.audit_update(
                    update.before,
                    weights,
                    training,
                    Occasion(number, f"hospital {client}", label),
                    instances=SAMPLES,
                    true_counts=update.true_counts,
                )
            if decision.send:
                sent.append(noisy)
        if sent:
            average = {
                name: torch.stack([weights[name] for weights in sent]).mean(dim=0)
                for name in sent[0]
            }
            model.load_state_dict(average)
        print(
            f"round {number}: {decision.record.client}, {decision.record.label}: {decision.reason}"
        )
    page = rounds_page(read_rounds("federation-records"))
    with open("federation.html", "w", encoding="utf-8") as file:
        file.write(page)
    print("page: federation.html")


if __name__ == "__main__":
    main()
