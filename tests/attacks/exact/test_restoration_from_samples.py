"""What the samples found say of the whole batch."""

import pytest
import torch
from exact_batches import DENSE, FLOAT

from labelleak.attacks.exact.restoration_from_samples import Findings, account_for_batch


def findings(**changed):
    given = {
        "labels": torch.tensor([4, 7, 4]),
        "times": torch.ones(3, dtype=torch.int64),
        "sure": torch.tensor([True, False, True]),
        "embeddings": DENSE.embeddings[:3],
        "is_complete": True,
        "rank": 3,
        "total": 3,
    }
    return Findings(**{**given, **changed})


@pytest.mark.parametrize(
    ("told", "total", "certain"), [(2, 2, 0), (3, 3, 2), (None, None, 2), (None, 2, 2)]
)
def test_nothing_is_certain_of_more_samples_than_there_are(told, total, certain):
    found = account_for_batch(
        DENSE.observe(batch_size=told),
        findings(total=total),
        rest=lambda number: torch.zeros(30, dtype=FLOAT),
        proven=lambda: False,
    )
    assert int(found.certain.sum()) == int(found.certain[4]) == certain
    assert (found.counts is None) == (total != 3)
    assert (found.invisible is None) == (told is None)


def test_the_rest_is_estimated_and_proves_nothing():
    found = account_for_batch(
        DENSE.observe(batch_size=5),
        findings(total=5, rank=4),
        rest=lambda number: number * torch.nn.functional.one_hot(torch.tensor(9), 30).double(),
        proven=lambda: True,
    )
    assert found.counts.nonzero()[:, 0].tolist() == [4, 7, 9]
    assert found.counts[[4, 7, 9]].tolist() == [2, 1, 2]
    # One is not sure, and one more than the gradient shows is in the batch.
    assert found.invisible == 2
    assert not found.certified
