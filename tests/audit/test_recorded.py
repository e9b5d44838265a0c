import json
import math
from dataclasses import replace

import pytest
import torch

from labelleak import Flag, UnreadableFile, capture, restore
from labelleak.audit import audit_observation
from labelleak.audit.recorded import recorded_restoration


@pytest.fixture(scope="module")
def seen():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = torch.nn.Linear(20, 5)
        return capture(model, torch.rand(8, 20), torch.tensor([0, 0, 0, 1, 1, 3, 3, 4]))


@pytest.fixture(scope="module")
def told(seen):
    """A record as it comes back from a file."""
    return json.loads(json.dumps(audit_observation(seen, "pooled").as_dict()))


def test_a_record_holds_the_restoration_that_it_is_of(seen, told):
    found, own = recorded_restoration(told), restore(seen, "pooled")
    assert torch.equal(found.counts, own.counts)
    assert torch.equal(found.present, own.present)
    torch.testing.assert_close(found.raw, own.raw)
    torch.testing.assert_close(found.standard_errors, own.standard_errors)
    assert (found.flags, found.certified, found.attack) == (own.flags, False, "pooled")


def test_a_certificate_needs_no_intervals(told):
    found = recorded_restoration(told | {"certified": True, "intervals": None})
    assert found.certified
    assert found.standard_errors is None


@pytest.mark.parametrize(
    "change",
    [{"counts": None}, {"intervals": None}, {"intervals": [[None, None]] + [[0.0, 1.0]] * 4}],
    ids=str,
)
def test_what_cannot_be_weighed_is_none(told, change):
    assert recorded_restoration(told | change) is None


@pytest.mark.parametrize(
    "change",
    [
        {"certified": "yes"},
        {"flags": None},
        {"flags": ["no_bias"]},
        {"flags": [{"name": "all_is_well"}]},
        {"counts": [9, -1, 0, 0, 0]},
        {"counts": [8, 0, 0, 0]},
        {"counts": [True] * 5},
        {"counts": [8.0, 0, 0, 0, 0]},
        {"counts": [9, 0, 0, 0, 0]},
        {"counts": "80000"},
        {"classes": None},
        {"classes": 1, "counts": [8], "intervals": [[8.0, 8.0]]},
        {"samples": None},
        {"intervals": [[0.0, 1.0]] * 4},
        {"intervals": [[0.0, 1.0, 2.0]] * 5},
        {"intervals": [[1.0, 0.0]] * 5},
        {"intervals": [[0.0, math.nan]] * 5},
        {"intervals": [[0.0, math.inf]] * 5},
        {"intervals": [["0", "1"]] * 5},
        {"intervals": 7},
    ],
    ids=str,
)
def test_what_no_audit_writes_is_refused_in_one_line(told, change):
    with pytest.raises(UnreadableFile, match=r"^an (audit record|end of an audit)[^\n]*$"):
        recorded_restoration(told | change)


def test_every_flag_comes_back(seen):
    record = audit_observation(seen, "pooled")
    flags = [{"name": flag.name.lower(), "text": flag.text} for flag in Flag]
    assert recorded_restoration(replace(record, flags=flags).as_dict()).flags == tuple(Flag)
