"""The search for images whose gradient is the observed one, by IG or DLG."""

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from labelleak.errors import LabelLeakError
from labelleak.inversion.objective import (
    cosine_distance,
    squared_distance,
    total_variation,
)
from labelleak.inversion.task import Progress, Task

_DROPS = (3 / 8, 5 / 8, 7 / 8)
_TELL_EVERY = 25
_TELL_AFTER = 0.5  # seconds
_LBFGS_STEPS = 20
_MOST = torch.finfo(torch.float32).max


@dataclass(frozen=True)
class IG:
    """Inverting gradients (IG): match the direction of the gradient, with signed steps of Adam.

    IG minimizes the cosine distance of the gradients plus a total variation prior. Pixels are
    clamped to [0, 1] after every step. The learning rate falls to a tenth at 3/8, 5/8 and 7/8 of
    the iterations.

    Args:
        iterations: Steps of Adam in each restart.
        learning_rate: Initial learning rate of Adam, in units of the normalized pixels.
        total_variation: Weight of the mean absolute difference of neighboring pixels.
        restarts: Number of starts, each from other noise. The result is the one with the least
            final distance.

    References:
        Geiping et al., "Inverting gradients: how easy is it to break privacy in federated
        learning?", NeurIPS 2020.

    Examples:
        >>> IG(iterations=10).iterations
        10
    """

    iterations: int = 4800
    learning_rate: float = 0.1
    total_variation: float = 1e-4
    restarts: int = 1

    name = "ig"
    normalize = True
    distance = staticmethod(cosine_distance)

    def __post_init__(self) -> None:
        _check_positive(self, "iterations", "learning_rate", "restarts")
        if not 0.0 <= self.total_variation <= _MOST:
            raise ValueError(
                f"total_variation {self.total_variation}: it is at least 0, and finite in single "
                "precision"
            )

    def iterate(self, task: Task, images: Tensor, labels: Tensor) -> Iterator[Tensor]:
        """Move the images, and the logits of soft labels, in place; yield each distance before."""
        negatives = task.negatives(normalize=self.normalize)
        soft = labels.is_floating_point()
        variables = [images, labels] if soft else [images]
        fused = images.device.type in ("cpu", "cuda")
        optimizer = torch.optim.Adam(variables, lr=self.learning_rate, fused=fused)
        drops = {int(self.iterations * place) for place in _DROPS}
        for iteration in range(self.iterations):
            if iteration in drops:
                optimizer.param_groups[0]["lr"] *= 0.1
            step = task.step(images, labels, self.distance, negatives)
            direction = step.images
            if self.total_variation:
                _, slope = total_variation(images.detach())
                direction = direction.add_(slope, alpha=self.total_variation)
            images.grad = direction.sign_()
            if soft:
                labels.grad = step.logits
            optimizer.step()
            with torch.no_grad():
                torch.clamp(images, task.low, task.high, out=images)
            yield step.distance


@dataclass(frozen=True)
class DLG:
    """Deep leakage from gradients (DLG): match the gradient itself, with L-BFGS.

    DLG works for smooth networks (sigmoid or Swish activations) and few images. A line search
    (strong Wolfe conditions) chooses the length of each step; the original has none.

    Args:
        iterations: Largest number of rounds in each restart, of 20 steps of L-BFGS each. A restart
            ends with the first round that does not lower the distance.
        restarts: Number of starts, each from other noise. The result is the one with the least
            final distance.

    References:
        Zhu et al., "Deep leakage from gradients", NeurIPS 2019.

    Examples:
        >>> DLG(iterations=10).iterations
        10
    """

    iterations: int = 300
    restarts: int = 1

    name = "dlg"
    normalize = False
    distance = staticmethod(squared_distance)

    def __post_init__(self) -> None:
        _check_positive(self, "iterations", "restarts")

    def iterate(self, task: Task, images: Tensor, labels: Tensor) -> Iterator[Tensor]:
        """Move the images, and the logits of soft labels, in place; yield each distance before."""
        negatives = task.negatives(normalize=self.normalize)
        soft = labels.is_floating_point()
        variables = [images, labels] if soft else [images]
        optimizer = torch.optim.LBFGS(
            variables,
            max_iter=_LBFGS_STEPS,
            tolerance_grad=0.0,
            tolerance_change=0.0,
            line_search_fn="strong_wolfe",
        )

        least = math.inf
        best: list[Tensor] = []

        def closure() -> Tensor:
            nonlocal least, best
            step = task.step(images, labels, self.distance, negatives)
            if float(step.distance) < least:
                least, best = float(step.distance), [v.detach().clone() for v in variables]
            images.grad = step.images
            if soft:
                labels.grad = step.logits
            return step.distance

        before = math.inf
        try:
            for _ in range(self.iterations):
                distance: Tensor = optimizer.step(closure)  # type: ignore[no-untyped-call]
                yield distance
                if not float(distance) < before:
                    return
                before = float(distance)
        finally:
            # An interruption or NaN may come while the line search tries a step: go back.
            with torch.no_grad():
                for variable, value in zip(variables, best, strict=False):
                    variable.copy_(value)


