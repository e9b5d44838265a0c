import math
from dataclasses import replace
from functools import partial

import pytest
import torch
from torch import nn

import labelleak
from labelleak import advice as advice_of
from labelleak.advice import LocalClient
from labelleak.advice.trials import cosine_of
from labelleak.errors import InvalidObservation
from labelleak.federated import Auditor, Occasion, Policy, train_locally
from labelleak.metrics import counts_of

advise = partial(advice_of.advise, time_limit=0.1)
LOSSES = (
    labelleak.Loss("bce", positive_weights=torch.ones(1)),
    labelleak.Loss("sigmoid_focal", gamma=2.0, alpha=0.25),
)


@pytest.fixture(scope="module")
def client():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 5)).eval()
    return LocalClient(model, torch.rand(48, 8), torch.arange(48) * 7 % 11 % 5)


def counts(labels):
    return torch.bincount(labels, minlength=5)


@pytest.fixture(scope="module")
def update(client):
    """What the client sends after one step on its first twelve samples, as weights."""
    recipe = labelleak.LocalTraining(learning_rate=0.5, batch_size=12)
    return train_locally(client.model, client.inputs[:12], client.labels[:12], recipe, classes=5)


@pytest.fixture(scope="module")
def advice(client, update):
    return advise(update.observe(None), update.true_counts, client=client)


def test_every_change_is_tried_and_has_its_price(advice):
    tried = {change.name for change in advice.changes}
    assert tried == {
        *("noise", "clipping", "sparsification", "quantization", "bias kept local"),
        *("head kept local", "batch size", "local steps", "a later round"),
    }
    assert advice.untried == ()
    cosines = [change.cosine for change in advice.changes if change.cosine is not None]
    assert cosines == sorted(cosines, reverse=True)
    assert {change.name for change in advice.changes if change.epsilon} == {"noise"}


def test_clipping_keeps_the_direction(advice):
    clipped = next(change for change in advice.changes if change.name == "clipping")
    assert clipped.cosine == pytest.approx(1.0)
    assert advice.plain.verdict == "over threshold"


def test_noise_costs_what_was_added(advice):
    """Against the cosine that independent noise of this length leaves on average."""
    noisy = [change for change in advice.changes if change.name == "noise"]
    noisy.sort(key=lambda change: change.epsilon, reverse=True)
    expected = [1 / math.sqrt(1 + share**2) for share in (0.01, 0.1, 1.0)]
    # 0.6 and 3.7 times the whole length, in each of many entries: nothing is left.
    assert [one.cosine for one in noisy] == pytest.approx([*expected, 0.0, 0.0], abs=0.25)


def test_some_noise_bounds_every_attack_and_the_summary_tells_its_price(advice):
    epsilons = sorted(one.epsilon for one in advice.changes if one.epsilon is not None)
    assert epsilons[:2] == pytest.approx([1.0, 8.0])
    assert "; noise for epsilon 8 leaves a cosine of 0." in advice.summary


def test_a_larger_batch_is_one_of_more_samples(client, update):
    twice = labelleak.capture(client.model, client.inputs[:24], client.labels[:24])
    advice = advise(update.observe(None), update.true_counts, client=client)
    changed = next(change for change in advice.changes if change.setting == "24 instead of 12")
    assert changed.cosine == pytest.approx(cosine_of(update.observe(None), twice))


def test_without_the_client_the_rest_is_tried_and_the_reason_told(update):
    advice = advise(update.observe(None), attack="pooled")
    assert "noise" in {change.name for change in advice.changes}
    assert [one.name for one in advice.untried] == ["batch size, local steps, a later round"]
    # What the attack says of itself stands in for a score.
    assert advice.plain.score is None
    expected = advice.plain.expected["accuracy"]
    assert advice.changes[0].accuracy == pytest.approx(expected, abs=0.1)


def test_samples_of_another_update_are_refused(client, update):
    shifted = LocalClient(client.model, client.inputs, (client.labels + 1) % 5)
    with pytest.raises(InvalidObservation, match="put its samples first"):
        advise(update.observe(None), update.true_counts, client=shifted)
    with pytest.raises(InvalidObservation, match="one label per input"):
        LocalClient(client.model, client.inputs, client.labels[:3])


def test_another_model_than_the_updates_is_told(client, update):
    other = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 5))
    advice = advise(
        update.observe(None),
        update.true_counts,
        client=LocalClient(other, client.inputs, client.labels),
    )
    assert "the recipe, the samples or the model's mode are others" in advice.untried[0].why


def test_a_gradient_tells_no_learning_rate(client):
    seen = labelleak.capture(client.model, client.inputs[:48], client.labels[:48])
    advice = advise(seen, counts(client.labels), client=client)
    why = {one.name: one.why for one in advice.untried}
    assert "give more of them" in why["batch size, 96 instead of 48"]
    assert "learning rate" in why["local steps"]
    assert "learning rate" in why["a later round"]


def test_a_head_kept_local_costs_its_share_of_the_update(client):
    model, inputs, labels = client.model, client.inputs[:12], client.labels[:12]
    model.zero_grad()
    nn.functional.cross_entropy(model(inputs), labels).backward()
    gradients = {name: value.grad.clone() for name, value in model.named_parameters()}
    advice = advise(labelleak.observe(model, gradients, batch_size=12), counts(labels))
    change = next(one for one in advice.changes if one.name == "head kept local")
    flat = torch.cat([value.flatten() for value in gradients.values()])
    left = torch.cat(
        [value.flatten() * (not name.startswith("2.")) for name, value in gradients.items()]
    )
    assert change.cosine == pytest.approx(float(nn.functional.cosine_similarity(flat, left, 0)))
    assert (change.verdict, change.accuracy) == ("inconclusive", None)


