"""Parameters that a definition gives to other people's functions."""

from collections.abc import Callable, Iterable, Mapping
from inspect import Parameter, signature
from typing import Any


def filled_in(function: Callable[..., Any], values: Mapping[str, Any]) -> dict[str, Any]:
    """Those of the values that a function has parameters for.

    Examples:
        >>> filled_in(lambda classes, width=5: None, {"classes": 10, "image_shape": (1, 28, 28)})
        {'classes': 10}
    """
    known = signature(function).parameters
    return {name: value for name, value in values.items() if name in known}


def check_parameters(
    what: str, function: Callable[..., Any], given: Iterable[str], filled: Iterable[str]
) -> None:
    """Refuse parameters that a plug-in's function does not have.

    Args:
        what: The plug-in, for the message.
        function: The function.
        given: Names of the parameters in the definition.
        filled: Those that labelleak fills in, and the definition cannot.

    Raises:
        ValueError: There is no such parameter, or one without a default is missing.
    """
    parameters, filled = signature(function).parameters.values(), set(filled)
    named = {
        one.name: one.default is Parameter.empty
        for one in parameters
        if one.kind in (Parameter.KEYWORD_ONLY, Parameter.POSITIONAL_OR_KEYWORD)
    }
    free = [name for name in named if name not in filled]
    takes_any = any(one.kind is Parameter.VAR_KEYWORD for one in parameters)
    given = list(given)
    for name in given:
        if name in filled or (name not in named and not takes_any):
            known = f"its parameters are {', '.join(free)}" if free else "it has no parameters"
            raise ValueError(f"{what} has no parameter {name!r}: {known}")
    missing = [name for name in free if named[name] and name not in given]
    if missing:
        raise ValueError(f"{what} needs the parameter {missing[0]!r}")
