import io

import pytest
from rich.console import Console

from labelleak.cli.verdicts import count_bar, print_advice, print_record

RECORD = {
    "attack": "pooled", "classes": 3, "features": 5, "head": "fc", "batch_size": 12,
    "local_steps": 1, "present": [0, 1], "counts": [8, 4, 0], "proportions": None,
    "intervals": [[7.5, 8.5], [3.0, 5.0], [-0.5, 0.5]], "true_counts": [8, 3, 1],
    "score": {"accuracy": 0.917, "guess": 0.667, "relative_advantage": 0.75, "exact": False},
    "threshold": 0.5, "measure": "advantage", "seconds": 0.1, "verdict": "over threshold",
    "reason": "pooled restored too much",
    "flags": [{"name": "no_bias", "text": "there is no bias", "remedy": "send it along"}],
}  # fmt: skip


@pytest.fixture
def shown():
    def show(record, *, terminal=False, printed=print_record):
        target = Console(
            width=120, file=io.StringIO(), markup=False, no_color=True, force_terminal=terminal,
            highlight=False, legacy_windows=False,
        )  # fmt: skip
        printed(record, target)
        return target.file.getvalue()

    return show


def test_the_verdict_is_first_then_why_then_what_to_do(shown):
    text = shown(RECORD)
    parts = [
        "Verdict: over threshold - pooled restored too much",
        "flag no_bias: there is no bias",
        "What to do",
        "labelleak advise",
        "no_bias: send it along",
        "Head fc",
        "7.5 to 8.5",
        "Score: accuracy 0.917, guess 0.667, advantage 0.750, exact no",
    ]
    places = [text.index(part) for part in parts]
    assert places == sorted(places)


def test_each_sentence_stands_once(shown):
    text = shown(RECORD)
    for sentence in (RECORD["reason"], "there is no bias", "send it along"):
        assert text.count(sentence) == 1


def test_a_limit_is_asked_for_where_there_is_none(shown):
    assert "set a limit" in shown(RECORD | {"threshold": None, "verdict": "audited"})
    assert "set a limit" not in shown(RECORD)
    of_guess = shown(RECORD | {"threshold": None, "verdict": "audited", "measure": "advantage"})
    assert "--measure advantage --threshold 0.5" in " ".join(of_guess.split())
    assert "give the site's own labels" in shown(RECORD | {"true_counts": None, "score": None})


def test_a_remedy_says_what_to_type(shown):
    flag = RECORD["flags"][0] | {"options": "--time-limit"}
    assert "no_bias: send it along (--time-limit)" in shown(RECORD | {"flags": [flag]})


def test_the_scores_of_papers_come_with_their_meaning(shown):
    score = RECORD["score"] | {"lnacc": 0.5, "small_cells_told": 2.0}
    text = " ".join(shown(RECORD | {"score": score}).split())
    assert "LnAcc 0.500 (share of the classes with the right number)" in text
    assert "small cells" not in text
    hidden = shown(RECORD | {"score": score, "measure": "small-cells"})
    assert "small cells told 2\n" in hidden


@pytest.mark.parametrize(
    ("measure", "advantage", "titles"),
    [
        ("small-cells", 0.5, ["told", "restored"]),
        ("advantage", 0.5, ["restored", "advantage"]),
        # Of label sets nobody has a guess.
        ("accuracy", None, ["restored"]),
    ],
)
def test_changes_are_told_by_what_is_judged(shown, measure, advantage, titles):
    change = {
        "name": "noise", "setting": "Gaussian", "cosine": 0.9, "epsilon": 3.0, "accuracy": 0.7,
        "advantage": advantage, "told": 4, "verdict": "inconclusive",
    }  # fmt: skip
    advice = {
        "audit": RECORD | {"measure": measure}, "summary": "s", "changes": [change], "untried": [],
    }  # fmt: skip
    text = shown(advice, printed=print_advice)
    header = next(line for line in text.splitlines() if "cosine" in line)
    assert header.replace("\N{BOX DRAWINGS HEAVY VERTICAL}", " ").split() == [
        "change", "how", "far", "cosine", "epsilon", *titles, "verdict",
    ]  # fmt: skip
    assert all(f"\n{title}: " in text for title in (*titles, "cosine", "epsilon", "inconclusive"))


def test_bars_are_drawn_on_a_terminal_alone(shown):
    assert "\N{FULL BLOCK}" * 20 in shown(RECORD, terminal=True)
    assert "\N{FULL BLOCK}" not in shown(RECORD)


def test_a_record_of_before_the_measures_is_shown(shown):
    new = ("intervals", "measure")
    old = {key: value for key, value in RECORD.items() if key not in new}
    old["score"] = {"accuracy": 0.917, "exact": False}
    old["flags"] = [{"name": "no_bias", "text": "there is no bias"}]
    text = shown(old)
    assert "Score: accuracy 0.917, exact no" in text
    assert "95% interval" not in text


@pytest.mark.parametrize(
    ("low", "restored", "high", "bar"),
    [
        (9.0, 9, 9.0, "#" * 36),
        (0.0, 0, 0.0, ""),
        (1.0, 2, 3.0, "#" * 4 + "-" * 4 + "." * 4),
        (-2.0, 0, 1.0, "." * 4),
        # An estimate outside its own interval, as of counts that were made to add up.
        (3.0, 2, 4.0, "#" * 8 + "." * 8),
    ],
)
def test_a_bar_is_as_long_as_its_count(low, restored, high, bar):
    row = {"low": low, "restored": restored, "high": high}
    assert count_bar(row, 9.0, ascii_only=True) == bar
