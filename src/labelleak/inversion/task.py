"""What every inversion method works on: the network, its loss, and the observed gradient."""

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from copy import deepcopy
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from labelleak.checks import shape_of
from labelleak.errors import InvalidObservation, MissingKnowledge
from labelleak.inversion.derivatives import SecondDerivatives
from labelleak.inversion.objective import DistanceFunction
from labelleak.observation import Observation

ImageShape = tuple[int, int, int]
"""Channels, height and width, in pixels."""

Progress = Callable[[int, int, float], None]
"""Called with the restart and the iteration, both counted from 1, and the distance."""

_Derivatives = Callable[[], AbstractContextManager[object]]

_MOST_NAMED = 3


class Step(NamedTuple):
    """The distance, and its derivatives by the images and the logits, without a graph."""

    distance: Float[Tensor, ""]
    images: Float[Tensor, "batch channels height width"]
    logits: Tensor | None


class Task:
    """Images are sought for which a network has the observed gradient.

    The network is a copy in evaluation mode; the caller's network is not changed.
    """

    def __init__(
        self,
        observation: Observation,
        image_shape: ImageShape,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        """Check that the observation can be inverted.

        Args:
            observation: What the server sees, with the model, the gradient of every parameter for
                one step, and the batch size.
            image_shape: Channels, height and width of one image, in pixels.
            mean: Mean of each channel that the client subtracts from pixels from 0 to 1; None for
                0.
            std: Standard deviation of each channel that the client divides by; None for 1.
            dtype: Type to compute in; None for that of the model.

        Raises:
            MissingKnowledge: The model, the gradient of every parameter or the batch size is
                missing.
            InvalidObservation: The gradient is of another network, the network does not take such
                images, its gradient cannot be differentiated, or a number is impossible.
        """
        _check_needs(observation)
        assert observation.model is not None
        assert observation.gradients is not None
        assert observation.batch_size is not None
        if len(image_shape) != 3 or min(image_shape) < 1:
            raise InvalidObservation(
                f"image shape {tuple(image_shape)}: channels, height and width are needed"
            )
        self.batch_size: int = observation.batch_size
        self.image_shape: ImageShape = image_shape
        self.classes: int = observation.classes
        self._value = observation.loss.value
        own = _copy(observation.model).eval()
        self.model: nn.Module = own if dtype is None else own.to(dtype)
        self.gradients = self._fitting(observation.gradients)
        example = self.parameters[0]
        self.dtype, self.device = example.dtype, example.device
        self.mean = self._channels(mean, 0.0, "mean")
        self.std = self._channels(std, 1.0, "std")
        if not (self.std > 0).all():
            raise InvalidObservation("the standard deviation of every channel must be positive")
        # The pixels 0 and 1 on the scale of the network's inputs.
        self.low, self.high = -self.mean / self.std, (1.0 - self.mean) / self.std
        self._derivatives = self._check_network()

    @property
    def parameters(self) -> list[Tensor]:
        """The parameters with an observed gradient."""
        return [p for p in self.model.parameters() if p.requires_grad]

    def pixels(
        self, images: Float[Tensor, "batch channels height width"]
    ) -> Float[Tensor, "batch channels height width"]:
        """Inputs of the network as pixels, clamped to [0, 1]."""
        return (images.detach() * self.std + self.mean).clamp_(0.0, 1.0)

    def negatives(self, *, normalize: bool) -> list[Tensor]:
        """Minus the observed gradient, one tensor per parameter.

        Args:
            normalize: Scale it to norm 1 over all parameters together.
        """
        values = list(self.gradients.values())
        scale = 1.0
        if normalize:
            squares = (float(torch.linalg.vector_norm(value.double())) ** 2 for value in values)
            scale = math.sqrt(sum(squares))
        return [value / -scale for value in values]

    def step(
        self,
        images: Float[Tensor, "batch channels height width"],
        labels: Int[Tensor, " batch"] | Float[Tensor, "rows classes"],
        distance: DistanceFunction,
        negatives: Sequence[Tensor],
    ) -> Step:
        """The distance of the network's gradient from the observed one, and its derivatives.

        Args:
            images: Inputs of the network, a leaf that requires its gradient.
            labels: Class of each image, int64. Or the logits of soft labels, one row for each image
                or one for all, a leaf that requires its gradient.
            distance: The distance to use.
            negatives: What the method `negatives` gave.

        Returns:
            The distance and its derivatives by the images and the logits.
        """
        soft = labels.is_floating_point()
        with self._derivatives():
            loss = self._loss(images, labels)
        gradients = torch.autograd.grad(loss, self.parameters, create_graph=True)
        with torch.no_grad():
            value, cotangents, factor = distance(gradients, negatives)
        # The parameters are left out: their derivatives are not needed.
        variables = [images, labels] if soft else [images]
        found = torch.autograd.grad(gradients, variables, cotangents)
        scaled = [derivative * factor for derivative in found]
        return Step(value, scaled[0], scaled[1] if soft else None)

    def distance(
        self,
        images: Tensor,
        labels: Tensor,
        distance: DistanceFunction,
        negatives: Sequence[Tensor],
    ) -> float:
        """The distance alone, as `step` gives it."""
        gradients = torch.autograd.grad(self._loss(images, labels), self.parameters)
        with torch.no_grad():
            return float(distance(gradients, negatives).value)

    def _loss(self, images: Tensor, labels: Tensor) -> Tensor:
        # The faster attention kernels cannot be differentiated twice.
        with sdpa_kernel(SDPBackend.MATH):
            logits = _logits(self.model(images))
        if labels.is_floating_point():
            labels = torch.softmax(labels, dim=1).expand(len(images), -1)
        return self._value(logits, labels)

    def _channels(self, values: Sequence[float] | None, default: float, name: str) -> Tensor:
        channels = self.image_shape[0]
        values = [default] * channels if values is None else list(values)
        if len(values) != channels or not all(map(math.isfinite, values)):
            raise InvalidObservation(
                f"{name} {values}: one number for each of {channels} channels is needed"
            )
        return torch.tensor(values, dtype=self.dtype, device=self.device)[:, None, None]

    def _fitting(self, sent: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Check the observed gradient, and bring it to the parameters' order, dtype and device."""
        learned = {n: p for n, p in self.model.named_parameters() if p.requires_grad}
        if not learned:
            raise InvalidObservation("no parameter of the model is learned: there is no gradient")
        missing = [name for name in learned if name not in sent]
        unknown = [name for name in sent if name not in dict(self.model.named_parameters())]
        if missing or unknown:
            problems = [
                f"{what} {_some(names)}"
                for what, names in (("it has no", missing), ("the network has no", unknown))
                if names
            ]
            raise InvalidObservation(
                f"the gradient is not of this network: {', and '.join(problems)}; name the network "
                "that was trained"
            )
        fitting = {}
        for name, parameter in learned.items():
            value = sent[name]
            if value.shape != parameter.shape:
                raise InvalidObservation(
                    f"the gradient is not of this network: {name} is {shape_of(value)} in the "
                    f"gradient, and {shape_of(parameter)} in the network"
                )
            if not torch.isfinite(value).all():
                raise InvalidObservation(f"the gradient of {name} has NaN or infinite entries")
            fitting[name] = value.detach().to(parameter.device, parameter.dtype).contiguous()
        if not any(bool(value.any()) for value in fitting.values()):
            raise InvalidObservation("the gradient is zero everywhere: there is nothing to invert")
        return fitting

    def _check_network(self) -> "_Derivatives":
        """Run the network and both derivatives once, to refuse what cannot work before the search.

        Returns:
            The context to take second derivatives in: the fast one only if it agrees with PyTorch's
            own for this network.
        """
        generator = torch.Generator().manual_seed(0)
        images = torch.randn((self.batch_size, *self.image_shape), generator=generator)
        images = images.to(self.device, self.dtype).requires_grad_()
        shape = "x".join(map(str, self.image_shape))
        try:
            logits = _logits(self.model(images))
        except (RuntimeError, ValueError, TypeError, IndexError) as error:
            raise InvalidObservation(
                f"the network does not take images of {shape}: {_one_line(error)}"
            ) from None
        if logits.shape != (self.batch_size, self.classes):
            raise InvalidObservation(
                f"the network gives {shape_of(logits)} for {self.batch_size} images of {shape}: "
                f"{self.batch_size}x{self.classes} logits are needed"
            )
        if not torch.isfinite(logits).all():
            raise InvalidObservation(
                "the network gives NaN or infinite logits: are its weights finite?"
            )
        own = self._slope(images, nullcontext)
        try:
            fast = self._slope(images, SecondDerivatives)
        except InvalidObservation:
            return nullcontext
        # TF32 on a GPU needs a tolerance this wide; wrong derivatives differ by more.
        near = torch.finfo(self.dtype).eps ** 0.25 * torch.linalg.vector_norm(own)
        return SecondDerivatives if torch.linalg.vector_norm(fast - own) <= near else nullcontext

    def _slope(self, images: Tensor, derivatives: "_Derivatives") -> Tensor:
        """Derivative by the images of the dot product of their gradient with the observed one."""
        labels = torch.zeros(self.batch_size, dtype=torch.int64, device=self.device)
        names = list(self.gradients)
        found = None
        try:
            with derivatives():
                loss = self._loss(images, labels)
            gradients = torch.autograd.grad(
                loss, self.parameters, create_graph=True, allow_unused=True
            )
            there = [g for g in gradients if g is not None]
            if len(there) < len(names):
                cut = [name for name, g in zip(names, gradients, strict=True) if g is None]
                reason = f"its loss does not depend on {_some(cut)}"
            else:
                reason = "its gradient does not depend on the images"
                targets = self.negatives(normalize=True)
                (found,) = torch.autograd.grad(there, [images], targets, allow_unused=True)
        except RuntimeError as error:
            reason = _one_line(error)
        if found is None:
            raise InvalidObservation(
                f"the network is not differentiable as inversion needs it: {reason} (detach, "
                "argmax, rounding and operations in place cut the way back to the images)"
            )
        return found


def _check_needs(observation: Observation) -> None:
    lacking = [
        text
        for value, text in (
            (observation.model, "the model (observe(model, ...), or --model on the command line)"),
            (observation.gradients, "the gradient of every parameter, not of the head alone"),
            (observation.batch_size, "the batch size (--batch-size on the command line)"),
        )
        if value is None
    ]
    if lacking:
        raise MissingKnowledge(f"inversion needs {'; '.join(lacking)}")
    if observation.local_steps != 1:
        raise InvalidObservation(
            f"the update adds up {observation.local_steps} local steps: inversion needs the "
            "gradient of a single step (FedSGD)"
        )


def _copy(model: nn.Module) -> nn.Module:
    try:
        return deepcopy(model)
    except RuntimeError as error:
        raise InvalidObservation(f"the network cannot be copied: {_one_line(error)}") from None


def _logits(output: object) -> Tensor:
    logits = output if isinstance(output, Tensor) else getattr(output, "logits", None)
    if not isinstance(logits, Tensor) or logits.ndim != 2:
        raise InvalidObservation(
            f"the network gives {type(output).__name__}: logits, a matrix with one row for each "
            "image, are needed"
        )
    return logits


def _some(names: Sequence[str]) -> str:
    more = len(names) - _MOST_NAMED
    return ", ".join(names[:_MOST_NAMED]) + (f" and {more} more" if more > 0 else "")


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:200]
