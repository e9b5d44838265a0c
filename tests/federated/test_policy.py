import pytest
import torch

import labelleak
from labelleak import UnreadableFile
from labelleak.audit import audit_observation
from labelleak.federated import Auditor, Occasion, Policy, read_policy
from labelleak.federated.allow import Allow
from labelleak.lab import datasets, networks

pytestmark = pytest.mark.usefixtures("unchecked")


def written(tmp_path, text):
    path = tmp_path / "policy.toml"
    path.write_text(text)
    return path


def test_an_empty_file_is_the_default(tmp_path):
    assert read_policy(written(tmp_path, "")) == Policy()
    assert Policy().action == "warn"
    assert (Policy().measure, Policy().threshold) == ("advantage", 0.5)


def test_a_policy_with_a_threshold_alone_is_of_accuracy_as_it_was(tmp_path):
    policy = read_policy(written(tmp_path, 'action = "refuse"\nthreshold = 0.3'))
    assert (policy.measure, policy.limit) == ("accuracy", "at most 30.0% of the labels")


def test_a_policy_of_small_cells(tmp_path):
    policy = read_policy(written(tmp_path, 'measure = "small-cells"\nfloor = 5'))
    assert policy.rule.limit == "no class with fewer than 5 samples, or none, told with confidence"
    assert policy.as_dict()["floor"] == 5
    assert "floor" not in Policy().as_dict()


def test_a_policy_of_public_shares(tmp_path):
    policy = read_policy(written(tmp_path, "prior = [0.9, 0.1]"))
    assert policy.rule.prior == (0.9, 0.1)
    assert policy.as_dict()["prior"] == (0.9, 0.1)


def test_a_policy_of_all_rounds(tmp_path):
    policy = read_policy(written(tmp_path, "across_rounds = true"))
    assert policy.as_dict()["across_rounds"] is True
    assert not Policy().across_rounds
    assert "across_rounds" not in Policy().as_dict()


def test_every_key_is_read(tmp_path):
    path = written(
        tmp_path,
        'action = "refuse"\nmeasure = "accuracy"\nthreshold = 0.25\nattack = "ilrg"\n'
        'time_limit = 5\nrecords = "here"\n',
    )
    assert read_policy(path) == Policy("refuse", "accuracy", 0.25, "ilrg", 5.0, "here")


def test_the_allow_list_is_a_table(tmp_path):
    text = """
action = "refuse"

[allow]
numbers = ["loss", "val_*"]
lists = { auc = 10 }
texts = { status = 8 }
most = 4
"""
    policy = read_policy(written(tmp_path, text))
    assert policy.allow == Allow(("loss", "val_*"), {"auc": 10}, {"status": 8}, 4)
    # A record holds it where it is not the usual one.
    assert policy.as_dict()["allow"]["lists"] == {"auc": 10}
    assert "allow" not in Policy().as_dict()


