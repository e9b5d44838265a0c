import pytest

from labelleak.audit.rule import Rule, read_prior
from labelleak.errors import UnreadableFile


@pytest.mark.parametrize(
    ("rule", "words", "limited"),
    [
        (Rule(), "no limit", False),
        (Rule("advantage", 0.5), "at most 50.0% of what a guess leaves open", True),
        (Rule(threshold=0.25), "at most 25.0% of the labels", True),
        (Rule("exact"), "not all counts exactly", True),
        (Rule("small-cells", floor=5), "no class with fewer than 5 samples, or none, told", True),
    ],
)
def test_a_limit_in_words(rule, words, limited):
    assert rule.limit.startswith(words)
    assert rule.has_limit is limited


def test_public_shares_are_read(tmp_path):
    path = tmp_path / "prior.txt"
    path.write_text("70 20\n10, 0\n")
    assert read_prior(path) == (70.0, 20.0, 10.0, 0.0)


@pytest.mark.parametrize("text", ["0.5 half", "0.5 -1", "nan", "0 0", "1 inf", ""])
def test_what_are_no_shares_is_one_line(tmp_path, text):
    path = tmp_path / "prior.txt"
    path.write_text(text)
    with pytest.raises(UnreadableFile, match=r"prior\.txt"):
        read_prior(path)
