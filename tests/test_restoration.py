import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from labelleak.restoration import UNRELIABLE, Flag, Restoration


def restoration(**found):
    return Restoration(torch.tensor([True, False, True]), attack="an attack", **found)


@given(st.lists(st.integers(0, 5), min_size=1, max_size=8))
def test_labels_are_sorted_and_count_up_to_the_counts(counts):
    counts = torch.tensor(counts)
    labels = Restoration(counts > 0, counts).labels()
    assert labels.dtype == torch.int64
    assert labels.tolist() == sorted(labels.tolist())
    assert torch.equal(torch.bincount(labels, minlength=len(counts)), counts)


def test_a_set_has_no_labels():
    with pytest.raises(ValueError, match="attack 'an attack' restored no counts") as refused:
        restoration().labels()
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("flag", Flag)
def test_every_flag_explains_itself_in_one_line(flag):
    assert len(flag.text) > 20
    assert "\n" not in flag.text


def test_explanations_differ():
    assert len({flag.text for flag in Flag}) == len(Flag)


@pytest.mark.parametrize("flag", Flag)
def test_a_verdict_is_unreliable_under_some_flags_only(flag):
    assert restoration(flags=(flag,)).unreliable is (flag in UNRELIABLE)
    assert restoration(flags=(Flag.NO_BIAS, flag)).unreliable is (flag in UNRELIABLE)


def test_without_flags_a_verdict_is_reliable():
    assert not restoration().unreliable
