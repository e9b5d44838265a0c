import builtins
from html.parser import HTMLParser

import pytest
import torch

import labelleak
from labelleak import Flag, Restoration
from labelleak.displays import Bar, bars_html, facts_html


class Balanced(HTMLParser):
    """Every tag that was opened is closed, in order."""

    def __init__(self, page):
        super().__init__()
        self.open, self.tags, self.text = [], set(), ""
        self.feed(page)
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.open.append(tag)
        self.tags.add(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data


def restored(classes=3, **more):
    raw = torch.arange(classes).double()
    errors = torch.full((classes,), 0.5, dtype=torch.float64)
    return Restoration(
        raw > 0, raw.long(), raw=raw, standard_errors=errors, attack="pooled", **more
    )


@pytest.fixture
def seen():
    torch.manual_seed(0)
    model = torch.nn.Linear(6, 3)
    return labelleak.capture(model, torch.rand(6, 6), torch.tensor([0, 0, 0, 1, 1, 2]))


def test_counts_are_bars_with_intervals_and_flags_in_words():
    page = restored(flags=(Flag.NO_BIAS,))._repr_html_()
    text = Balanced(page).text
    assert "pooled: counts by class, an estimate" in text
    assert "2 (1 to 3)" in text
    assert f"no_bias: {Flag.NO_BIAS.text}" in text
    # The longest bar ends at its count, and its interval at the edge.
    assert f"width:{100 * 2 / (2 + 1.959963984540054 / 2):.1f}%" in page


def test_shares_sets_and_proofs_say_what_they_are():
    present = torch.tensor([True, False])
    shares = Restoration(present, proportions=torch.tensor([1.0, 0.0]).double())
    assert "shares by class" in shares._repr_html_()
    assert "100.0%" in shares._repr_html_()
    assert "classes present by class" in Restoration(present)._repr_html_()
    assert "proven" in Restoration(present, torch.tensor([2, 0]), certified=True)._repr_html_()


def test_many_classes_are_cut_off():
    page = Balanced(restored(100)._repr_html_()).text
    assert "and 59 more classes" in page
    assert repr(restored(100)).count(",") < 20


def test_a_line_says_the_rest(seen):
    assert repr(restored()) == "Restoration(pooled: counts [0, 1, 2])"
    found = restored(flags=(Flag.NO_BIAS,), certified=True)
    assert repr(found) == "Restoration(pooled: counts [0, 1, 2], certified, flags: no_bias)"
    assert repr(seen).startswith("Observation(head: (top level), 3 classes, 6 features, weight and")
    assert "\n" not in repr(seen)


def test_scores_and_observations_are_tables(seen):
    scored = labelleak.score(labelleak.restore(seen), torch.tensor([3, 2, 1]))
    text = Balanced(scored._repr_html_()).text
    assert "where a guess without the update gets" in text
    assert "accuracy" in text
    assert "also knownthe model" in Balanced(seen._repr_html_()).text
    only_a_set = labelleak.score(Restoration(torch.tensor([True])), torch.tensor([1]))
    assert "a guess" not in only_a_set._repr_html_()


def test_names_are_text():
    for page in (
        bars_html("<script>", [Bar("<b>", 1.0, None, None, "&")], ["<i>"]),
        facts_html("<script>", {"<b>": "<i>"}),
    ):
        assert not Balanced(page).tags & {"script", "i"}
    assert "<b><script>" not in bars_html("<script>", [])


def test_a_table_of_pandas_has_a_row_for_each_class():
    pytest.importorskip("pandas")
    table = restored().to_pandas()
    assert list(table.columns) == ["present", "count", "estimate", "low", "high"]
    assert table.loc[2, "count"] == 2
    assert table.index.name == "class"
    assert list(Restoration(torch.tensor([True, False])).to_pandas().columns) == ["present"]


def test_without_pandas_the_rest_works(monkeypatch):
    real = builtins.__import__

    def refuse(name, *args, **more):
        if name == "pandas":
            raise ImportError("No module named 'pandas'")
        return real(name, *args, **more)

    monkeypatch.setattr(builtins, "__import__", refuse)
    assert restored()._repr_html_()
    with pytest.raises(ImportError, match="pandas"):
        restored().to_pandas()
