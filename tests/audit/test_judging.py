import pytest
import torch

from labelleak import Restoration, score
from labelleak.audit import Rule, Verdict
from labelleak.audit.judging import judged_by

COUNTS = torch.tensor([6, 2, 0])


@pytest.fixture
def found():
    raw = COUNTS.double() + 0.1
    errors = torch.full((3,), 0.05, dtype=torch.float64)
    return Restoration(COUNTS > 0, COUNTS, raw=raw, standard_errors=errors, attack="pooled")


def test_with_labels_it_is_scored(found):
    true = torch.tensor([5, 2, 1])
    judged = judged_by(found, true, Rule(threshold=0.5))
    assert judged.scored.as_dict() == score(found, true).as_dict()
    assert (judged.expected, judged.hidden) == (None, 3)
    assert judged.verdict is Verdict.OVER_THRESHOLD


def test_without_labels_it_goes_by_its_own_errors(found):
    judged = judged_by(found, None, Rule("small-cells"))
    assert (judged.scored, judged.hidden) == (None, None)
    assert judged.expected["by"] == "intervals"
    assert judged.verdict is Verdict.OVER_THRESHOLD


def test_labels_of_no_sample_score_nothing(found):
    judged = judged_by(found, torch.zeros(3, dtype=torch.int64), Rule())
    assert judged.scored is None
    assert judged.hidden == 3