@dataclass(frozen=True, eq=False)
class Outcome:
    """Result of a search.

    Attributes:
        images: Inputs of the network, without a graph.
        logits: Logits of the soft labels, one row for each image or one for all; None where the
            classes were fixed.
        distances: Final distance of each restart that was begun.
        iterations: Number of iterations of all restarts together.
        interrupted: Whether the search was interrupted.
    """

    images: Float[Tensor, "batch channels height width"]
    logits: Float[Tensor, "rows classes"] | None
    distances: tuple[float, ...]
    iterations: int
    interrupted: bool


def search(
    method: IG | DLG,
    task: Task,
    classes: Int[Tensor, " batch"] | None,
    rows: int,
    seed: int,
    progress: Progress | None = None,
    clock: Callable[[], float] = time.monotonic,
) -> Outcome:
    """Search from every start, and keep the outcome with the least distance.

    An interruption (``KeyboardInterrupt``) ends the search; the best so far is the outcome.

    Args:
        method: The method.
        task: The network and its gradient.
        classes: Class of each image, int64, shape (batch,); None to optimize soft labels, too.
        rows: Number of soft labels: one for each image, or 1 for all.
        seed: Seed of the starts. They depend neither on the device nor on what is known of the
            labels.
        progress: Called with the restart, the iteration and the distance: every 25 iterations, and
            whenever half a second has passed.
        clock: Gives the time in seconds.

    Returns:
        The best outcome.

    Raises:
        LabelLeakError: The distance became NaN or infinite in every restart.
    """
    best: tuple[float, Tensor, Tensor] | None = None
    distances: list[float] = []
    iterations, interrupted = 0, False
    negatives = task.negatives(normalize=method.normalize)
    for restart in range(method.restarts):
        images, labels = _start(task, classes, rows, seed + restart)
        told = -math.inf
        try:
            for done, distance in enumerate(method.iterate(task, images, labels), start=1):
                iterations += 1
                if progress is None:
                    continue
                if done % _TELL_EVERY == 0 or clock() - told > _TELL_AFTER:
                    progress(restart + 1, done, float(distance))
                    told = clock()
        except KeyboardInterrupt:
            interrupted = True
        final = task.distance(images, labels, method.distance, negatives)
        distances.append(final)
        if math.isfinite(final) and (best is None or final < best[0]):
            best = (final, images.detach(), labels.detach())
        if interrupted:
            break
    if best is None:
        raise LabelLeakError(
            "the distance of the gradients became NaN or infinite in every restart: try a smaller "
            "learning rate, another seed, or double precision"
        )
    logits = best[2] if best[2].is_floating_point() else None
    return Outcome(best[1], logits, tuple(distances), iterations, interrupted)


def _start(
    task: Task, classes: Int[Tensor, " batch"] | None, rows: int, seed: int
) -> tuple[Tensor, Tensor]:
    """Noise for the images, and the classes or noise for the logits, as leaves of the graph."""
    generator = torch.Generator().manual_seed(seed)
    images = torch.randn((task.batch_size, *task.image_shape), generator=generator)
    images = images.to(task.device, task.dtype).requires_grad_()
    if classes is not None:
        return images, classes.to(task.device)
    logits = torch.randn((rows, task.classes), generator=generator)
    return images, logits.to(task.device, task.dtype).requires_grad_()


def _check_positive(method: object, *names: str) -> None:
    for name in names:
        value = getattr(method, name)
        if not 0 < value < math.inf:
            raise ValueError(f"{name} {value}: it must be positive and finite")
