"""Samples that a site lends its audits: they are used, and leave neither with it nor in records."""

from collections import OrderedDict

import pytest
import torch
from torch import nn

pytest.importorskip("flwr")

import flwr.app  # noqa: F401

from flower_in_process import (
    CLASSES,
    RATE,
    SAMPLES,
    context,
    instruction,
    made_policy,
    made_update,
    reply_to,
    wire,
)
from labelleak import InvalidObservation
from labelleak.federated import read_rounds
from labelleak.federated.flower import LeakageAudit, provide_auxiliary, provide_labels


def network():
    layers = OrderedDict(
        body=nn.Linear(6, 16), norm=nn.BatchNorm1d(16), act=nn.ReLU(), fc=nn.Linear(16, CLASSES)
    )
    return nn.Sequential(layers).eval()


def samples(each=5):
    labels = torch.arange(CLASSES).repeat(each)
    return 1 + 0.02 * torch.randn(
        len(labels), 6, generator=torch.Generator().manual_seed(5)
    ), labels


@pytest.mark.parametrize("lent", [True, False])
def test_an_attack_that_needs_samples_has_them_only_where_they_are_lent(tmp_path, lent):
    found, labels = made_update()
    audit = LeakageAudit(made_policy(tmp_path, attack="rlu"), model=network())
    inputs, classes = samples()
    seen = []

    def app(message, _):
        provide_labels(labels)
        if lent:
            provide_auxiliary(inputs, classes)
        seen.append(reply_to(message, found.after, num_examples=SAMPLES))
        return seen[0]

    left = audit(instruction(found.before, lr=RATE), context(batch_size=SAMPLES), app)
    (record,) = read_rounds(tmp_path / "r")
    if lent:
        assert record["audit"]["attack"] == "rlu"
        assert record["audit"]["counts"] == found.true_counts.tolist()
    else:
        assert record["verdict"] == "failed"
        assert "needs auxiliary data" in record["error"]
    # As without it, not a byte more.
    assert wire(left) == wire(seen[0])
    assert inputs[0, 0].numpy().tobytes() not in wire(left)
    assert str(float(inputs[0, 0])) not in str(record)


def test_what_was_lent_is_gone_after_the_round(tmp_path):
    found, _ = made_update()
    audit = LeakageAudit(made_policy(tmp_path, attack="rlu"), model=network())

    def lends(message, _):
        provide_auxiliary(*samples())
        return reply_to(message, found.after, num_examples=SAMPLES)

    here = context(batch_size=SAMPLES)
    audit(instruction(found.before, lr=RATE), here, lends)
    audit(
        instruction(found.before, lr=RATE),
        here,
        lambda message, _: reply_to(message, found.after, num_examples=SAMPLES),
    )
    first, second = read_rounds(tmp_path / "r")
    assert first["audit"] is not None
    assert second["audit"] is None


def test_samples_that_do_not_belong_together_are_refused():
    with pytest.raises(InvalidObservation, match="one label per input"):
        provide_auxiliary(torch.ones(2, 6), torch.tensor([0]))
