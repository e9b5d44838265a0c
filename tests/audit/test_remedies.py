from labelleak.audit.remedies import REMEDIES
from labelleak.restoration import Flag


def test_every_flag_has_a_remedy_of_its_own():
    assert set(REMEDIES) == set(Flag)
    assert all(text == text.strip(" .") and text for text in REMEDIES.values())
