"""The example of three hospitals: what leaves, the rule of ten, and that the pages print that."""

import re
from pathlib import Path

import pytest

pytest.importorskip("flwr")
pytest.importorskip("sklearn")

ROOT = Path(__file__).parent.parent
FOLDER = ROOT / "examples" / "breast-cancer"


@pytest.fixture(autouse=True)
def _example(monkeypatch):
    monkeypatch.syspath_prepend(str(FOLDER))


def block(page, first):
    """The printed lines of a page from one that begins so to the end of its block."""
    text = (ROOT / page).read_text()
    found = re.search(rf"^{re.escape(first)}.*?(?=^```)", text, re.MULTILINE | re.DOTALL)
    assert found, f"{page}: no line begins with {first!r}"
    return found[0].splitlines()


def test_the_hospitals_share_all_patients_once():
    from hospitals.task import BENIGN, MALIGNANT, own, patients

    shares = [own(site) for site in range(3)]
    assert sorted(patient for one in shares for patient in one.tolist()) == list(range(569))
    labels = patients()[1]
    assert [int(labels[one].sum()) for one in shares] == list(MALIGNANT)
    assert [len(one) for one in shares] == [a + b for a, b in zip(MALIGNANT, BENIGN, strict=True)]


def test_each_update_gives_malignant_cases_away(tmp_path):
    from federation import RECORD, line, run, share

    from labelleak.federated import read_rounds

    state, replies = run("logistic", RECORD, tmp_path)
    assert len(replies) == 9
    assert share(state) > 0.9
    first = [record for record in read_rounds(tmp_path / "records") if record["round"] == 1]
    assert len(first) == 3
    for record in first:
        assert record["audit"]["certified"]
        assert record["audit"]["counts"] == record["audit"]["true_counts"]
        # The pages print what comes out.
        for page in ("README.md", "docs/losses.md"):
            assert line(record) in block(page, "Logistic regression from zero")


def test_the_rule_of_ten_refuses_and_passes_after_the_cheapest_remedy(capsys):
    import rule_of_ten

    rule_of_ten.main()
    printed = capsys.readouterr().out.splitlines()
    refused = [one for one in printed if one.startswith("round 1") and "refused: " in one]
    advised = [one for one in printed if one.startswith("the cheapest change")]
    passed = [one for one in printed if one.startswith("round") and "sent: " in one]
    assert (len(refused), len(advised), len(passed)) == (1, 1, 3)
    shown = block("docs/losses.md", "As it is")
    assert set(refused + advised + passed) <= set(shown)
