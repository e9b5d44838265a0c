"""No count below ten may leave: refused, advised, changed, and sent.

    python rule_of_ten.py

The screening unit's updates are refused, as few of its patients have a malignant tumor. There, on
the update that was refused, everything is tried that the unit could change; the cheapest change
with which the rule holds is made, and the next update leaves.
"""

from pathlib import Path
from tempfile import TemporaryDirectory
from textwrap import fill
from typing import Any

from federation import PATIENTS, RATE, run
from flwr.app import Message
from hospitals.task import NAMES, admitted, network

from labelleak import LocalTraining
from labelleak.advice import Advice, LocalClient, advise
from labelleak.federated import read_rounds, train_locally

POLICY = """\
action = "refuse"
measure = "small-cells"
floor = 10
records = "{}"
"""
UNIT = NAMES.index("screening unit")


def main() -> None:
    """Refused with the reason, passed after the cheapest remedy."""
    before = federated((PATIENTS,) * 3, "As it is")
    assert before["action"] == "refused"
    advice = advice_for_the_unit()
    print("\nWhat the screening unit could change, tried on the update that was refused:")
    print("left    verdict         change")
    for change in advice.changes:
        left = "-" if change.cosine is None else f"{change.cosine:.3f}"
        print(f"{left:<7} {change.verdict:<15} {change.name}: {change.setting}")
    for untried in advice.untried:
        say(f"-       not tried       {untried.name}: {untried.why}")
    say(advice.summary)
    remedy = advice.cheapest
    assert remedy is not None
    assert remedy.name == "batch size"
    larger = int(remedy.setting.split()[0])
    after = federated((PATIENTS, PATIENTS, larger), f"\nWith {larger} patients a round there")
    assert after["action"] == "sent"


def federated(patients: tuple[int, ...], title: str) -> dict[str, Any]:
    """Run a federation under the rule; the unit's first record, after printing what became of it.

    Args:
        patients: How many patients each hospital takes in a round.
        title: What to print first.
    """
    with TemporaryDirectory() as folder:
        _, replies = run("logistic", POLICY, Path(folder), patients)
        records = read_rounds(Path(folder, "records"))
    print(title)
    for record in sorted(records, key=lambda record: int(record["round"])):
        if record["client"] == f"partition-{UNIT}":
            audit = record["audit"]
            counts = f"{audit['true_counts'][1]} malignant of {audit['samples']}"
            say(f"round {record['round']}, {counts}: {record['action']}: {record['reason']}")
    say(f"the server: {told(replies)}")
    return next(r for r in records if (r["client"], r["round"]) == (f"partition-{UNIT}", 1))


def say(text: str) -> None:
    """Print a sentence, in lines that a terminal holds."""
    print(fill(text, 110, subsequent_indent="  "))


def told(replies: list[Message]) -> str:
    """What the server received."""
    errors = [str(reply.error.reason) for reply in replies if reply.has_error()]
    text = f"{len(replies) - len(errors)} updates and {len(errors)} errors"
    return f"{text} ({'; '.join(dict.fromkeys(errors))})" if errors else text


def advice_for_the_unit() -> Advice:
    """Everything that the unit could change, tried on its first update."""
    model = network("logistic")
    inputs, labels = admitted(UNIT, 1)
    recipe = LocalTraining(learning_rate=RATE)
    update = train_locally(
        model, inputs[:PATIENTS], labels[:PATIENTS], recipe, classes=2, loss="bce"
    )
    return advise(
        update.observe(None),
        update.true_counts,
        client=LocalClient(model, inputs, labels),  # those of the update first
        measure="small-cells",
        floor=10,
    )


if __name__ == "__main__":
    main()
