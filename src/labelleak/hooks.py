"""Hooks on layers: see, or change, what enters and leaves them during a forward pass."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, NamedTuple

from torch import nn

Entering = Callable[[nn.Module, Any], Any]
Leaving = Callable[[nn.Module, Any, Any], Any]


class Passage(NamedTuple):
    """One run of a layer: its first argument, and its output."""

    entered: Any
    left: Any


@contextmanager
def hooked(
    *layers: nn.Module, entering: Entering | None = None, leaving: Leaving | None = None
) -> Iterator[None]:
    """Call functions whenever one of the layers runs; afterward the hooks are gone.

    Args:
        *layers: The layers to watch.
        entering: Called with the layer and its first argument, positional or by keyword, before the
            layer runs. A result that is not None takes the argument's place.
        leaving: Called with the layer, its first argument and its output after it ran. A result
            that is not None takes the output's place.
    """

    def before(layer: nn.Module, arguments: tuple[Any, ...], keywords: dict[str, Any]) -> Any:
        assert entering is not None
        value = entering(layer, _first(arguments, keywords))
        if value is None:
            return None
        if arguments:
            return (value, *arguments[1:]), keywords
        return arguments, {**keywords, next(iter(keywords)): value}

    def after(
        layer: nn.Module, arguments: tuple[Any, ...], keywords: dict[str, Any], output: Any
    ) -> Any:
        assert leaving is not None
        return leaving(layer, _first(arguments, keywords), output)

    with ExitStack() as stack:
        for layer in layers:
            if entering is not None:
                handle = layer.register_forward_pre_hook(before, with_kwargs=True)
                stack.callback(handle.remove)
            if leaving is not None:
                handle = layer.register_forward_hook(after, with_kwargs=True)
                stack.callback(handle.remove)
        yield


@contextmanager
def recorded(layer: nn.Module) -> Iterator[list[Passage]]:
    """Every run of a layer, in a list that grows as the layer runs."""
    passages: list[Passage] = []

    def note(_: nn.Module, entered: Any, left: Any) -> None:
        passages.append(Passage(entered, left))

    with hooked(layer, leaving=note):
        yield passages


def _first(arguments: tuple[Any, ...], keywords: dict[str, Any]) -> Any:
    return next(iter((*arguments, *keywords.values())), None)
