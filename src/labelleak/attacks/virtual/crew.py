"""Virtual clients that train side by side: each on a thread of its own, or all in one pass."""

import logging
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from threading import Event
from typing import TypeVar

import torch
from torch import Tensor

from labelleak.attacks.virtual.drawing import Drawn
from labelleak.attacks.virtual.simulation import Recipe
from labelleak.attacks.virtual.together import train_together
from labelleak.isolation import MODEL_ERRORS, draws_random_numbers, undisturbed

_log = logging.getLogger(__name__)

# Most threads, and most clients of one pass: each has a copy of the model, and of what a step
# remembers.
_THREADS, _TOGETHER = 8, 16
# A model and a batch of inputs with more entries are large: one alone keeps a processor busy, and
# copies would fill the memory.
_LARGE = 1 << 22

Shown = TypeVar("Shown")


class Crew:
    """Trains virtual clients of one recipe, as many at a time as `size` says.

    What comes out does not depend on how many that is, but for rounding and, on a GPU, dropout.
    """

    def __init__(self, recipe: Recipe, size: int, pool: ThreadPoolExecutor | None = None) -> None:
        self.recipe, self.size = recipe, size
        self._pool = pool

    def train(
        self, drawn: Sequence[Drawn], shown: Callable[[dict[str, Tensor]], Shown]
    ) -> list[Shown]:
        """What each virtual client's state dict shows; at most `size` of them.

        Args:
            drawn: What they train on.
            shown: Reads a state dict, and changes nothing that others see.
        """
        if self._pool is not None:
            return self._on_threads(self._pool, drawn, shown)
        if self.size > 1:
            try:
                return [shown(after) for after in train_together(self.recipe, drawn)]
            except MODEL_ERRORS as error:
                _log.info("virtual clients train one after the other: %s", error)
                self.size = 1
        return [shown(self.recipe.trained(one)) for one in drawn]

    def _on_threads(
        self,
        pool: ThreadPoolExecutor,
        drawn: Sequence[Drawn],
        shown: Callable[[dict[str, Tensor]], Shown],
    ) -> list[Shown]:
        stop = Event()

        def train_one(one: Drawn) -> Shown:
            return shown(self.recipe.trained_beside(one, stop))

        with undisturbed():
            try:
                running = [pool.submit(train_one, one) for one in drawn]
                return [one.result() for one in running]
            finally:
                # After an interrupt or an error the others end with their next step.
                stop.set()


@contextmanager
def crew_of(recipe: Recipe, inputs: Tensor) -> Iterator[Crew]:
    """A crew for a small model: one thread for each core that torch may use, or one pass on a GPU.

    On threads, random numbers that a model takes in training, as of dropout, would be anyone's: its
    clients train one after the other there.

    Args:
        recipe: Of the virtual clients.
        inputs: Some that the model takes, at most one batch of them.
    """
    inputs, threads = recipe.placed(inputs), torch.get_num_threads()
    on_cpu = recipe.device.type == "cpu"
    size = min(threads, _THREADS) if on_cpu else _TOGETHER
    entries = sum(value.numel() for value in recipe.model.parameters()) + inputs.numel()
    if size == 1 or entries > _LARGE or (on_cpu and draws_random_numbers(recipe.model, inputs)):
        yield Crew(recipe, 1)
    elif not on_cpu:
        yield Crew(recipe, size)
    else:
        try:
            with ThreadPoolExecutor(
                size, initializer=torch.set_num_threads, initargs=(threads // size,)
            ) as pool:
                yield Crew(recipe, size, pool)
        finally:
            # Some of what a thread is told there holds for all of them.
            torch.set_num_threads(threads)
