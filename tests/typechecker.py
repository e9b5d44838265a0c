"""The run-time type checker of the tests."""

from beartype import BeartypeConf, beartype
from beartype.roar import BeartypeDecorHintPep673Exception

# As in PEP 484 and mypy, an int is accepted for a float.
_checked = beartype(conf=BeartypeConf(is_pep484_tower=True))


def check(function):
    """Check arguments and result of a function; the import hook passes methods singly."""
    try:
        return _checked(function)
    except BeartypeDecorHintPep673Exception:
        # `Self` cannot be resolved for a method without its class.
        return function
