"""What the samples found say of the whole batch."""

import copy
from dataclasses import replace

import pytest
import torch
from exact_batches import DENSE, FLOAT, endless, trained
from exact_networks import NETWORK

from labelleak.attacks.exact.head_search import HeadSearch
from labelleak.attacks.exact.layer_search import LayerSearch
from labelleak.attacks.exact.previous_layer import previous_layers
from labelleak.attacks.exact.restoration_from_samples import (
    Findings,
    account_for_batch,
    known_divisor,
    restoration_from,
)
from labelleak.projection import project_to_counts
from labelleak.restoration import Flag
from labelleak.updates import observe
from synthetic import rng


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


@pytest.mark.parametrize(
    ("knowledge", "divisor"),
    [
        ({}, 8.0),
        ({"batch_size": None}, None),
        ({"reduction": "sum", "batch_size": None}, 1.0),
        ({"class_weights": torch.ones(30)}, None),
        ({"class_weights": torch.ones(30), "reduction": "sum"}, 1.0),
    ],
)
def test_what_the_loss_divides_by_is_known_of_a_sum_and_of_a_plain_mean(knowledge, divisor):
    assert known_divisor(DENSE.observe(**knowledge)) == divisor


def test_counts_of_samples_that_leave_no_trace_do_not_depend_on_rounding():
    """All that shows is found, and what is left of the gradient is rounding."""
    model = copy.deepcopy(NETWORK).double()
    inputs = torch.randn(8, 20, generator=rng(1), dtype=FLOAT)
    inputs[0] *= 1e4
    labels = torch.randint(5, (8,), generator=rng(2))
    labels[0] = model(inputs[:1]).argmax()
    loss = torch.nn.functional.cross_entropy(model(inputs), labels)
    seen = observe(model, torch.autograd.grad(loss, list(model.parameters())), batch_size=8)
    search = LayerSearch(seen, previous_layers(seen)[0], 8.0, rng(), endless())
    search.run()
    assert search.is_complete
    found = restoration_from(seen, search)
    assert found.invisible == 1
    # No class is likelier than another: the first stands for all.
    others = torch.bincount(labels[1:], minlength=5)
    assert torch.equal(found.counts, others + torch.eye(5, dtype=torch.int64)[0])


def test_samples_that_were_not_found_are_shared_out_evenly_where_no_fit_is_whole():
    """Of a trained head with more samples than the search finds."""
    made = trained(12, 60, 10, relu=True, scale=8.0)
    search = HeadSearch(made.observe(), 10.0, rng(), endless())
    search.run()
    search.found = search.found.pick(torch.arange(4))
    found = restoration_from(made.observe(), search)
    assert Flag.INCOMPLETE in found.flags
    kept = torch.bincount(search.found.labels, minlength=12)
    assert torch.equal(found.counts - kept, project_to_counts(torch.full((12,), 0.5), 6))


def test_weights_that_nothing_shares_are_no_batch_size():
    """One sample of weight 1 / 288, and nobody told how many there are."""
    search = HeadSearch(DENSE.observe(), 8.0, rng(), endless())
    search.run()
    search.divisor = None
    one = search.found.pick(torch.tensor([0]))
    search.found = replace(one, inverse_weights=torch.full((1,), 288.0, dtype=FLOAT))
    search._factors = replace(
        search.factors,
        left=search.factors.left[:, :1],
        values=search.factors.values[:1],
        right=search.factors.right[:, :1],
    )
    found = restoration_from(DENSE.observe(batch_size=None), search)
    assert found.counts is None