def test_exact_has_no_threshold(tmp_path):
    assert read_policy(written(tmp_path, 'measure = "exact"')).threshold is None


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('acton = "warn"', "'acton' is no key"),
        ('action = "block"', "action = 'block': choose record, warn, refuse"),
        ("action = 3", "action = 3"),
        ("action = []", "action = "),
        ('measure = "recall"', "measure"),
        ('measure = "small-cells"\nfloor = 1', "floor = 1: a whole number"),
        ('measure = "small-cells"\nthreshold = 0.5', "threshold: goes with"),
        ('prior = "even"', "prior = 'even'"),
        ('across_rounds = "yes"', "across_rounds = 'yes'"),
        ("across_rounds = 1", "across_rounds = 1"),
        ("prior = [0, 0]", "prior = [0, 0]"),
        ("prior = [1, -1]", "prior = [1, -1]"),
        ('threshold = "half"', "threshold = 'half'"),
        ("threshold = true", "threshold = True"),
        ("threshold = 50", "not percent"),
        ("threshold = nan", "threshold = nan"),
        ('measure = "exact"\nthreshold = 0.5', "threshold: goes with"),
        ('attack = "magic"', "attack = 'magic': no attack named 'magic': choose auto"),
        ("time_limit = 0", "time_limit = 0"),
        ("time_limit = inf", "time_limit = inf"),
        ('records = ""', "records = ''"),
        ("records = 1", "records = 1"),
        ("action =", "is not TOML"),
        ("allow = 3", "allow = 3: a table is needed"),
        ("[allow]\nnames = []", "allow.names is no key of a policy"),
        ("[allow]\nmost = -1", "allow.most = -1"),
    ],
)
def test_what_is_wrong_is_told_in_one_line_with_file_and_key(tmp_path, text, words):
    path = written(tmp_path, text)
    with pytest.raises(UnreadableFile) as raised:
        read_policy(path)
    assert str(raised.value).startswith(f"{path}: ")
    assert words in str(raised.value)
    assert "\n" not in str(raised.value)


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(UnreadableFile, match="no such file"):
        read_policy(tmp_path / "none.toml")


def test_the_draws_of_all_epochs_are_told_as_one_epoch(tmp_path):
    """As the page on labels says of sampling with replacement."""
    model = torch.nn.Linear(6, 5)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    inputs, labels = torch.rand(8, 6), torch.arange(8) % 5
    drawn = []
    generator = torch.Generator().manual_seed(0)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    for _ in range(2):
        for batch in torch.randint(8, (8,), generator=generator).split(4):
            drawn.append(labels[batch])
            optimizer.zero_grad()
            torch.nn.functional.cross_entropy(model(inputs[batch]), labels[batch]).backward()
            optimizer.step()
    counts = torch.bincount(torch.cat(drawn), minlength=5)
    auditor = Auditor(Policy(records=str(tmp_path)))
    recipe = labelleak.LocalTraining(learning_rate=0.01, batch_size=4)
    after = model.state_dict()
    occasion = Occasion(round=1, client="a")
    decision = auditor.audit_update(
        before, after, recipe, occasion, instances=16, true_counts=counts
    )
    assert decision.record.error is None
    assert sum(decision.record.audit["counts"]) == 16
    assert decision.record.audit["local_steps"] == 4


@pytest.mark.parametrize(
    ("measure", "threshold"),
    [("accuracy", 0.95), ("advantage", 0.95), ("exact", None), ("small-cells", None)],
)
@pytest.mark.parametrize(("samples", "verdict"), [(6, "over"), (60, "inconclusive")])
def test_labels_that_were_not_trained_on_are_never_within(measure, threshold, samples, verdict):
    """Six samples are certified, sixty are estimated; a refusing policy sends neither."""
    digits = datasets.load("mnist-sample")
    model = networks.build("fcn-3", classes=10, image_shape=(1, 28, 28), seed=0).eval()
    inputs, labels = digits.batch(torch.arange(samples))
    own = torch.bincount(digits.labels[100 : 100 + samples], minlength=10)
    assert not torch.equal(own, torch.bincount(labels, minlength=10))
    policy = Policy(action="refuse", measure=measure, threshold=threshold)
    seen = labelleak.capture(model, inputs, labels)
    record = audit_observation(seen, true_counts=own, **vars(policy.rule))
    assert record.certified is (samples == 6)
    assert policy.judge(record)[0] == verdict
    assert "contradict the labels" in policy.judge(record)[1]


@pytest.mark.parametrize(
    "text", [f"{'9' * 5000} = 1", f"attack = {'9' * 4000}", f"action = '{'x' * 5000}'"]
)
def test_a_message_is_no_longer_than_a_line(tmp_path, text):
    path = tmp_path / "policy.toml"
    path.write_text(text)
    with pytest.raises(UnreadableFile) as error:
        read_policy(path)
    assert len(str(error.value)) < 1000
