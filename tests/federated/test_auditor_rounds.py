"""An auditor over the rounds of one client, and over the clients of one round."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from labelleak import Auxiliary, LocalTraining
from labelleak.federated import (
    Auditor,
    Occasion,
    Policy,
    append_record,
    read_rounds,
    train_locally,
)
from synthetic import rng

CLASSES, INPUTS, SAMPLES = 4, 12, 60
MEANS = 2 * torch.randn(CLASSES, INPUTS, generator=rng(0))
RECIPE = LocalTraining("sgd", 0.1, batch_size=20, momentum=0.0)


def network():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        return nn.Sequential(nn.Linear(INPUTS, 16), nn.ReLU(), nn.Linear(16, CLASSES))


def samples(labels, seed):
    return MEANS[labels] + torch.randn(len(labels), INPUTS, generator=rng(seed))


def auxiliary():
    labels = torch.arange(CLASSES).repeat_interleave(30)
    return Auxiliary(samples(labels, 2), labels)


def update_of(client, number=1):
    """What a client of these counts sends in a round."""
    shares = torch.rand(CLASSES, generator=rng(client)) ** 2
    labels = torch.multinomial(shares, SAMPLES, replacement=True, generator=rng(client))
    inputs = samples(labels, 10 + client)
    return train_locally(network(), inputs, labels, RECIPE, classes=CLASSES, seed=number)


@pytest.fixture
def auditor(tmp_path):
    def make(action="warn", **fields):
        fields = {"attack": "pooled", "time_limit": 10.0, **fields}
        policy = Policy(action, records=str(tmp_path / "r"), **fields)
        return Auditor(policy, model=network(), auxiliary=auxiliary())

    return make


def audit(auditor, update, number=1, client="a", counts=None):
    return auditor.audit_update(
        update.before,
        update.after,
        RECIPE,
        Occasion(number, client),
        instances=SAMPLES,
        true_counts=update.true_counts if counts is None else counts,
    )


def test_another_process_goes_on_with_the_answer(auditor, tmp_path):
    for number in (1, 2, 3):
        audit(auditor(), update_of(5, number), number)
    records = read_rounds(tmp_path / "r")
    assert [one["known"]["rounds"] for one in records] == [[1], [1, 2], [1, 2, 3]]
    widths = [sum(high - low for low, high in one["known"]["intervals"]) for one in records]
    assert widths[2] <= widths[1] <= widths[0]
    assert all(sum(one["known"]["counts"]) == SAMPLES for one in records)


def test_other_labels_are_other_data(auditor):
    one = auditor()
    audit(one, update_of(5))
    known = audit(one, update_of(7), 2).record.known
    assert known["rounds"] == [2]
    assert known["left_out"] == [{"round": 1, "why": "it is of other data, by the labels"}]


def test_a_policy_of_all_rounds_judges_what_is_known_in_all(auditor, tmp_path):
    """An earlier round told all; this one alone tells less than the limit."""
    update = update_of(5)
    limit = {"measure": "accuracy", "threshold": 0.99}
    told = audit(auditor(), update).record
    (tmp_path / "r" / "client-a.jsonl").unlink()
    counts = update.true_counts.tolist()
    sharp = {"counts": counts, "intervals": [[one - 0.01, one + 0.01] for one in counts]}
    append_record(tmp_path / "r", replace(told, audit=told.audit | sharp))
    alone = audit(auditor(**limit), update, 2, client="b").record
    assert alone.verdict != "over"
    in_all = audit(auditor("refuse", **limit, across_rounds=True), update, 2)
    assert (in_all.record.verdict, in_all.send) == ("over", False)
    assert in_all.reason.startswith("rounds 1 and 2 together: their combination restored 100.0%")


def test_a_policy_of_all_rounds_refuses_where_records_were_touched(auditor, tmp_path):
    audit(auditor(), update_of(5))
    (tmp_path / "r" / "client-a.jsonl").write_text("{}\n")
    strict = auditor("refuse", measure="accuracy", threshold=1.0, across_rounds=True)
    decision = audit(strict, update_of(5), 2)
    assert not decision.send
    assert decision.record.known["verdict"] == "failed"
    assert "line 1: is no record" in decision.record.known["reason"]


def test_clients_of_a_round_share_virtual_clients(auditor):
    """The clock is up at once: the first client trains as few as there must be, others none."""
    one = auditor(attack="virtual", time_limit=1e-9)
    audit(one, update_of(5))
    shared = one._of_attack["shared"]
    assert len(shared.pools) == 12
    audit(one, update_of(6), client="b")
    assert len(shared.pools) == 12


def test_gradients_and_aggregates_have_no_running_answer(auditor):
    one, update = auditor(), update_of(5)
    total = Occasion(1, "aggregate", aggregate_of=3)
    decision = one.audit_update(update.before, update.after, RECIPE, total, instances=SAMPLES)
    assert decision.record.known is None
    gradients = {name: value - update.after[name] for name, value in update.before.items()}
    decision = one.audit_gradients(
        update.before, gradients, LocalTraining(batch_size=SAMPLES), Occasion(1, "b")
    )
    assert decision.record.audit is not None
    assert decision.record.known is None
