import pytest

from labelleak.federated.allow import USUAL_NUMBERS, Allow


@pytest.mark.parametrize(
    ("name", "entry", "fits"),
    [
        ("loss", "loss", True),
        ("loss", "Loss", True),
        ("val_loss", "val-loss", True),
        ("val-loss", "VAL_LOSS", True),
        ("loss", "val_loss", False),
        ("*_loss", "val_loss", True),
        ("*_loss", "_loss", True),
        ("*_loss", "x" * 20 + "_loss", True),
        ("*_loss", "x" * 21 + "_loss", False),
        ("*_loss", "a text_loss", False),
        ("*_loss", "über_loss", False),
        ("*_loss", "val/my_loss", False),
        ("val/loss", "val/loss", True),
        ("a.c", "abc", False),
        ("loss", "loss\n", False),
        ("top-5 accuracy", "top-5 accuracy", True),
    ],
)
def test_names_of_entries(name, entry, fits):
    assert Allow(numbers=(name,)).number(("metrics", entry)) is fits


def test_names_of_whole_paths():
    allow = Allow(numbers=("metrics/loss", "*/auc"))
    assert allow.number(("metrics", "loss"))
    assert not allow.number(("config", "loss"))
    assert not allow.number(("more", "metrics", "loss"))
    assert allow.number(("config", "auc"))
    assert not allow.number(("deep", "config", "auc"))


def test_the_largest_size_counts():
    allow = Allow(lists={"auc": 3, "a*": 5}, texts={"status": 8})
    assert allow.longest_list(("m", "auc")) == 5
    assert allow.longest_list(("m", "loss")) is None
    assert allow.longest_text(("m", "status")) == 8
    assert allow.longest_text(("m", "auc")) is None


@pytest.mark.parametrize(
    "name", ["train_loss", "val-accuracy", "num-examples", "accuracy", "F1", "macro_f1", "epoch"]
)
def test_usual_numbers(name):
    assert Allow().number(("metrics", name))


@pytest.mark.parametrize("name", ["labels", "class_0", "counts", "x", "", "loss_of_class_3"])
def test_unusual_numbers(name):
    assert not Allow().number(("metrics", name))


@pytest.mark.usefixtures("unchecked")
def test_a_list_can_be_a_key_and_be_written_down():
    allow = Allow(numbers=["loss"], lists={"auc": 3})
    assert allow == Allow(numbers=("loss",), lists={"auc": 3})
    assert len({allow, Allow(numbers=("loss",), lists={"auc": 3})}) == 1
    assert Allow.of(allow.as_dict()) == allow
    assert Allow().numbers == USUAL_NUMBERS


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("content", "message"),
    [
        (3, "allow = 3: a table is needed"),
        ({"names": []}, "allow.names is no key of a policy: numbers, lists, texts, most"),
        ({"numbers": "loss"}, "allow.numbers = 'loss': a list of names"),
        ({"numbers": [""]}, "allow.numbers"),
        ({"numbers": [3]}, "allow.numbers"),
        ({"lists": ["auc"]}, "allow.lists"),
        ({"lists": {"auc": -1}}, "allow.lists"),
        ({"lists": {"auc": True}}, "allow.lists"),
        ({"texts": {"": 3}}, "allow.texts"),
        ({"texts": {"status": 1.5}}, "allow.texts"),
        ({"most": -1}, "allow.most = -1"),
        ({"most": "all"}, "allow.most = 'all'"),
    ],
)
def test_what_cannot_be_is_told_with_its_key(content, message):
    with pytest.raises(ValueError, match=message):
        Allow.of(content)
