"""An auditor of clients whose loss has a sigmoid for each label, or one logit."""

import pytest
import torch
from torch import nn

from labelleak import LocalTraining, Loss
from labelleak.federated import Auditor, Occasion, Policy

K, LABELS = 30, 8


def step(outputs, targets):
    torch.manual_seed(3)
    model = nn.Sequential(nn.Linear(11, 16), nn.ReLU(), nn.Linear(16, outputs))
    before = {name: value.detach().clone() for name, value in model.state_dict().items()}
    inputs = torch.randn(K, 11, generator=torch.Generator().manual_seed(7)) * 0.05 + 1
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    nn.functional.binary_cross_entropy_with_logits(model(inputs), targets.float()).backward()
    optimizer.step()
    return model, before, {name: value.detach() for name, value in model.state_dict().items()}


def auditor(folder, **settings):
    policy = Policy(action="refuse", threshold=0.5, records=str(folder))
    return Auditor(policy, loss="bce", **settings)


@pytest.mark.parametrize("whole", [False, True])
def test_counts_of_labels_pass_through(tmp_path, whole):
    chance = torch.linspace(0.1, 0.6, LABELS)
    sets = (torch.rand(K, LABELS, generator=torch.Generator().manual_seed(3)) < chance).long()
    model, before, after = step(LABELS, sets)
    audits = auditor(tmp_path, **({"model": model} if whole else {}))
    decision = audits.audit_update(
        audits.snapshot(before),
        after,
        LocalTraining(learning_rate=0.1, batch_size=K),
        Occasion(round=1, client="hospital"),
        instances=K,
        true_counts=sets.sum(dim=0),
    )
    assert (decision.send, decision.record.verdict) == (False, "over")
    assert decision.record.audit["counts"] == sets.sum(dim=0).tolist()
    assert audits.classes(before) == LABELS


def test_one_logit_is_two_classes(tmp_path):
    own = (torch.arange(K) % 3 == 0).long()[:, None]
    _, before, after = step(1, own)
    audits = auditor(tmp_path)
    assert audits.classes(before) == 2
    decision = audits.audit_update(
        audits.snapshot(before),
        after,
        LocalTraining(learning_rate=0.1, batch_size=K),
        Occasion(round=1, client="hospital"),
        instances=K,
        true_counts=torch.tensor([20, 10]),
    )
    assert decision.record.verdict == "over"
    assert decision.record.audit["classes"] == 2


def test_more_of_a_label_than_there_are_samples_is_refused(tmp_path):
    sets = torch.ones(K, LABELS)
    sets[::2] = 0
    _, before, after = step(LABELS, sets)
    decision = auditor(tmp_path).audit_update(
        before,
        after,
        LocalTraining(learning_rate=0.1, batch_size=K),
        Occasion(round=1, client="hospital"),
        instances=K,
        true_counts=torch.full((LABELS,), K + 1),
    )
    assert decision.record.verdict == "failed"
    assert "31 samples are said to have a label" in decision.record.error


def test_a_loss_from_settings():
    loss = Loss.of({"kind": "bce", "positive_weights": [1.0, 2.0]})
    assert loss.positive_weights.tolist() == [1.0, 2.0]
    with pytest.raises(ValueError, match="'weight' is nothing that is told of a loss"):
        Loss.of({"kind": "bce", "weight": [1.0]})
