"""The run-time type checker of the tests."""

from beartype import BeartypeConf, beartype
from beartype.roar import BeartypeDecorHintPep673Exception

# As PEP 484 has it, and mypy with it: an int goes where a float is asked for.
_checked = beartype(conf=BeartypeConf(is_pep484_tower=True))


def check(function):
    """Check arguments and result of a function; the import hook hands on methods one by one."""
    try:
        return _checked(function)
    except BeartypeDecorHintPep673Exception:
        # `Self` means nothing to a method that is looked at outside its class.
        return function