@pytest.mark.parametrize(("outputs", "loss"), [(1, LOSSES[0]), (1, LOSSES[1]), (5, LOSSES[0])])
def test_a_client_with_sigmoids_is_trained_again(outputs, loss):
    """The larger batch against autograd's gradient of the client's own loss."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, outputs)).eval()
    inputs, targets = torch.rand(48, 8), (torch.rand(48, outputs) < 0.3).long()
    if loss.positive_weights is not None:
        loss = replace(loss, positive_weights=torch.linspace(1.5, 3.0, outputs))
    labels = targets[:, 0] if outputs == 1 else targets
    recipe = labelleak.LocalTraining(learning_rate=0.3)
    classes = max(2, outputs)
    sent = train_locally(model, inputs[:12], labels[:12], recipe, classes=classes, loss=loss)
    assert sent.true_counts.tolist() == counts_of(targets[:12], classes).tolist()
    advice = advise(
        sent.observe(None),
        sent.true_counts,
        client=LocalClient(model, inputs, labels),
        attack="pooled",
        measure="accuracy",
    )
    # Of several labels no attack reads weights alone.
    assert [one.name.partition(",")[0] for one in advice.untried] == ["bias kept local"] * (
        outputs > 1
    )
    assert "no ceiling" in advice.plain.ceiling["text"]
    larger = next(change for change in advice.changes if change.setting == "24 instead of 12")
    gradients = [gradient_of_head(model, inputs[:n], targets[:n], loss) for n in (12, 24)]
    expected = nn.functional.cosine_similarity(*gradients, dim=0)
    assert larger.cosine == pytest.approx(float(expected), abs=1e-5)
    later = [change for change in advice.changes if change.name == "a later round"]
    assert [change.cosine == pytest.approx(1.0, abs=1e-6) for change in later] == [False, False]


def gradient_of_head(model, inputs, targets, loss):
    value = loss.value(model(inputs), targets.double())
    return torch.cat([g.flatten() for g in torch.autograd.grad(value, list(model[2].parameters()))])


def test_label_sets_of_an_unknown_number_of_samples_are_not_trained_again():
    torch.manual_seed(0)
    model, targets = nn.Linear(8, 5), (torch.rand(12, 5) < 0.5).long()
    seen = labelleak.capture(model, torch.rand(12, 8), targets, loss="bce")
    unknown = replace(seen, training=labelleak.LocalTraining())
    client = LocalClient(model, torch.rand(12, 8), targets)
    advice = advise(unknown, targets.sum(0), client=client, attack="pooled", measure="accuracy")
    assert "number of samples" in advice.untried[-1].why


def test_several_steps_are_trained_again(client):
    recipe = labelleak.LocalTraining(learning_rate=0.1, batch_size=6, epochs=2)
    update = train_locally(client.model, client.inputs[:24], client.labels[:24], recipe, classes=5)
    seen = update.observe(None)
    advice = advise(seen, update.true_counts, client=client)
    settings = {change.setting for change in advice.changes}
    assert {"12 instead of 6", "24 instead of 6", "10 epochs"} <= settings


def test_the_summary_names_the_cheapest_change_that_passes(advice):
    plain = replace(advice.plain, verdict="over threshold")
    first, *rest = advice.changes
    passing = replace(first, verdict="audited")
    assert (
        f"the limit: {first.name}, {first.setting}"
        in replace(advice, plain=plain, changes=(passing, *rest)).summary
    )
    failing = tuple(replace(one, verdict="over threshold") for one in advice.changes)
    assert "no change that was tried" in replace(advice, plain=plain, changes=failing).summary
    within = replace(advice, plain=replace(plain, verdict="audited"))
    assert "as it is: no change is needed" in within.summary


def test_the_limit_is_half_of_what_a_guess_leaves_open(advice, update):
    assert (advice.plain.measure, advice.plain.threshold) == ("advantage", 0.5)
    exact = advise(update.observe(None), update.true_counts, measure="exact")
    assert exact.plain.limit == "not all counts exactly"
    with pytest.raises(InvalidObservation, match="floor"):
        advise(update.observe(None), floor=0)


def test_the_rule_of_small_cells_refuses_and_passes_after_the_remedy(client, update, tmp_path):
    """A refusing site sends nothing, tries what advise found cheapest, and sends that."""
    rule = {"measure": "small-cells", "floor": 5}
    auditor = Auditor(Policy(action="refuse", records=str(tmp_path), **rule))

    def send(sent):
        return auditor.audit_update(
            sent.before,
            sent.after,
            sent.training,
            Occasion(round=1, client="a"),
            instances=int(sent.true_counts.sum()),
            true_counts=sent.true_counts,
        )

    refused = send(update)
    assert (refused.send, refused.record.verdict) == (False, "over")
    assert "that the rule hides (fewer than 5 samples, or none)" in refused.reason
    advice = advise(update.observe(None), update.true_counts, client=client, **rule)
    remedy = advice.cheapest
    assert (remedy.name, remedy.setting) == ("batch size", "48 instead of 12")
    recipe = labelleak.LocalTraining(learning_rate=0.5, batch_size=48)
    larger = train_locally(client.model, client.inputs, client.labels, recipe, classes=5)
    passed = send(larger)
    assert (passed.send, passed.record.verdict) == (True, "within")
