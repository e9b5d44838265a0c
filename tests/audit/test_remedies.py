import re

import pytest

from labelleak.audit.remedies import OPTIONS, REMEDIES, told_flag
from labelleak.cli.audit import audit_command
from labelleak.restoration import Flag


def test_every_flag_has_a_remedy_of_its_own():
    assert set(REMEDIES) == set(Flag)
    assert all(text == text.strip(" .") and text for text in REMEDIES.values())


@pytest.mark.parametrize("flag", OPTIONS)
def test_what_to_type_is_an_option_of_the_audit(flag):
    known = {name for option in audit_command.params for name in option.opts}
    assert set(re.findall(r"--[\w-]+", OPTIONS[flag])) <= known
    assert told_flag(flag)["options"] == OPTIONS[flag]


def test_a_flag_without_an_option_is_told_without_one():
    assert set(told_flag(Flag.NO_BIAS)) == {"name", "text", "remedy"}
