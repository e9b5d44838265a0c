"""From a whole network's gradient to the images of the batch, whatever the method."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, Literal, get_args

import torch
from jaxtyping import Float, Int
from torch import Tensor

from labelleak.attacks import restore
from labelleak.errors import InvalidObservation, MissingKnowledge
from labelleak.inversion.analytic import Analytic, read_first_layer
from labelleak.inversion.methods import DLG, IG, search
from labelleak.inversion.task import ImageShape, Progress, Task
from labelleak.observation import Observation
from labelleak.restoration import Restoration

Method = IG | DLG | Analytic
METHODS: Mapping[str, type[Method]] = {"ig": IG, "dlg": DLG, "analytic": Analytic}
"""The methods by name."""

LabelMode = Literal["free", "shared", "restored", "given"]
"""What is known of the labels. ``free``: nothing, a soft label is optimized for each image;
``shared``: nothing, one soft label is optimized for the whole batch, as the public code of IG does;
``restored``: what an attack restores; ``given``: all."""


def make_method(name: str, **settings: float | None) -> Method:
    """The method of a name, with its settings.

    Args:
        name: One of `METHODS`.
        **settings: Fields of the method; None leaves one at its default.

    Raises:
        ValueError: There is no such method, it has no such setting, or a value is impossible.

    Examples:
        >>> make_method("dlg", iterations=5, restarts=None)
        DLG(iterations=5, restarts=1)
    """
    if name not in METHODS:
        raise ValueError(f"method {name!r}: choose one of {', '.join(METHODS)}")
    kind = METHODS[name]
    known = {field.name for field in fields(kind)}
    given: dict[str, Any] = {key: value for key, value in settings.items() if value is not None}
    for key in given:
        if key not in known:
            raise ValueError(f"the method {name} has no {key}")
    return kind(**given)


@dataclass(frozen=True, eq=False)
class Inversion:
    """Images restored from a gradient.

    Attributes:
        method: ``ig``, ``dlg`` or ``analytic``.
        mode: What was known of the labels, see `LabelMode`; None for the method ``analytic``, which
            needs none.
        images: Pixels from 0 to 1, shape (batch, channels, height, width). Their order means
            nothing: a gradient is a mean over the batch.
        labels: Class of each image, int64, shape (batch,): the fixed one, or the most probable one
            of its soft label. None for ``shared`` and for ``analytic``.
        restoration: Result of the attack on the labels, for ``restored``; else None.
        distance: Distance between the gradient of `images` and the observed one, in the measure of
            the method; None for ``analytic``.
        distances: Final distance of each restart.
        iterations: Number of iterations of all restarts together.
        interrupted: Whether the search was interrupted.

    Examples:
        >>> import torch, labelleak
        >>> from labelleak.inversion import Analytic, invert
        >>> _ = torch.manual_seed(0)
        >>> model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(4, 3)).eval()
        >>> image, label = torch.rand(1, 1, 2, 2), torch.tensor([1])
        >>> loss = torch.nn.functional.cross_entropy(model(image), label)
        >>> gradients = torch.autograd.grad(loss, list(model.parameters()))
        >>> seen = labelleak.observe(model, gradients, batch_size=1)
        >>> found = invert(seen, Analytic(), image_shape=(1, 2, 2))
        >>> torch.allclose(found.images, image, atol=1e-4)
        True
    """

    method: str
    mode: LabelMode | None
    images: Float[Tensor, "batch channels height width"]
    labels: Int[Tensor, " batch"] | None
    restoration: Restoration | None
    distance: float | None
    distances: tuple[float, ...]
    iterations: int
    interrupted: bool

    def as_dict(self) -> dict[str, Any]:
        """Everything but the images, as plain data."""
        found = self.restoration
        return {
            "method": self.method,
            "mode": self.mode,
            "labels": None if self.labels is None else self.labels.tolist(),
            "attack": None if found is None else found.attack,
            "certified": None if found is None else found.certified,
            "flags": [] if found is None else [flag.name.lower() for flag in found.flags],
            "distance": self.distance,
            "distances": [d if math.isfinite(d) else None for d in self.distances],
            "iterations": self.iterations,
            "interrupted": self.interrupted,
        }


def invert(
    observation: Observation,
    method: Method | None = None,
    *,
    image_shape: ImageShape,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    mode: LabelMode = "restored",
    labels: Int[Tensor, " batch"] | None = None,
    attack: str = "auto",
    dtype: torch.dtype | None = None,
    seed: int = 0,
    progress: Progress | None = None,
) -> Inversion:
    """Find images whose gradient is the observed one, in evaluation mode and for a single step.

    Args:
        observation: What the server sees, with the model, all its gradients and the batch size (see
            `labelleak.observe`). Computing takes place on the device of the model.
        method: `IG`, `DLG` or `Analytic`, with its settings; None for `IG` with the usual ones.
        image_shape: Channels, height and width of one image, in pixels.
        mean: Mean of each channel that the client subtracts from pixels from 0 to 1; None for 0.
        std: Standard deviation of each channel that the client divides by; None for 1.
        mode: What is known of the labels.
        labels: Class of each image, int64, shape (batch,), in any order; for the mode ``given``
            alone.
        attack: Name of the attack that restores the labels in the mode ``restored``, see
            `labelleak.restore`.
        dtype: Type to compute in, such as ``torch.float64``; None for that of the model.
        seed: Seed of the noise that the search starts from.
        progress: Called now and then with the restart, the iteration and the distance.

    Returns:
        The images; after an interruption (Ctrl-C) the best so far.

    Raises:
        MissingKnowledge: The observation lacks something, or the attack restores no counts.
        InvalidObservation: The gradient is not of this network, shapes do not fit, or the network
            is not differentiable.
        LabelLeakError: The distance became NaN or infinite in every restart.
        ValueError: The mode is unknown, labels come with another mode than ``given``, or that mode
            without labels.

    Examples:
        The first layer gives a single image away exactly:

        >>> import labelleak, torch
        >>> model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(4, 3))
        >>> image = torch.tensor([[[[0.25, 0.5], [0.75, 1.0]]]])
        >>> loss = torch.nn.functional.cross_entropy(model(image), torch.tensor([2]))
        >>> gradients = torch.autograd.grad(loss, list(model.parameters()))
        >>> seen = labelleak.observe(model, gradients, batch_size=1)
        >>> found = invert(seen, Analytic(), image_shape=(1, 2, 2))
        >>> [round(pixel, 4) for pixel in found.images.flatten().tolist()]
        [0.25, 0.5, 0.75, 1.0]
    """
    method = IG() if method is None else method
    if mode not in get_args(LabelMode):
        raise ValueError(f"mode {mode!r}: choose one of {', '.join(get_args(LabelMode))}")
    if (labels is not None) != (mode == "given"):
        raise ValueError("labels belong to the mode 'given', and it needs them")
    task = Task(observation, image_shape, mean, std, dtype)
    if isinstance(method, Analytic):
        images = task.pixels(read_first_layer(task))
        return Inversion(method.name, None, images, None, None, None, (), 0, interrupted=False)
    restoration = _restored(observation, attack) if mode == "restored" else None
    classes = labels if restoration is None else restoration.labels()
    if classes is not None:
        classes = _checked(classes, task)
    rows = 1 if mode == "shared" else task.batch_size
    outcome = search(method, task, classes, rows, seed, progress)
    if outcome.logits is not None and mode == "free":
        classes = outcome.logits.argmax(dim=1)
    return Inversion(
        method=method.name,
        mode=mode,
        images=task.pixels(outcome.images),
        labels=classes,
        restoration=restoration,
        distance=min(filter(math.isfinite, outcome.distances)),
        distances=outcome.distances,
        iterations=outcome.iterations,
        interrupted=outcome.interrupted,
    )


def _restored(observation: Observation, attack: str) -> Restoration:
    found = restore(observation, attack)
    if found.counts is None:
        raise MissingKnowledge(
            f"attack {found.attack!r} restores no counts here, and inversion needs one label for "
            "each image: choose another attack, or the labels free"
        )
    return found


def _checked(labels: Tensor, task: Task) -> Tensor:
    """The labels in ascending order, so that the same counts start from the same noise."""
    if labels.shape != (task.batch_size,):
        raise InvalidObservation(f"{labels.numel()} labels for a batch of {task.batch_size}")
    if int(labels.min()) < 0 or int(labels.max()) >= task.classes:
        raise InvalidObservation(
            f"labels run from {int(labels.min())} to {int(labels.max())}, and the network has "
            f"classes 0 to {task.classes - 1}"
        )
    return labels.long().sort().values
