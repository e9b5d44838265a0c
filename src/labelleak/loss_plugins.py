"""A loss of another package or module by its name, for experiments and the command line."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import wraps
from typing import Any, cast

from torch import Tensor

from labelleak.errors import BrokenPlugin
from labelleak.loss import NAMED, Loss
from labelleak.plugins import (
    Plugin,
    check_parameters,
    find_plugin,
    plugin_names,
    what_went_wrong,
)


def loss_plugin(name: str, parameters: Mapping[str, Any]) -> Plugin:
    """A loss that is not labelleak's own; its module is imported, which runs its code.

    `Loss.of`, which reads what files and messages hold, never comes here.

    Args:
        name: ``module:name`` of a function that returns a `Loss`, or an entry point of another
            package.
        parameters: Keyword arguments for it.

    Returns:
        The plug-in, whose target makes the loss.

    Raises:
        BrokenPlugin: There is no such module or name, or a parameter is not one that it has.
    """
    if ":" not in name and name not in plugin_names("losses"):
        known = ", ".join((*NAMED, *plugin_names("losses")))
        raise BrokenPlugin(f"unknown loss {name!r}: choose one of {known}, or module:name")
    plugin = find_plugin("losses", name)
    if not callable(plugin.target):
        raise BrokenPlugin(f"loss {name!r}: name a function that returns a labelleak.Loss")
    title = f"the loss {name!r}, a function that returns a labelleak.Loss,"
    try:
        check_parameters(title, plugin.target, parameters, filled=())
    except ValueError as error:
        raise BrokenPlugin(str(error)) from None
    return plugin


def plugged_loss(name: str, parameters: Mapping[str, Any]) -> Loss:
    """The loss that a plug-in gives.

    Args:
        name: As of `loss_plugin`.
        parameters: Keyword arguments for its function.

    Returns:
        The loss.

    Raises:
        BrokenPlugin: As of `loss_plugin`; or the function fails, or returns something else.
    """
    make = cast("Callable[..., Any]", loss_plugin(name, parameters).target)
    try:
        loss = make(**parameters)
    except Exception as error:  # whatever other people's code raises
        raise BrokenPlugin(f"loss {name!r} cannot be made: {what_went_wrong(error)}") from None
    if not isinstance(loss, Loss):
        raise BrokenPlugin(
            f"loss {name!r} returns {type(loss).__name__}: a labelleak.Loss is needed, as by "
            "Loss.custom(function)"
        )
    return loss if loss.function is None else replace(loss, function=_told(name, loss.function))


def _told(
    name: str, function: Callable[[Tensor, Tensor], Tensor]
) -> Callable[[Tensor, Tensor], Tensor]:
    """The function; whatever it raises is an error of the plug-in."""

    @wraps(function)
    def called(logits: Tensor, targets: Tensor) -> Tensor:
        try:
            return function(logits, targets)
        except Exception as error:  # whatever other people's code raises
            raise BrokenPlugin(f"the loss {name!r} failed: {what_went_wrong(error)}") from None

    return called
